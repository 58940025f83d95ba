"""Chat templates: the formats' documented texts, templates as models write them, hostile ones."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from localllama import gguf_file
from localllama.engine.api import Message, ToolCall
from localllama.engine.templates import BUILTIN_NAMES, Template, builtin, choose, recognise
from localllama.errors import InvalidTemplate

SYSTEM = Message("system", "Be brief.")
HELLO = Message("user", "Hello")
HI = Message("assistant", "Hi!")
BYE = Message("user", "Bye")
CHAT = [SYSTEM, HELLO, HI, BYE]


def render(template: Template | str, messages: list[Message], **options: object) -> str:
    if isinstance(template, str):
        template = Template.compile(template, origin="test")
    return template.render(messages, bos_token="<s>", eos_token="</s>", **options)  # type: ignore[arg-type]


BUILTINS = {
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST] Hi! </s>"
    "<s>[INST] Bye [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    "<|im_start|>assistant\n",
    "alpaca": "Be brief.\n\n### Instruction:\nHello\n\n### Response:\nHi!</s>\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
    "mistral": "<s>[INST] Be brief.\n\nHello [/INST] Hi!</s>[INST] Bye [/INST]",
    "plain": "Be brief.\n\nHelloHi!\n\nBye",
}


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_builtin(name: str) -> None:
    assert render(builtin(name), CHAT) == BUILTINS[name]


def test_alpaca_begins_with_its_preamble_without_a_system_message() -> None:
    assert render(builtin("alpaca"), [HELLO]) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nHello\n\n### Response:\n"
    )


def test_plain_passes_a_lone_prompt_on() -> None:
    assert render(builtin("plain"), [Message("user", " The capital ")]) == " The capital "


@pytest.mark.parametrize("name", ["alpaca", "chatml", "llama3"])
def test_no_generation_prompt(name: str) -> None:
    text = render(builtin(name), [HELLO, HI], add_generation_prompt=False)
    assert text.rstrip().endswith(("Hi!</s>", "Hi!<|im_end|>", "Hi!<|eot_id|>"))


CALL = Message(
    "assistant", "", tool_calls=(ToolCall("weather", {"city": "Köln"}, "call_1"),), thinking="Hm."
)
RESULT = Message("tool", "rain", name="weather", tool_call_id="call_1")


def test_tools_reach_the_template_by_their_usual_names() -> None:
    source = (
        "{{ tools[0].function.name }};"
        "{% for m in messages %}{% for call in m.tool_calls or [] %}"
        "{{ m.reasoning_content }}{{ m.thinking }}"
        "{{ call.type }} {{ call.id }} "
        "{{ call.function.name }} {{ call.function.arguments|tojson }}"
        "{% endfor %}{% if m.role == 'tool' %};{{ m.name }} {{ m.tool_call_id }} {{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    tools = [{"type": "function", "function": {"name": "weather"}}]
    text = render(source, [HELLO, CALL, RESULT], tools=tools)
    assert text == ('weather;Hm.Hm.function call_1 weather {"city": "Köln"};weather call_1 rain')


def test_a_template_that_joins_arguments_gets_them_as_text() -> None:
    source = "{{ '(' + messages[-1].tool_calls[0].function.arguments + ')' }}"
    assert render(source, [HELLO, CALL]) == '({"city": "Köln"})'
    with pytest.raises(InvalidTemplate, match="fails"):
        render("{{ messages[0].content + 1 }}", [CALL])


@pytest.mark.parametrize("name", ["alpaca", "llama2", "mistral"])
@pytest.mark.parametrize("messages", [[HELLO, BYE], [HI], [HELLO, HI, HI], [HELLO, SYSTEM]])
def test_turns_must_alternate(name: str, messages: list[Message]) -> None:
    with pytest.raises(InvalidTemplate, match=r"refuses this conversation: .* take turns"):
        render(builtin(name), messages)


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_a_builtin_is_recognised_by_its_own_text(name: str) -> None:
    if name != "plain":
        assert recognise(builtin(name).source) == name


def test_unknown_builtin() -> None:
    with pytest.raises(InvalidTemplate, match="no built-in chat template 'nope'"):
        builtin("nope")


# Templates in the ways models write them.


def test_the_real_models_own(smollm2: Path) -> None:
    template = choose(gguf_file.read_info(smollm2).chat_template, "", "llama2")
    assert template.origin == "model file"
    assert render(template, [HELLO]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""


def test_blocks_leave_no_lines() -> None:
    assert render(ZEPHYR, [SYSTEM, HELLO]) == (
        "<|system|>\nBe brief.</s>\n<|user|>\nHello</s>\n<|assistant|>\n"
    )


TURNS = """\
{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}\
{% endif %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"""


def test_a_refused_system_message_goes_before_the_first_users() -> None:
    text = render(TURNS, CHAT)
    assert text == "<s>[INST] Be brief.\n\nHello [/INST]Hi!</s>[INST] Bye [/INST]"


def test_a_dropped_system_message_goes_before_the_first_users() -> None:
    source = "{% for m in messages if m.role == 'user' %}<{{ m.content }}>{% endfor %}"
    assert render(source, CHAT) == "<Be brief.\n\nHello><Bye>"


def test_a_refused_system_message_alone_becomes_the_users() -> None:
    assert render(TURNS, [SYSTEM]) == "<s>[INST] Be brief. [/INST]"


def test_a_refused_conversation_says_why() -> None:
    with pytest.raises(InvalidTemplate, match="roles must alternate") as caught:
        render(TURNS, [SYSTEM, HELLO, BYE])
    assert "chatml" in caught.value.hint


QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and not message.tool_calls %}
        {%- generation %}
        {{- message.content.split('</think>')[-1].lstrip('\n') }}
        {%- endgeneration %}
    {%- elif message.role == "system" %}
        {%- continue %}
    {%- else %}
        {{- message.content | trim }}
    {%- endif %}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}
    {{- '<think>\n\n</think>\n\n' }}
{%- endif %}"""


def test_tools_thinking_and_loop_controls() -> None:
    messages = [HELLO, Message("assistant", "<think>é?</think>\nHi!")]
    text = render(QWEN, messages, tools=[{"é": "<b>&'"}], extra={"enable_thinking": False})
    assert text == (
        '<|im_start|>system\n# Tools\n{"é": "<b>&\'"}<|im_end|>\nHelloHi!<think>\n\n</think>\n\n'
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ [1, {'a': none}] | tojson(indent=1) }}", '[\n 1,\n {\n  "a": null\n }\n]'),
        ("{{ '{:>3}|{}'.format(7, 'x') }}", "  7|x"),
        ("{{ messages | map(attribute='role') | join(', ') }}", "user"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 2 %}{{ ns.n % 2 ~ ns.n }}", "02"),
        ("{{ '-' * 3 }}{{ 'a b'.replace(' ', '') | upper }}{{ messages[0:] | length }}", "---AB1"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m('é') }}{{ missing }}", "[é]"),
        ("{{ 'x\ny' | indent(2) }}{{ '3' | int + 1 }}{{ 2.5 | round(0) }}", "x\n  y42.0"),
        ("{{ dict(a=1) | items | list }}{{ {'b': 1}.get('c', 'd') }}", "[('a', 1)]d"),
        ("{{ ', '.join(['a', 'b']) }}{{ 'xax' | replace('x', '') | string | safe }}", "a, ba"),
        ("{% for i in range(3) %}{{ i }}{% break %}{% endfor %}", "0"),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)
