"""Run by an interpreter that has torch and transformers: logits after each of some prompts.

Arguments: a checkpoint's folder, a JSON file of lists of tokens, the ``.npy`` file to write.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def main(folder: str, prompts: str, out: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    with torch.no_grad():
        rows = [
            model(torch.tensor([tokens])).logits[0, -1].numpy()
            for tokens in json.loads(Path(prompts).read_text())
        ]
    np.save(out, np.stack(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
