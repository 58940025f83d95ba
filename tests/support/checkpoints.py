"""Makes small random Llamas as people publish them: weights, hyperparameters, vocabulary."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]

# Letters that other alphabets have too are meant here.
TEXT = (
    "Die Würde des Menschen ist unantastbar. All human beings are born free and equal. "
    "Все люди рождаются свободными. "  # noqa: RUF001
    "人人生而自由。 すべての人間は自由である。 "
    "Todos los seres humanos nacen libres. Tous les êtres humains naissent libres. "
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a small Llama with grouped queries."""

    layers: int = 2
    width: int = 64
    heads: int = 8
    kv_heads: int = 4
    hidden: int = 96
    vocabulary: int = 400

    @property
    def head(self) -> int:
        return self.width // self.heads

    def config(self, **more: object) -> dict[str, object]:
        """The content of config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **more,
        }

    def weights(self, seed: int = 0) -> Weights:
        """Random weights under Hugging Face's names, exact in BF16."""
        random = np.random.default_rng(seed)

        def matrix(*shape: int) -> NDArray[np.float32]:
            return rounded(random.normal(0, 0.1, shape).astype(np.float32))

        found = {
            "model.embed_tokens.weight": matrix(self.vocabulary, self.width),
            "model.norm.weight": matrix(self.width),
            "lm_head.weight": matrix(self.vocabulary, self.width),
        }
        for layer in range(self.layers):
            place = f"model.layers.{layer}"
            found |= {
                f"{place}.self_attn.q_proj.weight": matrix(self.width, self.width),
                f"{place}.self_attn.k_proj.weight": matrix(self.kv_heads * self.head, self.width),
                f"{place}.self_attn.v_proj.weight": matrix(self.kv_heads * self.head, self.width),
                f"{place}.self_attn.o_proj.weight": matrix(self.width, self.width),
                f"{place}.mlp.gate_proj.weight": matrix(self.hidden, self.width),
                f"{place}.mlp.up_proj.weight": matrix(self.hidden, self.width),
                f"{place}.mlp.down_proj.weight": matrix(self.width, self.hidden),
                f"{place}.input_layernorm.weight": matrix(self.width),
                f"{place}.post_attention_layernorm.weight": matrix(self.width),
            }
        return found


def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values with no more digits than BF16 has."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def stored(values: NDArray[np.float32], kind: str) -> bytes:
    """The bytes of ``values``, which are exact in ``kind``."""
    if kind == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[kind]).tobytes()


def write_checkpoint(
    folder: Path,
    shape: Shape,
    *,
    kind: str = "BF16",
    shards: int = 1,
    config: Mapping[str, object] | None = None,
    weights: Weights | None = None,
) -> Path:
    """Write a checkpoint in Hugging Face's layout, without a vocabulary, and return ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = shape.weights() if weights is None else weights
    write_json(folder / "config.json", shape.config() if config is None else config)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", weights, kind)
        return folder
    names = np.array_split(list(weights), shards)
    places: dict[str, str] = {}
    for number, part in enumerate(names, 1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / file, {str(name): weights[str(name)] for name in part}, kind)
        places |= dict.fromkeys(map(str, part), file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return folder


def write_safetensors(path: Path, weights: Weights, kind: str = "BF16") -> None:
    """Write one file of tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end, parts = 0, []
    for name, values in weights.items():
        parts.append(stored(values, kind))
        begin, end = end, end + len(parts[-1])
        header[name] = {"dtype": kind, "shape": values.shape, "data_offsets": [begin, end]}
    path.write_bytes(safetensors(header, b"".join(parts)))


def safetensors(header: object, data: bytes) -> bytes:
    """A file with this header."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), "utf-8")


def write_sentencepiece(folder: Path, size: int) -> None:
    """Train a vocabulary as Llama 2's was, and write tokenizer.model and its configuration."""
    from sentencepiece import SentencePieceTrainer

    random, words = Random(1), TEXT.split()
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(random.choices(words, k=12)) for _ in range(400)),
        model_writer=model,
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        character_coverage=0.99,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {
                str(index): {"content": text, "special": True, "normalized": False}
                for index, text in enumerate(("<unk>", "<s>", "</s>"))
            },
            "bos_token": "<s>",
            "eos_token": {"content": "</s>"},
            "chat_template": "{{ messages[0].content }}",
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
        },
    )