def test_what_templates_use(source: str, text: str) -> None:
    assert render(source, [HELLO]) == text


# Mistakes and malice.


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("one\ntwo\n{% if %}", "line 3: Expected an expression"),
        ("\n{{ 'x' | nope }}", "line 2: No filter named 'nope'"),
        ("{{ " + "(" * 5000, "recursion"),
        ("{{ " + "9" * 5000 + " }}", "digits"),
        ("{% for x in [1] %}" * 30 + "{% endfor %}" * 30, "nested"),
        ("x" * 10**6, "too long"),
    ],
)
def test_a_template_that_does_not_parse(source: str, reason: str) -> None:
    with pytest.raises(InvalidTemplate, match=f"model file.* does not parse: .*{reason}"):
        choose(source, "", "")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("\n\n{{ missing.attribute }}", "line 3: 'missing' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% include 'other' %}", "no loader"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ ''['__class__']['__mro__'] }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ (5).to_bytes(10) }}", "unsafe"),
        ("{{ namespace }}", "cannot be written"),
        ("{{ lipsum() }}", "undefined"),
        ("{{ range(10 ** 9) }}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_a_template_that_fails(source: str, reason: str) -> None:
    with pytest.raises(InvalidTemplate, match=reason):
        render(source, [HELLO])


LOOP, END = "{% for i in range(100000) %}", "{% endfor %}"
GROWING = "{% set ns = namespace(x=['ab'], t='ab', n=9) %}" + LOOP


@pytest.mark.parametrize(
    "source",
    [
        LOOP * 4 + END * 4,
        LOOP + "{{ range(100000) | sum }}" + END,
        LOOP + "{{ 'x' * 1000 }}" + END,
        "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else '' }}{% endmacro %}{{ f(90) }}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ 10 ** 10 ** 9 }}",
        GROWING + "{% set ns.n = ns.n * ns.n %}" + END,
        GROWING + "{% set ns.t = ns.t ~ ns.t %}" + END,
        GROWING + "{% set ns.t = ns.t + ns.t %}" + END,
        GROWING + "{% set ns.t = ns.t | replace('a', ns.t) %}" + END,
        GROWING + "{% set ns.t = ns.t.replace('a', ns.t) %}" + END,
        GROWING + "{% set ns.t = '{0}{0}'.format(ns.t) %}" + END,
        GROWING + "{% set ns.t = [ns.t, ns.t] | join %}" + END,
        GROWING + "{% set ns.x = ns.x + ns.x %}" + END,
        GROWING + "{% set ns.x = [ns.x, ns.x] %}" + END,
        GROWING + "{% set ns.x = dict(a=ns.x, b=ns.x) %}" + END,
        "{% set t = 'x' * 10 ** 7 %}" + GROWING + "{% set ns.x = ns.x + [t[i:]] %}" + END,
        "{% set t = 'x' * 10 ** 7 %}" + GROWING + "{% set ns.x = ns.x + [t.upper()] %}" + END,
        "{% set x = 'x' * 10 ** 6 %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 30,
        "{{ range(100000) | join('x' * 1000) }}",
        "{{ ('x' * 10 ** 5).join('y' * 10 ** 5) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999999) }}",
        "{{ 'x' | indent(999999999, true) }}",
        "{{ [1] | tojson(indent=999999999) }}",
        "{{ 1.5 | round(-999999999) }}",
        "{{ ('x' * 10 ** 7).rfind('y' + 'x' * 10 ** 6) }}",
        "{{ ('x' * 10 ** 7) | trim('y' * 10 ** 6 + 'x') }}",
    ],
)
def test_a_template_without_end_or_bound_is_stopped(source: str) -> None:
    with pytest.raises(InvalidTemplate, match="was stopped"):
        render(source, [HELLO])


def test_the_time_limit_holds_in_any_thread_and_leaves_no_trace() -> None:
    errors: list[InvalidTemplate] = []
    left_behind: list[object] = []

    def run() -> None:
        try:
            render(LOOP * 3 + END * 3, [HELLO])
        except InvalidTemplate as error:
            errors.append(error)
        left_behind.append(sys.gettrace())

    before = sys.gettrace()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "did not end within" in errors[0].message
    assert left_behind == [None]
    assert sys.gettrace() is before


def test_a_debuggers_trace_function_is_put_back() -> None:
    def trace(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        render("{{ bos_token }}", [HELLO])
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


# Which one is used.

GO_CHATML = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ .Prompt }}"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (GO_CHATML, "chatml"),
        ("<|start_header_id|>user<|end_header_id|>\n\n{{ .Prompt }}<|eot_id|>", "llama3"),
        ("[INST] <<SYS>>{{ .System }}<</SYS>>\n\n{{ .Prompt }} [/INST]", "llama2"),
        ("[INST] {{ .System }} {{ .Prompt }} [/INST]", "mistral"),
        ("{{ .System }}\n\n### Instruction:\n{{ .Prompt }}\n\n### Response:\n", "alpaca"),
        ("{{ .Prompt }}", "plain"),
        ("<|user|>{{ .Prompt }}", None),
        ("", None),
    ],
)
def test_recognise(text: str, name: str | None) -> None:
    assert recognise(text) == name


@pytest.mark.parametrize(
    ("own", "override", "fallback", "origin"),
    [
        ("{{ own }}", "{{ override }}", "llama2", "override"),
        ("{{ own }}", "", "llama2", "model file"),
        ("", "", "llama2", "built-in llama2"),
        ("", "", "", "built-in plain"),
        ("{{ own }}", GO_CHATML, "llama2", "model file"),
        ("", GO_CHATML, "llama2", "built-in chatml"),
        ("{{ own }}", "alpaca", "llama2", "built-in alpaca"),
        ("{{ own }}", "{{ .Unknown }}", "llama2", "model file"),
        ("{{- .Unknown }}", "", "llama2", "built-in llama2"),
        ("chatml", "", "", "built-in chatml"),
    ],
)
def test_choose(own: str, override: str, fallback: str, origin: str) -> None:
    assert choose(own, override, fallback).origin == origin
