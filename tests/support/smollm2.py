"""SmolLM2 as its authors publish it: a BF16 checkpoint made of the quantized model of the tests."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from gguf import TokenType
from numpy.typing import NDArray

from localllama.convert import gguf_source
from localllama.convert.model import Field
from localllama.convert.naming import HUGGING_FACE
from tests.support import checkpoints
from tests.support.checkpoints import Shape, Weights, rounded, write_json, write_safetensors


def write_checkpoint(folder: Path, model: Path, layers: int = 30) -> Path:
    """Write the first ``layers`` of the model in Hugging Face's layout, and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata, tensors = gguf_source.contents(model)
    heads = {"attn_q": 9, "attn_k": 3}
    weights: Weights = {}
    for tensor in tensors:
        if tensor.name.startswith("blk.") and int(tensor.name.split(".")[1]) >= layers:
            continue
        values = tensor.read(0, prod(tensor.shape[:-1])).reshape(tensor.shape)
        count = next((heads[part] for part in tensor.name.split(".") if part in heads), 0)
        if count:
            values = halves(values, count)
        weights[HUGGING_FACE.in_file(tensor.name)] = rounded(np.ascontiguousarray(values))
    write_safetensors(folder / "model.safetensors", weights)
    write_json(folder / "config.json", _config(layers))
    write_tokenizer(folder, metadata)
    return folder


def write_tiny(folder: Path, model: Path) -> Path:
    """Write a random checkpoint of few weights with the model's tokenizer."""
    shape = Shape(layers=1, width=32, heads=2, kv_heads=1, hidden=32, vocabulary=49152)
    checkpoints.write_checkpoint(folder, shape)
    write_tokenizer(folder, gguf_source.contents(model)[0])
    return folder


def halves(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Q or K as Hugging Face has them: first all first halves of a head's pairs."""
    return values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def _config(layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": layers,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": "bfloat16",
    }


def write_tokenizer(folder: Path, metadata: dict[str, Field]) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers would save them."""
    tokens, types, merges = (
        cast(list[Any], metadata[f"tokenizer.ggml.{key}"].value)
        for key in ("tokens", "token_type", "merges")
    )
    special = [index for index, kind in enumerate(types) if kind == TokenType.CONTROL]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    bytes_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    bytes_level["use_regex"] = True
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": index, "content": tokens[index], "special": True, **flags}
                for index in special
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_level],
            },
            "post_processor": None,
            "decoder": bytes_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {text: index for index, text in enumerate(tokens)},
                "merges": list(merges),
            },
        },
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(index): {"content": tokens[index], "special": True, **flags}
                for index in special
            },
            "bos_token": "<|im_start|>",
            "chat_template": metadata["tokenizer.chat_template"].value,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": "<|endoftext|>",
        },
    )
