"""What a GGUF file says about its model: a fast, bounds-checked header reader.

Reads a file, the parts of a split file, or anything that can answer "these bytes from there"
(a URL by ranged requests). Reads no weights, and needs neither numpy nor llama.cpp.
"""

from __future__ import annotations

import math
import re
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from localllama.errors import BadFile, InvalidGGUF, ModelNotFound, UnsupportedFile
from localllama.gguf_header import Header, Reader, TensorInfo, Value, invalid, read_header
from localllama.gguf_tables import ARCHITECTURES, FILE_TYPES

__all__ = ["ModelInfo", "Reader", "TensorInfo", "read_info", "read_info_from", "read_split_info"]

_MOST_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS
_GUESSED_FILE_TYPE = 1024  # llama.cpp's flag on a general.file_type that nobody declared
_SIZE_LABEL = re.compile(r"(\d{1,4}x)?\d{1,4}(\.\d{1,3})?[KMBT]")
_BLOCK = re.compile(r"blk\.(\d{1,4})\.")
# general.sampling.* (llama.cpp's llama-arch.cpp) -> our names; the rest of them we do not have.
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_last_n": "repeat_last_n",
    "penalty_repeat": "repeat_penalty",
}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model as its GGUF header describes it.

    Lengths are in tokens (context), elements (embedding, key, value, feed-forward) or bytes where
    the name says so; 0 or "" stands for what the header does not say. ``head_count``,
    ``head_count_kv`` and ``feed_forward_length`` are a tuple where they differ from layer to
    layer. ``licence`` is the SPDX id or name in general.license. ``sampling`` has our parameter
    names. ``metadata`` has every key of the (first) file, with long values summarised.
    ``split_count`` is the number of parts of the whole model; ``data_offset`` and ``alignment``
    are those of the first part.
    """

    architecture: str
    name: str
    parameters: int
    parameters_label: str
    quantization: str
    context_length: int
    embedding_length: int
    block_count: int
    head_count: int | tuple[int, ...]
    head_count_kv: int | tuple[int, ...]
    key_length: int
    value_length: int
    feed_forward_length: int | tuple[int, ...]
    vocab_size: int
    chat_template: str
    tokenizer_model: str
    bos_id: int | None
    eos_id: int | None
    add_bos: bool | None
    licence: str
    licence_name: str
    licence_link: str
    sampling: dict[str, int | float]
    metadata: dict[str, object]
    tensors: tuple[TensorInfo, ...]
    file_bytes: int
    data_offset: int
    alignment: int
    split_count: int


def read_info(path: str | Path) -> ModelInfo:
    """Return what the file says; of a split model's first part, what that part says.

    Raises ModelNotFound, InvalidGGUF, UnsupportedFile, or BadFile where it cannot be read.
    """
    return _info([_read_file(Path(path))])


def read_info_from(read: Reader, file_bytes: int, name: str = "the file") -> ModelInfo:
    """As read_info, through ``read(offset, length)``; ``name`` is for messages.

    It is asked for 1 MiB, then for blocks that double up to 8 MiB.
    """
    return _info([read_header(read, file_bytes, name)])


def read_split_info(paths: Sequence[str | Path]) -> ModelInfo:
    """Return what all parts of one model say together; ``paths`` in order.

    Raises as read_info does, and InvalidGGUF for a missing, misplaced or foreign part.
    """
    parts = [_read_file(Path(path)) for path in paths]
    for number, part in enumerate(parts):
        _check_part(part, number, len(parts))
    _check_together(parts)
    return _info(parts)


def _read_file(path: Path) -> Header:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise UnsupportedFile(f"{path} is {kind}", "give the path of a GGUF file", str(path))
        with path.open("rb", buffering=0) as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            return read_header(read, status.st_size, str(path))
    except FileNotFoundError:
        raise ModelNotFound(f"there is no file {path}", "check the path") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadFile(f"{path} cannot be read: {reason}", "check its access rights") from error


def _check_part(part: Header, number: int, count: int) -> None:
    fields = _Fields(part)
    own_count = fields.integer("split.count", 1, kind="u16")
    own_number = fields.integer("split.no", 0, kind="u16")
    if own_count != count:
        raise InvalidGGUF(
            f"{part.path} belongs to a model of {own_count} parts, and {count} were given",
            "give every part of one model, in order",
            part.path,
        )
    if own_number != number:
        raise InvalidGGUF(
            f"{part.path} is part {own_number + 1} of {count}, found in the place of part "
            f"{number + 1}",
            "give the parts under their own names, in order",
            part.path,
        )


def _check_together(parts: Sequence[Header]) -> None:
    present = sum(len(part.tensors) for part in parts)
    homes: dict[str, str] = {}
    for part in parts:
        claimed = _Fields(part).integer("split.tensors.count", present, kind="i32")
        if claimed != present:
            raise _foreign(part, f"the model has {claimed} tensors, and the parts hold {present}")
        for tensor in part.tensors:
            if tensor.name in homes:
                raise _foreign(part, f"{tensor.name!r} is in {homes[tensor.name]} as well")
            homes[tensor.name] = part.path


def _foreign(part: Header, reason: str) -> InvalidGGUF:
    return InvalidGGUF(
        f"{part.path} does not fit the other parts: {reason}",
        "the parts come from different models or versions: download all of them again",
        part.path,
    )


def _info(parts: Sequence[Header]) -> ModelInfo:
    first = parts[0]
    fields = _Fields(first)
    split_count = fields.integer("split.count", 1, kind="u16") or 1
    architecture = _architecture(fields, split_count)
    tensors = tuple(
        replace(tensor, part=number) if number else tensor
        for number, part in enumerate(parts)
        for tensor in part.tensors
    )
    is_whole = len(parts) == split_count
    if is_whole and not tensors:
        raise UnsupportedFile(
            f"{first.path} holds a vocabulary but no weights", "choose another file", first.path
        )
    layers = fields.required(f"{architecture}.block_count", most=_MOST_LAYERS)
    embedding_length = fields.required(f"{architecture}.embedding_length")
    head_count = fields.per_layer(f"{architecture}.attention.head_count", 0, layers)
    heads = max(head_count) if isinstance(head_count, tuple) else head_count
    head_length = embedding_length // heads if heads else 0
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    vocab_size = _vocab_size(fields, architecture)
    info = ModelInfo(
        architecture=architecture,
        name=fields.text("general.name"),
        parameters=parameters,
        parameters_label=_parameters_label(fields.text("general.size_label"), parameters),
        quantization=_quantization(fields, tensors),
        context_length=fields.required(f"{architecture}.context_length"),
        embedding_length=embedding_length,
        block_count=layers,
        head_count=head_count,
        head_count_kv=fields.per_layer(
            f"{architecture}.attention.head_count_kv", head_count, layers
        ),
        key_length=fields.integer(f"{architecture}.attention.key_length", head_length),
        value_length=fields.integer(f"{architecture}.attention.value_length", head_length),
        feed_forward_length=fields.per_layer(f"{architecture}.feed_forward_length", 0, layers),
        vocab_size=vocab_size,
        chat_template=fields.text("tokenizer.chat_template"),
        tokenizer_model=fields.text("tokenizer.ggml.model"),
        bos_id=fields.token_id("tokenizer.ggml.bos_token_id", vocab_size),
        eos_id=fields.token_id("tokenizer.ggml.eos_token_id", vocab_size),
        add_bos=fields.flag("tokenizer.ggml.add_bos_token"),
        licence=fields.text("general.license"),
        licence_name=fields.text("general.license.name"),
        licence_link=fields.text("general.license.link"),
        sampling=fields.sampling(),
        metadata={key: value.shown() for key, value in first.values.items()},
        tensors=tensors,
        file_bytes=sum(part.file_bytes for part in parts),
        data_offset=first.data_offset,
        alignment=first.alignment,
        split_count=split_count,
    )
    if architecture == "llama":
        _check_llama(info, fields, is_whole)
    return info


def _architecture(fields: _Fields, split_count: int) -> str:
    architecture = fields.text("general.architecture")
    if split_count > 1 and fields.integer("split.no", 0, kind="u16") > 0:
        raise UnsupportedFile(
            f"{fields.path} is not the first part of a model of {split_count} parts",
            "give the first part (-00001-of-…)",
            fields.path,
        )
    if not architecture:
        raise fields.invalid("general.architecture", "is missing")
    if fields.text("general.type") == "adapter":
        raise UnsupportedFile(
            f"{fields.path} is an adapter (LoRA), which adds to a model and cannot run alone",
            "give the GGUF file of a whole model",
            fields.path,
        )
    if architecture == "clip":
        raise UnsupportedFile(
            f"{fields.path} is the image or sound part (mmproj) of a model, not the model",
            "give the GGUF file of the language model",
            fields.path,
        )
    if architecture not in ARCHITECTURES:
        raise UnsupportedFile(
            f"{fields.path} has the architecture {architecture[:80]!r}, which this llama.cpp does "
            "not know",
            "update localllama, or choose another model",
            fields.path,
        )
    return architecture


def _vocab_size(fields: _Fields, architecture: str) -> int:
    tokens = fields.array_length("tokenizer.ggml.tokens", "string")
    for key, kinds in (("scores", ("f32", "i32")), ("token_type", ("i32",))):
        length = fields.array_length(f"tokenizer.ggml.{key}", *kinds)
        if 0 < length < tokens:
            raise fields.invalid(f"tokenizer.ggml.{key}", f"has {length} items for {tokens} tokens")
    return tokens or fields.integer(f"{architecture}.vocab_size", 0)


def _check_llama(info: ModelInfo, fields: _Fields, is_whole: bool) -> None:
    """What llama.cpp would find out only while it loads the weights."""
    heads, kv_heads = _first(info.head_count), _first(info.head_count_kv)
    shapes = {
        "token_embd.weight": (info.embedding_length, info.vocab_size),
        "blk.0.attn_q.weight": (info.embedding_length, heads * info.key_length),
        "blk.0.attn_k.weight": (info.embedding_length, kv_heads * info.key_length),
        "blk.0.attn_v.weight": (info.embedding_length, kv_heads * info.value_length),
    }
    for tensor in info.tensors:
        expected = shapes.get(tensor.name, tensor.shape)
        if tensor.shape != expected:
            raise fields.invalid(
                tensor.name, f"has the shape {tensor.shape}, and the keys say {expected}"
            )
    blocks = {int(match[1]) for tensor in info.tensors if (match := _BLOCK.match(tensor.name))}
    if is_whole and blocks != set(range(info.block_count)):
        raise fields.invalid(
            "llama.block_count", f"is {info.block_count}, but {len(blocks)} blocks have weights"
        )


def _first(per_layer: int | tuple[int, ...]) -> int:
    return per_layer[0] if isinstance(per_layer, tuple) else per_layer


def _quantization(fields: _Fields, tensors: Sequence[TensorInfo]) -> str:
    """llama.cpp's name of the mix, else the type that most bytes of matrices have."""
    declared = fields.integer("general.file_type", -1)
    if declared >= 0 and (declared & ~_GUESSED_FILE_TYPE) in FILE_TYPES:
        return FILE_TYPES[declared & ~_GUESSED_FILE_TYPE]
    bytes_by_type: Counter[str] = Counter()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            bytes_by_type[tensor.type] += tensor.size_bytes
    return bytes_by_type.most_common(1)[0][0] if bytes_by_type else ""


