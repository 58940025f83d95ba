"""How a request becomes the tokens that a model reads, for one vocabulary and chat template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from localllama.engine import prompt, templates
from localllama.engine.api import Generate, LoadOptions
from localllama.engine.cache import common_prefix
from localllama.errors import ContextFull, InvalidParameter
from localllama.native.llama import Vocab

_TURN_BORDER = re.compile(r"<\|.+\|>|<(start|end)_of_turn>|\[/?[A-Z_]+\]")
_KEPT_TEMPLATES = 8  # of requests that bring their own


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of a prompt; ``left_out`` counts those for which there was no room."""

    tokens: list[int]
    left_out: int = 0


class Prompter:
    """Knows a model's vocabulary and its template, whose ``origin`` says where it is from.

    Raises InvalidTemplate.
    """

    def __init__(self, vocab: Vocab, own_template: str, options: LoadOptions) -> None:
        self._vocab = vocab
        self._context_length = options.context_length

        def form(override: str) -> tuple[templates.Template, prompt.Vocabulary]:
            template = templates.choose(
                own_template, override or options.template, options.fallback_template
            )
            return template, _vocabulary(vocab, template)

        self._form = lru_cache(_KEPT_TEMPLATES)(form)
        self.origin = form("")[0].origin

    def prompt(self, request: Generate, known: Iterable[Sequence[int]] = ()) -> Prompt:
        """Return the tokens of a request, spelt as in ``known`` sequences where they say the same.

        Raises InvalidParameter, InvalidTemplate, and ContextFull.
        """
        tokens = self._all_tokens(request, known)
        if not tokens:
            raise InvalidParameter("there is nothing to reply to: the prompt is empty")
        available = self._context_length
        excess = len(tokens) + request.reserve_tokens - available
        if excess <= 0:
            return Prompt(tokens)
        kept = max(0, min(self._kept(request, tokens), len(tokens) - excess - 1))
        if request.truncate and len(tokens) > excess:
            return Prompt(tokens[:kept] + tokens[kept + excess :], excess)
        reserve = request.reserve_tokens
        room = f" and {reserve} for the reply" if reserve else ""
        raise ContextFull(
            f"the prompt needs {len(tokens)} tokens{room}, the context holds {available}",
            "shorten it, or load the model with a longer context (--ctx)",
            needed_tokens=len(tokens) + reserve,
            available_tokens=available,
        )

    def kept_tokens(self, request: Generate, tokens: Sequence[int]) -> int:
        """How many ``tokens`` of a request stay when the context shifts."""
        return max(self._kept(request, tokens), self._tokens_of_messages(request, tokens))

    def _kept(self, request: Generate, tokens: Sequence[int]) -> int:
        if request.keep_tokens < 0:
            return len(tokens)
        return request.keep_tokens + (tokens[0] == self._vocab.bos)

    def _tokens_of_messages(self, request: Generate, tokens: Sequence[int]) -> int:
        count = request.keep_messages
        if not count or count >= len(request.messages):
            return len(tokens) if count else 0
        # What stays the same when the next message begins with another letter.
        after = request.messages[count]
        letter = "b" if after.content.lstrip().startswith("a") else "a"
        changed = msgspec.structs.replace(after, content=letter)
        messages = (*request.messages[:count], changed)
        other = msgspec.structs.replace(request, messages=messages, continue_last=False)
        return common_prefix(tokens, self._all_tokens(other))

    def tokens(self, given: str | Generate) -> list[int]:
        """Return the tokens of a text, without BOS, or those that a request begins with.

        However long it is; else raises what prompt() raises.
        """
        return self._vocab.tokenize(given) if isinstance(given, str) else self._all_tokens(given)

    def text(self, tokens: Sequence[int]) -> bytes:
        """Return the text of tokens; raises InvalidParameter for one that there is not."""
        return b"".join(map(self._vocab.piece, self._vocab.checked(tokens)))

    def _all_tokens(self, request: Generate, known: Iterable[Sequence[int]] = ()) -> list[int]:
        before = self._vocab.checked(request.tokens)
        if request.prompt is not None:
            new = self._prompt_tokens(request, request.prompt)
        elif request.suffix is not None:
            raise InvalidParameter("a suffix needs a prompt, be it empty, that comes before it")
        else:
            new = self._conversation_tokens(request, known) if request.messages else []
        if before and self._vocab.add_bos and new[:1] == [self._vocab.bos]:
            new = new[1:]
        return before + new

    def _prompt_tokens(self, request: Generate, text: str) -> list[int]:
        _, vocabulary = self._form(request.template)
        if request.suffix is not None:
            tokens = prompt.fill_in(text, request.suffix, vocabulary)
        else:
            tokens = self._vocab.tokenize(text, request.parse_special)
        starts = self._vocab.add_bos and tokens[:1] != [self._vocab.bos]
        return [self._vocab.bos, *tokens] if starts else tokens

    def _conversation_tokens(self, request: Generate, known: Iterable[Sequence[int]]) -> list[int]:
        template, vocabulary = self._form(request.template)
        tokens = prompt.build(
            template,
            request.messages,
            vocabulary,
            continue_last=request.continue_last,
            tools=request.tools or None,
            extra={} if request.think is None else {"enable_thinking": request.think},
        )
        nearest = max(known, key=lambda held: common_prefix(held, tokens), default=())
        controls = frozenset(vocabulary.controls.values())
        return prompt.reuse(nearest, len(nearest), tokens, self._vocab.piece, controls.__contains__)


def _vocabulary(vocab: Vocab, template: templates.Template) -> prompt.Vocabulary:
    # Some files mark the tokens around messages as user-defined, which are found in any text.
    # Not so <think> or <tool_call>: they stand inside replies, and templates look for them.
    structural = {
        text: token
        for text, token in vocab.user_defined.items()
        if _TURN_BORDER.fullmatch(text) and text in template.source
    }
    return prompt.Vocabulary(
        tokenize=vocab.tokenize,
        piece=vocab.piece,
        controls=vocab.control | structural,
        bos_token=vocab.text(vocab.bos),
        eos_token=vocab.text(vocab.eos),
        bos_id=vocab.bos,
        add_bos=vocab.add_bos,
        fill_tokens=vocab.fill_tokens,
    )
