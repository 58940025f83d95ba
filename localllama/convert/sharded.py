"""Repositories of one weight file or several, with an index that says which tensor is in which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from localllama.convert.source import Source, bad, read_json
from localllama.convert.weights import Stored

ReadFile = Callable[[Source, str], Iterable[Stored]]
IsPart = Callable[[str], bool]

_MOST_FILES = 1_024


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


def is_here(source: Source, index: str, is_part: IsPart) -> bool:
    """Whether the source has an index of this name, or files that are parts."""
    return index in source.sizes or any(map(is_part, source.sizes))


def read(source: Source, index: str, is_part: IsPart, read_file: ReadFile) -> list[Stored]:
    """Return every tensor, in the order of the files; raises what ``read_file`` does."""
    if index in source.sizes:
        return _indexed(source, index, read_file)
    files = sorted(filter(is_part, source.sizes))
    return [tensor for name in files for tensor in read_file(source, name)]


def _indexed(source: Source, index: str, read_file: ReadFile) -> list[Stored]:
    """Return the tensors of every file of the index, all that it promises and no others."""
    found: list[Stored] = []
    for file, promised in _files(source, index).items():
        tensors = list(read_file(source, file))
        names = {tensor.name for tensor in tensors}
        if missing := sorted(promised - names):
            raise bad(source, file, f"lacks {some(missing)}, which {index} promises")
        if extra := sorted(names - promised):
            raise bad(source, file, f"holds {some(extra)}, which {index} does not name there")
        found += tensors
    return found


def some(names: Sequence[str]) -> str:
    """The first of the tensors' names, and how many more there are."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the tensor {names[0]!r}{more}"


def _files(source: Source, index: str) -> dict[str, set[str]]:
    """Return the names of the tensors promised in each file, files sorted."""
    promised: dict[str, set[str]] = {}
    for tensor, file in read_json(source, index, _Index).weight_map.items():
        promised.setdefault(file, set()).add(tensor)
    if not 0 < len(promised) <= _MOST_FILES:
        raise bad(source, index, f"is not sound: it names {len(promised)} files")
    for file in promised:
        if file not in source.sizes:
            raise bad(source, index, f"names the file {file!r}, which is missing")
    return dict(sorted(promised.items()))
