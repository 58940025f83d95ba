"""How many replies there can be at once: what the plan chooses, and how they share the cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_headers import LLAMA2, Shape, write_header

from localllama import gguf_file, hardware, plan
from localllama.config import Config, Run
from localllama.engine.api import Done, Sampling
from localllama.errors import DoesNotFit, InvalidParameter
from localllama.gguf_file import ModelInfo
from localllama.wants import Want, planned
from tests.support.engines import load

GB = 10**9
LONG = Shape(16, 2048, 32, 8, 8192, 128256, 131072, tied=True)  # Llama 3.2 1B
SERVED = Want(serves_many=True)


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return gguf_file.read_info(write_header(tmp_path_factory.mktemp("header") / "x.gguf", LONG))


def chosen(
    info: ModelInfo, want: Want, *, gpus: tuple[int, ...] = (), slots: int = 0
) -> tuple[plan.Plan, str]:
    wish = planned(want, info, Config(run=Run(slots=slots)))
    found = plan.fit(info, hardware.described(16 * GB, tuple(gb * GB for gb in gpus)), wish)
    return found, plan.parallel(found, wish)


def test_a_card_serves_as_many_as_its_memory_is_good_for(info: ModelInfo) -> None:
    found = [chosen(info, SERVED, gpus=(gb,))[0] for gb in (2, 4, 8, 24)]
    slots = [one.slots for one in found]
    assert slots == sorted(slots)
    assert (slots[0], slots[-1]) == (4, 16)
    assert 4 < slots[2] < 16
    for one in found:
        assert one.cells == one.context_length  # no more of the card than one user would take
        assert one.slots == 4 or one.cells >= one.slots * 4096


def test_every_conversation_of_a_length_that_was_asked_for_has_its_cells(info: ModelInfo) -> None:
    want = replace(SERVED, context_length=2048)
    found, why = chosen(info, want, gpus=(24,))
    assert (found.slots, found.context_length, found.cells) == (16, 2048, 16 * 2048)
    assert found.uses[0].kv_bytes == 16 * 2048 * 32768
    assert "16 replies at once, with a KV cache of 32768 tokens for all of them" in why
    alone = chosen(info, replace(want, serves_many=False), gpus=(24,))[0]
    assert (alone.slots, alone.cells) == (4, 2048)
    tight, why = chosen(info, want, gpus=(3,))
    assert 4 <= tight.slots < 16
    assert tight.cells == tight.slots * 2048
    assert "no memory for more" in why


def test_where_the_cpu_computes_four_share_one_context(info: ModelInfo) -> None:
    for want in (SERVED, Want()):
        found, why = chosen(info, want)
        assert (found.slots, found.cells) == (4, found.context_length)
    found, why = chosen(info, replace(SERVED, gpu_layers=3), gpus=(24,))
    assert (found.slots, found.cells) == (4, found.context_length)
    assert "on the CPU" in why


def test_a_number_that_is_asked_for_is_kept(info: ModelInfo) -> None:
    for gpus in ((), (24,)):
        for slots in (1, 3, 40):
            assert chosen(info, SERVED, gpus=gpus, slots=slots)[0].slots == slots
    found, why = chosen(info, replace(SERVED, context_length=4096), gpus=(24,), slots=8)
    assert found.cells == 8 * 4096
    assert why.startswith("8 replies at once")
    assert chosen(info, SERVED, slots=1)[1] == "one reply at a time"
    with pytest.raises(InvalidParameter, match="300 replies at once"):
        chosen(info, SERVED, slots=300)


def test_longer_pools_leave_longrope_alone(info: ModelInfo) -> None:
    key = f"{info.architecture}.rope.scaling.original_context_length"
    scaled = replace(info, metadata={**info.metadata, key: 8192})
    want = replace(SERVED, context_length=2048)
    assert chosen(scaled, want, gpus=(24,))[0].cells == 8192


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40), st.sampled_from([0, 512, 4096, 20000]), st.sampled_from([0, 1, 7, 16, 60])
)
def test_more_at_once_never_take_more_than_there_is(
    tmp_path_factory: pytest.TempPathFactory, gb: int, context_length: int, slots: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "7b.gguf"
    info = gguf_file.read_info(path if path.exists() else write_header(path, LLAMA2["Llama-2-7B"]))
    try:
        found, _ = chosen(
            info, replace(SERVED, context_length=context_length), gpus=(gb,), slots=slots
        )
    except DoesNotFit:
        return
    assert found.fits
    assert all(use.total_bytes <= use.available_bytes for use in found.uses)
    assert found.cells >= found.context_length
    assert found.slots == slots or (not slots and 4 <= found.slots <= 16)


def test_conversations_share_a_pool_that_is_larger_than_each(smollm2: Path, tmp_path: Path) -> None:
    on = Sampling(temperature=0, max_tokens=-1, ignore_eos=True)
    with load(smollm2, tmp_path, 64, slots=2, cells=512) as engine:
        assert engine.ready.context_length == 64
        *_, done = engine.stream(on, prompt="One, two, three,")
        assert isinstance(done, Done)
        assert done.reason == "context"
        assert done.usage.prompt_tokens + done.usage.completion_tokens == 65
