"""A machine for the pickles of torch.save: it makes dictionaries of tensors and nothing else.

Python's own unpickler calls what a pickle names. This one knows a list of names, calls none of
them, and refuses a pickle that asks for any other. Opcodes: the standard library's pickletools.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

# torch's storages by the type of their elements.
_STORAGES = {
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
    "torch DoubleStorage": "F64",
    "torch LongStorage": "I64",
    "torch IntStorage": "I32",
    "torch ShortStorage": "I16",
    "torch CharStorage": "I8",
    "torch ByteStorage": "U8",
    "torch BoolStorage": "BOOL",
}
_DICTIONARY = "collections OrderedDict"
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_MOST_STEPS = 5_000_000  # 65,536 tensors take 2 million


class Refused(ValueError):
    """The pickle asks for more than tensors, or is damaged; the text completes a sentence."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name in a module, which nothing is imported for."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A file of the archive with ``count`` elements."""

    type: str
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A view of a storage; ``offset`` and ``strides`` count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()
_CONSTANTS = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}


def tensors(data: bytes) -> dict[str, PickledTensor]:
    """Return the tensors of a pickled state dictionary by name; raises Refused."""
    found = _Machine().run(data)
    if not isinstance(found, dict):
        raise Refused("holds no dictionary of tensors")
    for name, value in found.items():
        if not isinstance(value, PickledTensor):
            raise Refused(f"holds {name!r}, which is no tensor")
    return found


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self) -> None:
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self._simple: dict[str, Callable[[], object]] = {
            "MARK": lambda: _MARK,
            "NONE": lambda: None,
            "NEWTRUE": lambda: True,
            "NEWFALSE": lambda: False,
            "EMPTY_DICT": dict,
            "EMPTY_LIST": list,
            "EMPTY_TUPLE": tuple,
            "TUPLE": lambda: tuple(self._pop_marked()),
            "TUPLE1": lambda: self._pop(1),
            "TUPLE2": lambda: self._pop(2),
            "TUPLE3": lambda: self._pop(3),
            "BINPERSID": lambda: _storage(*self._pop(1)),
            "REDUCE": lambda: _called(*self._pop(2)),
            "STACK_GLOBAL": lambda: _allowed(" ".join(map(_text, self._pop(2)))),
            "BUILD": self._build,
            "APPEND": lambda: self._appended(self._pop(1)),
            "APPENDS": lambda: self._appended(self._pop_marked()),
            "SETITEM": lambda: self._set(self._pop(2)),
            "SETITEMS": lambda: self._set(self._pop_marked()),
        }

    def run(self, data: bytes) -> object:
        """Return what the pickle makes."""
        try:
            for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
                if step > _MOST_STEPS:
                    raise Refused("is longer than any list of tensors")
                if opcode.name == "STOP":
                    return self._pop(1)[0]
                self._do(opcode.name, argument)
        except Refused:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise Refused(f"is damaged: {error}") from error
        raise Refused("is cut")

    def _do(self, name: str, argument: object) -> None:
        if name in _CONSTANTS:
            self._stack.append(argument)
        elif name == "GLOBAL":
            self._stack.append(_allowed(str(argument)))
        elif name in _PUTS:
            self._memo[_index(argument)] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in _GETS:
            self._stack.append(self._memo[_index(argument)])
        elif name in self._simple:
            self._stack.append(self._simple[name]())
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"uses the pickle instruction {name}, which no tensor needs")

    def _top(self) -> object:
        return self._stack[-1]

    def _pop(self, count: int) -> tuple[object, ...]:
        if len(self._stack) < count:
            raise Refused("is damaged: it takes more than it made")
        taken = tuple(self._stack[-count:])
        del self._stack[-count:]
        return taken

    def _pop_marked(self) -> list[object]:
        taken: list[object] = []
        while (item := self._pop(1)[0]) is not _MARK:
            taken.append(item)
        return taken[::-1]

    def _build(self) -> object:
        """A state dictionary's own state: the version of each module, which no tensor needs."""
        target, _ = self._pop(2)
        if not isinstance(target, dict):
            raise Refused("sets the state of something that has none")
        return target

    def _appended(self, items: Iterable[object]) -> object:
        (target,) = self._pop(1)
        if not isinstance(target, list):
            raise Refused("is damaged: it appends to what is no list")
        target.extend(items)
        return target

    def _set(self, items: Sequence[object]) -> object:
        (target,) = self._pop(1)
        if not isinstance(target, dict) or len(items) % 2:
            raise Refused("is damaged: it sets items of what is no dictionary")
        target.update(zip(map(_text, items[::2]), items[1::2], strict=True))
        return target


def _allowed(name: str) -> Global:
    if name not in (*_STORAGES, _DICTIONARY, _TENSOR, _PARAMETER):
        raise Refused(f"asks for {name.replace(' ', '.')!r}, which no tensor needs")
    return Global(name)


def _storage(reference: object) -> Storage:
    match reference:
        case ("storage", Global(name), str(key), str(), int(count)) if name in _STORAGES:
            return Storage(_STORAGES[name], key, count)
    raise Refused("is damaged: it refers to something that is no storage")


def _called(function: object, arguments: object) -> object:
    """What torch's function would make of the arguments, one of those that are allowed."""
    match function, arguments:
        case Global(name), () if name == _DICTIONARY:
            return {}
        case Global(name), (PickledTensor() as tensor, *_) if name == _PARAMETER:
            return tensor
        case Global(name), (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_):
            if name == _TENSOR:
                return PickledTensor(storage, offset, _numbers(shape), _numbers(strides))
    raise Refused("is damaged: it rebuilds something that is no tensor")


def _numbers(values: tuple[object, ...]) -> tuple[int, ...]:
    return tuple(map(_index, values))


def _index(value: object) -> int:
    if not isinstance(value, int):
        raise Refused("is damaged: a number is missing")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Refused("is damaged: a name is missing")
    return value
