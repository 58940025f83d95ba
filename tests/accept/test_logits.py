"""SmolLM2 converted to F32 says what transformers says of its checkpoint.

LOCALLLAMA_TORCH_PYTHON names an interpreter with torch and transformers, if this one has none.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llama_cpp import llama_cpp as c
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tests.support import transformers_logits
from tests.support.conversion import convert
from tests.support.smollm2 import write_checkpoint
from tests.support.texts import texts

PROMPTS = 64
MOST_RELATIVE = 1e-3

pytestmark = pytest.mark.accept


@pytest.mark.timeout(900)
def test_logits_agree_with_transformers(tmp_path: Path, smollm2: Path) -> None:
    python = os.environ.get("LOCALLLAMA_TORCH_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import torch, transformers"], capture_output=True).returncode:
        pytest.skip("torch and transformers are not installed")
    folder = write_checkpoint(tmp_path / "checkpoint", smollm2)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in texts(PROMPTS, seed=4)]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    command = [python, transformers_logits.__file__, folder, tmp_path / "prompts.json"]
    subprocess.run([*command, tmp_path / "logits.npy"], check=True, capture_output=True)
    wanted = np.load(tmp_path / "logits.npy")
    found = _logits(convert(folder, tmp_path / "model.gguf"), prompts)
    errors = np.abs(found - wanted).max(axis=1) / np.abs(wanted).max(axis=1)
    print(f"largest relative difference of {PROMPTS} prompts: {errors.max():.2e}")
    assert errors.max() < MOST_RELATIVE


def _logits(path: Path, prompts: list[list[int]]) -> NDArray[np.float32]:
    """The logits after each prompt, in full precision throughout."""
    silent = c.llama_log_callback(lambda _level, _text, _data: None)
    c.llama_log_set(silent, ctypes.c_void_p())
    c.llama_backend_init()
    wishes = c.llama_model_default_params()
    wishes.n_gpu_layers = 0
    model = c.llama_model_load_from_file(str(path).encode(), wishes)
    params = c.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0  # F32
    params.flash_attn_type = 0
    context = c.llama_init_from_model(model, params)
    size = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    rows = []
    for prompt in prompts:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        tokens = (c.llama_token * len(prompt))(*prompt)
        assert c.llama_decode(context, c.llama_batch_get_one(tokens, len(prompt))) == 0
        rows.append(np.ctypeslib.as_array(c.llama_get_logits_ith(context, -1), (size,)).copy())
    c.llama_free(context)
    c.llama_model_free(model)
    c.llama_log_set(c.llama_log_callback(), ctypes.c_void_p())
    return np.stack(rows)
