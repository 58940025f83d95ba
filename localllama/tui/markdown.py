"""Markdown as lines for the terminal; of a text that grows, only the last block is made anew.

Textual's own Markdown widget mounts a widget a block: a reply then costs a core that the model
decodes with. Here 30 redraws a second of a long reply cost a twentieth of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Heading, Markdown, MarkdownElement
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme
from textual.strip import Strip

_PARSER = MarkdownIt().enable(["table", "strikethrough"])
_BAR = "▏ "  # before each line of code, so that it is told apart without colours
_TAB = "    "


@dataclass(frozen=True, slots=True)
class Code:
    """A code block and the line its heading is on."""

    language: str
    text: str
    line: int


class Lines:
    """The lines of one Markdown text; ``codes`` are its code blocks."""

    def __init__(self) -> None:
        self.strips: list[Strip] = []
        self.codes: list[Code] = []
        self._text = ""
        self._markdown = _Markdown("", hyperlinks=False)  # one for all: it makes a parser, 1 ms
        self._made_for: tuple[int, bool] = (0, True)
        # What no longer changes while the text grows: characters, lines and code blocks of it.
        self._settled = (0, 0, 0)

    def show(self, text: str, width: int, *, dark: bool) -> int:
        """Make the lines of ``text`` and return how many of the first ones stayed as they were."""
        settled_chars, settled_lines, settled_codes = self._settled
        grows = text.startswith(self._text[:settled_chars])
        if self._made_for != (width, dark) or not grows:
            self._made_for = (width, dark)
            settled_chars = settled_lines = settled_codes = 0
        del self.strips[settled_lines:], self.codes[settled_codes:]
        rest = text[settled_chars:]
        starts = _line_starts(rest)
        for block in _blocks(rest):
            self._settled = (
                settled_chars + starts[block.first],
                len(self.strips),
                len(self.codes),
            )
            if self.strips:
                self.strips.append(Strip.blank(0))
            self._add(block, width, dark)
        self._text = text
        return settled_lines

    def _add(self, block: _Block, width: int, dark: bool) -> None:
        if block.code is None:
            self._markdown.parsed = block.tokens
            self.strips += _rendered(self._markdown, width, dark)
            return
        language, text = block.code
        self.codes.append(Code(language, text, len(self.strips)))
        self.strips += _code(language, text, len(self.codes) - 1, width, dark)


@dataclass(frozen=True, slots=True)
class _Block:
    """A block at the top level: its first line, its tokens, and what is in it if it is code."""

    first: int
    tokens: list[Token]
    code: tuple[str, str] | None


def _blocks(text: str) -> Iterator[_Block]:
    block: list[Token] = []
    for token in _PARSER.parse(text):
        block.append(token)
        if token.level == 0 and token.nesting <= 0:  # one that stands alone, or closes
            yield _Block((block[0].map or [0])[0], block, _code_of(block[0]))
            block = []


def _code_of(token: Token) -> tuple[str, str] | None:
    if token.type not in ("fence", "code_block"):
        return None
    words = token.info.split()
    return (words[0] if words else "", token.content.rstrip("\n"))


def _line_starts(text: str) -> list[int]:
    """Where each line of ``text`` begins, and where the last one ends."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    starts[-1] -= 1
    return starts


class _PlainHeading(Heading):
    """A heading at the left, without a box around it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Markdown(Markdown):
    """Rich's Markdown with headings that fit into a conversation."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _PlainHeading,
    }


def plain(text: str, width: int, *, dark: bool, style: str = "") -> list[Strip]:
    """Return the lines of a text that is no Markdown, broken between words."""
    return _rendered(Text(text.expandtabs(4), style=style), width, dark, trim=False)


def _code(language: str, text: str, number: int, width: int, dark: bool) -> list[Strip]:
    copy = Style.from_meta({"@click": f"copy_code({number})"}) + Style(underline=True)
    head = Strip([Segment(f"{_BAR}{language or 'text'}  ", Style(dim=True)), Segment("copy", copy)])
    syntax = Syntax(
        text.replace("\t", _TAB),
        language or "text",
        theme="ansi_dark" if dark else "ansi_light",
        background_color="default",
        word_wrap=True,
    )
    bar = Segment(_BAR, Style(dim=True))
    lines = _rendered(syntax, max(1, width - len(_BAR)), dark, trim=False)
    return [head, *(Strip([bar, *line]) for line in lines)]


def _rendered(
    what: Markdown | Syntax | Text, width: int, dark: bool, *, trim: bool = True
) -> list[Strip]:
    console = _console(dark)
    options = console.options.update(width=max(1, width))
    lines = [Strip(line) for line in console.render_lines(what, options, pad=False)]
    if trim:
        while lines and not lines[-1].text.strip():
            lines.pop()
        while lines and not lines[0].text.strip():
            del lines[0]
    return lines


@lru_cache(maxsize=2)
def _console(dark: bool) -> Console:
    code = "#e0af68" if dark else "#8a4b08"
    theme = Theme(
        {
            "markdown.code": f"bold {code}",
            "markdown.h1": "bold underline",
            "markdown.h2": "bold underline",
            "markdown.h3": "bold",
            "markdown.h4": "bold italic",
            "markdown.block_quote": "italic",
            "markdown.link": "underline",
            "markdown.link_url": "underline dim",
            "markdown.item.bullet": "bold",
            "markdown.item.number": "bold",
            "markdown.table.header": "bold",
            "markdown.table.border": "dim",
        }
    )
    return Console(
        width=80,
        height=25,  # or it asks the terminal, each time
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
        theme=theme,
        highlight=False,
    )
