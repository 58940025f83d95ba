"""Runs a stranger's Jinja program, the chat template of a model file, within limits.

The limits hold in the rendering thread alone: a deadline kept by a trace function, a budget for
everything the program builds, and only those filters and methods that chat templates use. What
remains possible is one slow built-in call over data that the budget allows.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import chain
from string import Formatter
from types import BuiltinMethodType, CodeType, FrameType, MethodType
from typing import Any

from jinja2 import TemplateError, Undefined, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from markupsafe import Markup

TEMPLATE_FILE = "<template>"  # how Jinja calls the file of a template's code
# Whatever a foreign program may raise; Exception itself would also hide what it cannot.
TEMPLATE_ERRORS = (
    *(TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError),
    *(NameError, RuntimeError, SyntaxError, TypeError, ValueError),
)

_TEXT_CHARS = 16 * 2**20  # of one text, the rendered prompt included
_BUILT_CHARS = 128 * 2**20  # of all texts and list elements made in one rendering
_NESTED_ELEMENTS = 2**20
_SIZE = 100  # widths, indents, decimals
_NEEDLE_CHARS = 256  # CPython strips and searches from the right in O(text * needle)
_INT_BITS = 64
_STR_METHODS = {
    *("capitalize", "count", "endswith", "find", "format", "index", "isalnum", "isalpha"),
    *("isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join"),
    *("lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind"),
    *("rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip"),
    *("swapcase", "title", "upper"),
}
_METHODS: dict[type, set[str]] = {
    str: _STR_METHODS,
    Markup: _STR_METHODS,
    dict: {"get", "items", "keys", "values"},
    list: {"count", "index"},
    tuple: {"count", "index"},
}
_JINJA_OBJECTS = {LoopContext, Macro, Namespace, Undefined}
_RIGHT_TO_LEFT = {"lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"}
_PLAIN_FILTERS = (
    *("abs", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby"),
    *("items", "last", "length", "list", "map", "max", "min", "reject", "rejectattr"),
    *("reverse", "select", "selectattr", "sort", "sum", "unique"),
)
_TEXT_FILTERS = ("capitalize", "lower", "title", "trim", "upper", "wordcount")


class Stopped(BaseException):
    """A limit was reached. Not an Exception: Jinja's own handlers would swallow that."""


class Refusal(TemplateError):
    """The template called ``raise_exception``."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise Stopped in this thread when template code still runs after ``seconds``."""
    end = time.monotonic() + seconds
    previous = sys.gettrace()

    def check(frame: FrameType, _event: str, _argument: object) -> Any:
        if time.monotonic() > end:
            raise Stopped(f"it did not end within {seconds:g} s")
        return check if frame.f_code.co_filename == TEMPLATE_FILE else None

    sys.settrace(check)
    try:
        yield
    finally:
        sys.settrace(previous)


_Visit = Callable[[Any, Frame], None]