def _parameters_label(declared: str, parameters: int) -> str:
    """``135M``, ``6.7B``: the file's own label, else two or three digits of the number."""
    if _SIZE_LABEL.fullmatch(declared):
        return declared
    for unit, suffix in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        # From 999.5 of a unit on, the number reads better as 1 of the next.
        if parameters >= unit * 0.9995:
            count = parameters / unit
            return (
                f"{count:.1f}".removesuffix(".0") + suffix
                if count < 9.95
                else f"{count:.0f}{suffix}"
            )
    return str(parameters)


class _Fields:
    """A header's values by key, with the type that llama.cpp insists on."""

    def __init__(self, header: Header) -> None:
        self.path = header.path
        self._values = header.values

    def invalid(self, key: str, problem: str) -> InvalidGGUF:
        return invalid(self.path, f"{key} {problem}")

    def text(self, key: str) -> str:
        value = self._values.get(key)
        if value is None:
            return ""
        if value.kind != "string" or value.is_array:
            raise self.invalid(key, f"is {_kind(value)}, not a string")
        if value.data is None:
            raise self.invalid(key, f"is {value.length} bytes long")
        return str(value.data)

    def flag(self, key: str) -> bool | None:
        value = self._values.get(key)
        if value is None:
            return None
        if value.kind != "bool" or value.is_array:
            raise self.invalid(key, f"is {_kind(value)}, not a bool")
        return bool(value.data)

    def integer(self, key: str, default: int, *, kind: str = "u32") -> int:
        value = self._values.get(key)
        if value is None:
            return default
        if value.kind != kind or not isinstance(value.data, int):
            raise self.invalid(key, f"is {_kind(value)}, not a {kind}")
        return value.data

    def required(self, key: str, *, most: int = 2**31 - 1) -> int:
        if key not in self._values:
            raise self.invalid(key, "is missing")
        number = self.integer(key, 0)
        if not 1 <= number <= most:
            raise self.invalid(key, f"is {number}, where 1 to {most} are possible")
        return number

    def per_layer(
        self, key: str, default: int | tuple[int, ...], layers: int
    ) -> int | tuple[int, ...]:
        value = self._values.get(key)
        if value is None:
            return default
        if not value.is_array:
            return self.integer(key, 0)
        if value.kind not in ("u32", "i32") or not isinstance(value.data, tuple):
            raise self.invalid(key, f"is {_kind(value)}, not one number a layer")
        if value.length != layers or min(value.data) < 0:
            raise self.invalid(key, f"has {value.length} numbers for {layers} layers")
        return value.data

    def array_length(self, key: str, *kinds: str) -> int:
        value = self._values.get(key)
        if value is None:
            return 0
        if value.kind not in kinds or not value.is_array:
            raise self.invalid(key, f"is {_kind(value)}, not an array of {kinds[0]}")
        return value.length

    def token_id(self, key: str, vocab_size: int) -> int | None:
        """A token of the vocabulary; like llama.cpp, we take an id outside it for none."""
        number = self.integer(key, vocab_size)
        return number if number < vocab_size else None

    def sampling(self) -> dict[str, int | float]:
        found: dict[str, int | float] = {}
        for key, ours in _SAMPLING.items():
            value = self._values.get(f"general.sampling.{key}")
            if value is None:
                continue
            number = value.data
            if not isinstance(number, int | float) or not math.isfinite(number):
                raise self.invalid(f"general.sampling.{key}", "is not a finite number")
            found[ours] = number
        return found


def _kind(value: Value) -> str:
    return f"an array of {value.kind}" if value.is_array else f"a {value.kind}"
