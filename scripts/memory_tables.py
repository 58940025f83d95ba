"""Writes the tables of docs/memory.md: Llama 2 on cards and unified memory of all usual sizes.

    python scripts/memory_tables.py            write them
    python scripts/memory_tables.py --check    fail where they are not what would be written

They are what ``localllama plan MODEL --vram ... --ram ...`` says, from headers without weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from make_headers import LLAMA2, write_header

from localllama import gguf_file, hardware, plan
from localllama.config import Config
from localllama.errors import DoesNotFit
from localllama.gguf_file import ModelInfo
from localllama.hardware import Hardware
from localllama.plan import HOST
from localllama.wants import Want, planned

PAGE = Path(__file__).parents[1] / "docs" / "memory.md"
MARK = "<!-- Below: written by scripts/memory_tables.py; do not edit. -->\n"
CARDS = (4, 6, 8, 12, 16, 24)
UNIFIED = (8, 16, 32)
RAM = {"Llama-2-7B": 16, "Llama-2-13B": 16, "Llama-2-70B": 64}
GB = 10**9
HEAD = ("machine", "layers on GPU", "context", "KV cache", "on the GPU", "on the host")


def page() -> str:
    """Return the page with fresh tables."""
    kept = PAGE.read_text().partition(MARK)[0]
    return kept + MARK + "\n".join(tables())


def tables() -> Iterator[str]:
    """Yield the lines of one table a model."""
    with TemporaryDirectory() as folder:
        for name, shape in LLAMA2.items():
            info = gguf_file.read_info(write_header(Path(folder) / f"{name}.gguf", shape))
            yield f"\n## {name}, Q4_K_M, {info.file_bytes / GB:.2f} GB\n"
            yield _row(HEAD)
            yield _row(["---"] * len(HEAD))
            for size in CARDS:
                machine = hardware.described(RAM[name] * GB, (size * GB,))
                yield _row([f"{size} GB card, {RAM[name]} GB RAM", *_cells(info, machine)])
            for size in UNIFIED:
                machine = hardware.described(size * GB, unified=True)
                yield _row([f"{size} GB unified", *_cells(info, machine)])
    yield ""


def _cells(info: ModelInfo, machine: Hardware) -> list[str]:
    try:
        chosen = plan.fit(info, machine, planned(Want(), info, Config()))
    except DoesNotFit as error:
        return [f"does not fit: {error.message}", "", "", "", ""]
    on_gpu = sum(use.total_bytes for use in chosen.uses if use.device != HOST)
    return [
        f"{chosen.gpu_layers} of {chosen.layers}",
        str(chosen.context_length),
        chosen.kv_type,
        f"{on_gpu / GB:.1f} GB",
        f"{chosen.uses[-1].total_bytes / GB:.1f} GB",
    ]


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def main() -> int:
    """Write or check the page."""
    fresh = page()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text() == fresh else 1
    PAGE.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
