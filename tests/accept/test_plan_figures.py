"""The planner's figures against llama.cpp's, over every configuration of the acceptance list."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_headers import LLAMA2, write_header

from localllama.plan import Want
from tests.support import figures, rpc
from tests.support.gguf_maker import write_tiny_llama

pytestmark = pytest.mark.accept

CONTEXTS = (512, 1024, 2048, 4096, 8192)
MODELS = ("SmolLM2-135M", "tiny", "Llama-2-7B")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "SmolLM2-135M": smollm2,
        "tiny": write_tiny_llama(folder / "tiny.gguf", layers=4)[0],
        "Llama-2-7B": write_header(folder / "7b.gguf", LLAMA2["Llama-2-7B"]),
    }


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("context_length", CONTEXTS)
@pytest.mark.parametrize("model", MODELS)
def test_figures(paths: dict[str, Path], model: str, context_length: int, kv_type: str) -> None:
    if model == "tiny" and kv_type == "q8_0":
        pytest.skip("its heads are narrower than a block of q8_0")
    want = Want(context_length=context_length, kv_type=kv_type, sequences=7, outputs=36)
    _, found = figures.compare(paths[model], want, really=model != "Llama-2-7B")
    for figure in found:
        print(model, context_length, kv_type, figure, f"{figure.error:+.1%}")
    assert all(figure.is_right for figure in found), found


@pytest.mark.skipif(not rpc.available(), reason="this llama.cpp was built without RPC")
@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("gpu_layers", [1, 15, 31])
def test_figures_with_stand_in_gpus(smollm2: Path, servers: int, gpu_layers: int) -> None:
    caps = tuple(70_000_000 for _ in range(servers)) if gpu_layers == 15 else ()
    want = Want(
        context_length=2048, kv_type="f16", gpu_layers=gpu_layers, gpu_memory_bytes=caps, force=True
    )
    with rpc.servers(servers) as endpoints:
        _, found = figures.compare(smollm2, want, endpoints, really=True)
    for figure in found:
        print(servers, gpu_layers, figure, f"{figure.error:+.1%}")
    assert all(figure.is_right for figure in found), found
