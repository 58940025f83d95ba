"""Vocabularies for tests of prompts: one of a model file, and a tiny SentencePiece one."""

from __future__ import annotations

import ctypes
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
from llama_cpp import llama_cpp as c

from localllama.engine.prompt import Vocabulary
from localllama.native.llama import Vocab


@contextmanager
def of(file: Path) -> Iterator[Vocabulary]:
    """Load no more than the vocabulary of ``file``."""
    silent = c.llama_log_callback(lambda _level, _text, _data: None)
    c.llama_log_set(silent, ctypes.c_void_p())
    c.llama_backend_init()
    params = c.llama_model_default_params()
    params.vocab_only = True
    model = c.llama_model_load_from_file(str(file).encode(), params)
    assert model, f"llama.cpp does not load {file}"
    vocab = Vocab(c.llama_model_get_vocab(model))
    try:
        yield Vocabulary(
            tokenize=vocab.tokenize,
            piece=vocab.piece,
            controls=vocab.control,
            bos_token=vocab.text(vocab.bos),
            eos_token=vocab.text(vocab.eos),
            bos_id=vocab.bos,
            add_bos=vocab.add_bos,
        )
    finally:
        c.llama_model_free(model)
        c.llama_log_set(c.llama_log_callback(), ctypes.c_void_p())


def write_sentencepiece(file: Path) -> None:
    """Write a vocabulary that puts a space before texts: bytes, letters and two words."""
    kind = gguf.TokenType
    tokens = [("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kind.BYTE) for byte in range(256)]
    tokens += [(char, kind.NORMAL) for char in f"▁{string.ascii_letters}<>/[].,"]
    tokens += [(word, kind.NORMAL) for word in ("he", "ll", "hell", "hello", "▁hello", "▁<")]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