class _CountingGenerator(CodeGenerator):
    """Compiles expressions that build values so that the sandbox sees each value."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for item in node.nodes:
            self.write("environment.text(")
            self.visit(item, frame)
            self.write("), ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        method = "built" if isinstance(node.arg, nodes.Slice) else ""
        self._wrap(method, super().visit_Getitem, node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._wrap("nested", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._wrap("nested", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        method = "nested" if node.ctx == "load" else ""  # else the target of an assignment
        self._wrap(method, super().visit_Tuple, node, frame)

    def _wrap(self, method: str, visit: _Visit, node: nodes.Expr, frame: Frame) -> None:
        if method:
            self.write(f"environment.{method}(")
        visit(node, frame)
        if method:
            self.write(")")


class _GenerationTag(Extension):
    """``{% generation %}`` marks what a training run learns from; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one compilation or one rendering; it counts what that builds."""

    code_generator_class = _CountingGenerator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _GenerationTag],
            finalize=self.text,
            cache_size=0,
        )
        self._left_chars = _BUILT_CHARS
        self.globals = {name: self.globals[name] for name in ("dict", "namespace", "range")}
        self.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}
        self.filters = {name: self._counted(function) for name, function in self._filters()}

    def run(self, code: CodeType, variables: Mapping[str, object]) -> str:
        """Return what the compiled template renders; raises Stopped and TEMPLATE_ERRORS."""
        template = self.template_class.from_code(self, code, self.globals)
        parts, chars = [], 0
        for part in template.generate(variables):
            chars += len(part)
            if chars > _TEXT_CHARS:
                raise Stopped(f"it writes more than {_TEXT_CHARS:,} characters")
            parts.append(part)
        return "".join(parts)

    # What compiled templates call instead of Python's own operations.

    def text(self, value: object) -> str:
        """Return ``str(value)`` unless that would be endless."""
        if isinstance(value, str):
            return value
        _check_size(_printed_chars(value))
        return str(self.built(str(value)))

    def built(self, value: Any) -> Any:
        """Return ``value``, a new text or collection, after taking it off the budget."""
        if isinstance(value, str | list | tuple | dict):
            self._left_chars -= len(value)
            if self._left_chars < 0:
                raise Stopped(f"it builds more than {_BUILT_CHARS:,} characters on the way")
        return value

    def nested(self, value: Any) -> Any:
        """Return ``value``, a new collection, if comparing it with another can end."""
        for count, _ in enumerate(_flatten(value)):
            if count > _NESTED_ELEMENTS:
                raise Stopped(f"it builds a collection of more than {_NESTED_ELEMENTS:,} elements")
        return self.built(value)

    def concat(self, parts: Iterable[str]) -> str:
        """Return the joined parts: of ``~``, macros, calls and block assignments."""
        parts = list(parts)
        _check_size(sum(map(len, parts)))
        return str(self.built("".join(parts)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute an intercepted operator with operands that keep it cheap."""
        if operator == "+":
            if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
                _check_size(len(left) + len(right))
        elif operator == "*" and isinstance(left, str) and isinstance(right, int):
            _check_size(len(left) * right)
        elif not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise TypeError(f"{operator!r} is for numbers here")
        elif operator == "**" and abs(right) > _INT_BITS:
            raise Stopped("it computes with huge numbers")
        result = self.binop_table[operator](left, right)
        if isinstance(result, int) and result.bit_length() > _INT_BITS:
            raise Stopped("it computes with huge numbers")
        return self.built(result)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a macro, a global or a method of a text, whose result must be affordable."""
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = _checked_arguments(owner, __obj.__name__, args)
        return __self.nested(super().call(__context, __obj, *args, **kwargs))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow the methods that chat templates use, and Jinja's own objects as Jinja does."""
        kind = type(obj)  # isinstance would ask the object: a Namespace answers in Python
        if kind in _METHODS:
            return attr in _METHODS[kind]
        return kind in _JINJA_OBJECTS and not attr.startswith("_")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Let ``str.format`` print neither wide fields nor more than a text may hold."""
        if type(value) not in (BuiltinMethodType, MethodType):
            return None
        format_safely = super().wrap_str_format(value)
        if format_safely is None:
            return None
        pattern: str = value.__self__

        def checked(*args: Any, **kwargs: Any) -> str:
            fields = [spec for _, name, spec, _ in Formatter().parse(pattern) if name is not None]
            if any("{" in spec or _has_large_number(spec) for spec in fields if spec):
                raise Stopped("it formats wide fields")
            _check_size(len(pattern) + len(fields) * _printed_chars([*args, kwargs]))
            return format_safely(*args, **kwargs)

        return checked

    # Filters.

    def _filters(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        for name in _PLAIN_FILTERS:
            yield name, FILTERS[name]
        for name in _TEXT_FILTERS:
            yield name, self._of_text(FILTERS[name])
        yield "string", self.text
        yield "safe", self.text  # nothing is escaped here
        yield from (("tojson", _tojson), ("int", _int), ("round", _round))
        yield from (("indent", self._indent), ("join", self._join), ("replace", self._replace))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # keeps Jinja's pass_environment marks
        def counted(*args: Any, **kwargs: Any) -> Any:
            return self.built(function(*args, **kwargs))

        return counted

    def _of_text(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def applied(value: object, *args: Any) -> Any:
            if any(len(self.text(argument)) > _NEEDLE_CHARS for argument in args):
                raise Stopped("it searches for a long text")
            return function(self.text(value), *args)

        return applied

    def _indent(
        self, value: object, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        text = self.text(value)
        size = len(width) if isinstance(width, str) else width
        _check_size(len(text) + size * (text.count("\n") + 2))
        return str(FILTERS["indent"](text, width, first, blank))

    def _join(self, value: Any, separator: object = "", attribute: Any = None) -> str:
        items = value if attribute is None else map(make_attrgetter(self, attribute), value)
        texts, between = [self.text(item) for item in items], self.text(separator)
        _check_size(sum(map(len, texts)) + len(between) * len(texts))
        return between.join(texts)

    def _replace(self, value: object, old: object, new: object, count: int = -1) -> str:
        text, before, after = self.text(value), self.text(old), self.text(new)
        _checked_arguments(text, "replace", (before, after))
        return text.replace(before, after, count)


def _refuse(message: str) -> None:
    raise Refusal(str(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _SIZE:
        raise Stopped("it asks for a date of any length")
    return datetime.now().strftime(pattern)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    indent = indent if indent is None else _small(indent)
    _check_size(_printed_chars(value) * (1 + (indent or 0)))
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _int(value: Any, default: int = 0) -> int:
    return int(FILTERS["int"](value, default))


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    return float(FILTERS["round"](value, _small(precision), method))


def _small(number: int) -> int:
    if abs(number) > _SIZE:
        raise Stopped(f"it asks for a size of {number}")
    return number


def _checked_arguments(text: str, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments for a method of ``text``; raises Stopped when that costs too much."""
    if method == "join" and args:
        args = (list(args[0]),)
        _check_size(sum(len(part) + len(text) for part in args[0]))
    elif method == "replace" and len(args) >= 2:
        _check_size(len(text) + text.count(args[0]) * len(args[1]))
    elif method in _RIGHT_TO_LEFT and args and len(args[0] or "") > _NEEDLE_CHARS:
        raise Stopped("it searches for a long text")
    return args


def _check_size(chars: int) -> None:
    if chars > _TEXT_CHARS:
        raise Stopped(f"it builds a text of more than {_TEXT_CHARS:,} characters")


def _has_large_number(spec: str) -> bool:
    digits = "".join(char if char.isdigit() else " " for char in spec).split()
    return any(len(number) > 2 for number in digits)


def _flatten(value: object) -> Iterator[object]:
    """Yield ``value`` and everything in it, as often as printing it would show it."""
    stack: list[Iterator[object]] = [iter((value,))]
    while stack:
        for item in stack[-1]:
            yield item
            if isinstance(item, dict):
                stack.append(chain(item.keys(), item.values()))
                break
            if isinstance(item, list | tuple):
                stack.append(iter(item))
                break
        else:
            stack.pop()


def _printed_chars(value: object) -> int:
    """Return about how long ``str(value)`` is, up to the limit; raises TypeError if unknowable."""
    chars = 0
    for item in _flatten(value):
        if isinstance(item, str):
            chars += len(item) + 4
        elif isinstance(item, int | float | list | tuple | dict | None | Undefined):
            chars += 8
        else:
            raise TypeError(f"a {type(item).__name__} cannot be written")
        if chars > _TEXT_CHARS:
            break
    return chars
