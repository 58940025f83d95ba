"""Writes files as torch.save does, without torch: Hugging Face's ``.bin`` and Meta's ``.pth``."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.support.checkpoints import Shape, Weights, stored, write_json

_STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}
# The matrices whose columns Meta shares out; of all others, it shares out the rows.
_BY_COLUMNS = ("tok_embeddings", "attention.wo", "feed_forward.w2")
_META = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


@dataclass(frozen=True, slots=True)
class Name:
    """What is pickled as a name in a module: ``torch FloatStorage``."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """What is pickled as a call of the function of that name."""

    name: str
    arguments: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """What is pickled as a reference to something outside the pickle."""

    content: tuple[object, ...]


def pickled(value: object) -> bytes:
    """A pickle of protocol 2, written without importing what it names."""
    return b"\x80\x02" + _code(value) + b"."


def _code(value: object) -> bytes:
    match value:
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + value.to_bytes(4, "little", signed=True)
        case str():
            return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()
        case tuple():
            return b"(" + b"".join(map(_code, value)) + b"t"
        case dict():
            items = b"".join(_code(key) + _code(item) for key, item in value.items())
            return _code(Call("collections OrderedDict")) + b"(" + items + b"u"
        case Name():
            return b"c" + value.name.replace(" ", "\n").encode() + b"\n"
        case Call():
            return _code(Name(value.name)) + _code(value.arguments) + b"R"
        case Reference():
            return _code(value.content) + b"Q"
    raise TypeError(value)


def write_torch(path: Path, weights: Weights, kind: str = "BF16") -> None:
    """Write one file of tensors, each in a storage of its own."""
    state: dict[str, object] = {}
    storages: list[bytes] = []
    for name, values in weights.items():
        storages.append(stored(values, kind))
        key, strides = str(len(storages) - 1), tuple(n // values.itemsize for n in values.strides)
        storage = Reference(("storage", Name(f"torch {_STORAGES[kind]}"), key, "cpu", values.size))
        arguments = (storage, 0, values.shape, strides, False, {})
        state[name] = Call("torch._utils _rebuild_tensor_v2", arguments)
    write_archive(path, pickled(state), storages)


def write_archive(path: Path, pickle: bytes, storages: Sequence[bytes] = ()) -> None:
    """Write the archive of a pickle and its storages."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        for key, data in enumerate(storages):
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")


def write_meta(folder: Path, shape: Shape, *, shards: int, llama3: bool = False) -> Path:
    """Write the checkpoint of ``shape`` as Meta does, one file a GPU, and return ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    params = {"dim": shape.width, "n_layers": shape.layers, "n_heads": shape.heads}
    params |= {"n_kv_heads": shape.kv_heads, "vocab_size": -1, "multiple_of": 32}
    write_json(folder / "params.json", {**params, "norm_eps": 1e-5})
    parts: list[Weights] = [{} for _ in range(shards)]
    for own, whole in meta_weights(shape).items():
        by_columns = any(part in own for part in _BY_COLUMNS)
        if llama3 and "tok_embeddings" in own:
            by_columns = False
        slices = [whole] * shards
        if whole.ndim == 2:
            slices = np.split(whole, shards, axis=int(by_columns))
        for part, piece in zip(parts, slices, strict=True):
            part[own] = np.ascontiguousarray(piece)
    for number, part in enumerate(parts):
        part["rope.freqs"] = np.ones(shape.head // 2, np.float32)
        write_torch(folder / f"consolidated.{number:02}.pth", part)
    return folder


def meta_weights(shape: Shape) -> Weights:
    """The weights of ``shape`` as Meta names and rotates them."""
    return {
        _meta_name(name): _rotated(values, shape, name) for name, values in shape.weights().items()
    }


def _meta_name(name: str) -> str:
    for part, own in _META.items():
        name = name.replace(part, own)
    return name


def _rotated(values: NDArray[np.float32], shape: Shape, name: str) -> NDArray[np.float32]:
    """Q and K as RoPE turns them in Meta's code: pairs side by side."""
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2])
    if not heads:
        return values
    return values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
