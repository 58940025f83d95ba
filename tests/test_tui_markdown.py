"""Markdown as lines: what grows looks like what was there at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from localllama.tui.markdown import Lines

TEXT = Path(__file__).parents[1].joinpath("docs", "architecture.md").read_text()
MIXED = """\
# Title
Some *text* with `code`.

1. one
   - nested
2. two

```python
def f():
\treturn 1

# not a title
```
> quoted

| a | b |
|---|---|
| 1 | 2 |

---
    indented code
last"""


def lines(text: str, width: int = 60) -> list[str]:
    made = Lines()
    made.show(text, width, dark=True)
    return [strip.text.rstrip() for strip in made.strips]


@pytest.mark.parametrize(("text", "step"), [(MIXED, 1), (TEXT[:3000], 23)])
def test_a_text_that_grows_ends_as_if_it_came_at_once(text: str, step: int) -> None:
    growing = Lines()
    for end in range(0, len(text) + step, step):
        growing.show(text[:end], 60, dark=True)
    assert [strip.text.rstrip() for strip in growing.strips] == lines(text)


def test_what_is_said_to_be_unchanged_is_unchanged() -> None:
    growing, before = Lines(), list[str]()
    for end in range(0, len(MIXED), 3):
        same = growing.show(MIXED[:end], 60, dark=True)
        now = [strip.text for strip in growing.strips]
        assert now[:same] == before[:same]
        before = now


def test_another_text_or_width_begins_anew() -> None:
    made = Lines()
    made.show(MIXED, 60, dark=True)
    assert made.show("other", 60, dark=True) == 0
    assert [strip.text.rstrip() for strip in made.strips] == ["other"]
    made.show(MIXED, 30, dark=False)
    assert [strip.text.rstrip() for strip in made.strips] == lines(MIXED, 30)


def test_blocks_are_shown_for_what_they_are() -> None:
    shown = "\n".join(lines(MIXED))
    for expected in ("Title\n\nSome text", " 1 one", "▏ python  copy\n▏ def f():", "▌ quoted"):
        assert expected in shown
    assert "# not a title" in shown
    made = Lines()
    made.show(MIXED, 60, dark=True)
    assert [code.text.split("\n")[0] for code in made.codes] == ["def f():", "indented code"]
    assert made.codes[0].language == "python"


def test_no_line_is_wider_than_asked() -> None:
    made = Lines()
    made.show(MIXED + "\n\n```\n" + "x" * 200 + "\n```\n", 40, dark=True)
    assert max(strip.cell_length for strip in made.strips) <= 40
