"""Plans: against llama.cpp's own figures, as a pure function, and through the command."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import memory_tables
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_headers import LLAMA2, Shape, write_header

from localllama import catalog, gguf_file, hardware, plan
from localllama.errors import DoesNotFit, InvalidParameter
from localllama.gguf_file import ModelInfo
from localllama.hardware import Hardware
from localllama.names import Source
from localllama.native import measure
from localllama.plan import HOST, MOST, Plan, Want
from tests.support import cli, figures, rpc
from tests.support.gguf_maker import write_tiny_llama
from tests.support.hub import Hub

GB = 10**9
RESERVE = Want().reserve_bytes
LONG = Shape(16, 2048, 32, 8, 8192, 128256, 131072, tied=True)  # Llama 3.2 1B


@pytest.fixture(scope="session")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("headers")
    shapes = {**LLAMA2, "Llama-3.2-1B": LONG}
    return {name: write_header(folder / f"{name}.gguf", shape) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def infos(headers: dict[str, Path]) -> dict[str, ModelInfo]:
    return {name: gguf_file.read_info(path) for name, path in headers.items()}


def total(machine: Hardware, chosen: Plan) -> None:
    """Assert that no device gives more than it has, reserve included."""
    free = {gpu.name: gpu.free_bytes for gpu in machine.gpus}
    free[HOST] = machine.memory.available_bytes
    for use in chosen.uses:
        assert use.total_bytes == 0 or use.total_bytes + RESERVE <= free[use.device]
    unified = {gpu.name for gpu in machine.gpus if gpu.unified} | {HOST}
    assert sum(use.total_bytes for use in chosen.uses if use.device in unified) <= free[HOST]


# against llama.cpp


def test_a_real_load_takes_what_was_planned(smollm2: Path) -> None:
    _, found = figures.compare(smollm2, Want(context_length=2048, kv_type="q8_0"), really=True)
    assert {figure.what for figure in found} == {"weights", "KV", "compute"}
    assert all(figure.is_right for figure in found), found


@pytest.mark.parametrize("flash_attention", [True, False])
def test_a_header_alone_tells_what_llama_cpp_would_take(
    headers: dict[str, Path], flash_attention: bool
) -> None:
    path = headers["Llama-2-7B"]
    assert path.stat().st_blocks * 512 < 2_000_000
    want = Want(context_length=4096, kv_type="f16", flash_attention=flash_attention)
    _, found = figures.compare(path, want, really=False)
    assert all(figure.is_right for figure in found), found


def test_repacked_weights_are_counted(headers: dict[str, Path]) -> None:
    machine = replace(hardware.probe(()), cpu_features=frozenset(("AVX2", "REPACK")))
    machine = figures.roomy(machine)
    info = gguf_file.read_info(headers["Llama-2-7B"])
    mapped = plan.fit(info, machine, Want()).uses[-1]
    without = plan.fit(info, machine, Want(repack=False)).uses[-1]
    copied = plan.fit(info, machine, Want(mmap=False)).uses[-1]
    assert mapped.repacked_bytes == copied.repacked_bytes > 2 * GB
    assert mapped.weights_bytes == without.weights_bytes
    assert copied.weights_bytes + copied.repacked_bytes == without.weights_bytes


def test_where_repacked_copies_do_not_fit_the_file_is_not_mapped(
    infos: dict[str, ModelInfo],
) -> None:
    info = infos["Llama-2-13B"]
    assert plan.fit(info, hardware.described(32 * GB), Want()).mmap
    small = plan.fit(info, hardware.described(13 * GB), Want())
    assert (small.mmap, small.repack) == (False, True)


@pytest.mark.skipif(not rpc.available(), reason="this llama.cpp was built without RPC")
def test_layers_on_two_stand_in_gpus(smollm2: Path) -> None:
    caps = (60_000_000, 90_000_000)
    with rpc.servers(2) as endpoints:
        want = Want(context_length=1024, gpu_memory_bytes=caps, kv_type="f16")
        chosen, found = figures.compare(smollm2, want, endpoints, really=True)
    assert 0 < chosen.gpu_layers < chosen.layers
    assert all(share > 0 for share in chosen.tensor_split)
    assert all(figure.is_right for figure in found), found
    for cap, name in zip(caps, ("RPC0", "RPC1"), strict=True):
        assert sum(figure.found for figure in found if figure.device == name) <= cap


def test_llama_cpp_s_figures_replace_ours(smollm2: Path) -> None:
    machine = hardware.probe(())
    want = Want(context_length=512)
    chosen = plan.fit(gguf_file.read_info(smollm2), machine, want)
    found = measure.measure([smollm2], plan.options(chosen, want))
    corrected = plan.corrected(chosen, found, machine).uses[-1]
    everything = (*found.compute_bytes.values(), *found.output_bytes.values())
    assert corrected.compute_bytes == sum(everything)
    assert corrected.weights_bytes == chosen.uses[-1].weights_bytes


def test_later_plans_are_corrected_by_what_loads_took(
    infos: dict[str, ModelInfo], tmp_path: Path
) -> None:
    info, machine = infos["Llama-2-7B"], hardware.described(16 * GB, (16 * GB,))
    file = tmp_path / "cache" / "loads.json"
    first = plan.fit(info, machine, Want())
    load = plan.Load("1", "llama", "CUDA", 0, 0, 100, 100, 150, 100)
    plan.record(file, [load, replace(load, compute_bytes=120), replace(load, build="2")])
    known = plan.ratios(plan.loads(file), "llama", "1")
    assert known == {"CUDA": 1.5}
    assert plan.ratios(plan.loads(file), "gemma", "1") == {}
    gpu, host = plan.fit(info, machine, Want(), known).uses
    assert gpu.compute_bytes == round(1.5 * first.uses[0].compute_bytes)
    assert host == first.uses[1]
    (error, _) = plan.errors(plan.loads(file))
    assert (error.loads, error.kv, error.compute) == (2, 0, pytest.approx(-1 / 3))
    plan.record(file, [load] * 200)
    assert len(plan.loads(file)) == 100
    file.write_text("[{}]")
    assert plan.loads(file) == []


def test_an_idle_gpu_is_explained(infos: dict[str, ModelInfo]) -> None:
    info, machine = infos["Llama-2-7B"], hardware.described(16 * GB, (GB // 2,))
    chosen = plan.fit(info, machine, Want())
    assert "500 MB on CUDA0" in plan.idle_gpu(chosen, machine, Want())
    assert plan.idle_gpu(chosen, machine, Want(no_gpu=True)) == ""
    cpu_only = replace(hardware.described(16 * GB), unusable_gpu="the NVIDIA GPU")
    assert "localllama doctor" in plan.idle_gpu(chosen, cpu_only, Want())
    assert plan.idle_gpu(chosen, hardware.described(16 * GB), Want()) == ""


# what is chosen


def test_everything_on_the_gpu_is_preferred(infos: dict[str, ModelInfo]) -> None:
    info = infos["Llama-2-7B"]
    plans = [plan.fit(info, hardware.described(16 * GB, (gb * GB,)), Want()) for gb in (8, 6, 4)]
    assert [chosen.gpu_layers == chosen.layers for chosen in plans] == [True, True, False]
    assert [chosen.kv_type for chosen in plans] == ["f16", "q8_0", "q8_0"]
    assert [chosen.context_length for chosen in plans] == [4096, 4096, 4096]


def test_by_default_the_kv_cache_takes_a_quarter_at_most(infos: dict[str, ModelInfo]) -> None:
    chosen = plan.fit(infos["Llama-3.2-1B"], hardware.described(16 * GB), Want())
    assert 4096 < chosen.context_length < chosen.trained_context_length
    assert chosen.uses[-1].kv_bytes <= (16 * GB - RESERVE) / 4
    longer = plan.fit(infos["Llama-3.2-1B"], hardware.described(16 * GB), Want(context_length=MOST))
    assert longer.context_length == longer.trained_context_length


@pytest.mark.parametrize("unified", [False, True])
def test_the_longest_context_is_the_longest(infos: dict[str, ModelInfo], unified: bool) -> None:
    machine = hardware.described(57 * GB // 10, unified=unified)
    want = Want(context_length=MOST, kv_type="f16")
    most = plan.fit(infos["Llama-2-7B"], machine, want).context_length
    assert 1000 < most < 4096
    with pytest.raises(DoesNotFit):
        plan.fit(infos["Llama-2-7B"], machine, replace(want, context_length=most + 256))


def test_two_gpus_share_what_one_cannot_hold(infos: dict[str, ModelInfo]) -> None:
    machine = hardware.described(16 * GB, (8 * GB, 8 * GB))
    chosen = plan.fit(infos["Llama-2-13B"], machine, Want())
    assert chosen.gpu_layers == chosen.layers == sum(chosen.tensor_split)
    assert min(chosen.tensor_split) > 0
    one = plan.fit(infos["Llama-2-7B"], hardware.described(16 * GB, (4 * GB, 8 * GB)), Want())
    assert (one.tensor_split, one.main_gpu) == ((0, 33), 1)


def test_wishes_are_kept(infos: dict[str, ModelInfo]) -> None:
    info, machine = infos["Llama-2-7B"], hardware.described(16 * GB, (8 * GB,))
    assert plan.fit(info, machine, Want(gpu_layers=7)).gpu_layers == 7
    assert plan.fit(info, machine, Want(gpu_layers=99)).gpu_layers == 33
    assert plan.fit(info, machine, Want(kv_type="q4_0")).kv_type == "q4_0"
    assert len(plan.fit(info, machine, Want(no_gpu=True)).uses) == 1
    capped = plan.fit(info, machine, Want(gpu_memory_bytes=(3 * GB,)))
    assert 0 < capped.uses[0].total_bytes <= 3 * GB
    with pytest.raises(InvalidParameter, match="q9_9"):
        plan.fit(info, machine, Want(kv_type="q9_9"))


def test_a_kv_cache_that_llama_cpp_refuses_is_not_planned(
    infos: dict[str, ModelInfo], tmp_path: Path
) -> None:
    machine = hardware.described(16 * GB, (6 * GB,))
    plain = Want(flash_attention=False)
    assert plan.fit(infos["Llama-2-7B"], machine, plain).kv_type == "f16"
    with pytest.raises(InvalidParameter, match="without flash attention"):
        plan.fit(infos["Llama-2-7B"], machine, replace(plain, kv_type="q4_0"))
    narrow = gguf_file.read_info(write_tiny_llama(tmp_path / "tiny.gguf")[0])
    with pytest.raises(InvalidParameter, match="heads of 16 elements"):
        plan.fit(narrow, machine, Want(kv_type="q8_0"))


def test_a_gpu_can_be_required(infos: dict[str, ModelInfo]) -> None:
    info = infos["Llama-2-7B"]
    with pytest.raises(DoesNotFit, match="sees none"):
        plan.fit(info, hardware.described(16 * GB), Want(require_gpu=True))
    with pytest.raises(DoesNotFit, match="not one layer"):
        plan.fit(info, hardware.described(16 * GB, (GB // 2,)), Want(require_gpu=True))
    assert plan.fit(info, hardware.described(16 * GB, (4 * GB,)), Want(require_gpu=True)).gpu_layers


def test_what_does_not_fit_names_choices_that_do(infos: dict[str, ModelInfo]) -> None:
    info, machine = infos["Llama-3.2-1B"], hardware.described(4 * GB)
    want = Want(context_length=131072, kv_type="f16")
    with pytest.raises(DoesNotFit) as raised:
        plan.fit(info, machine, want)
    assert raised.value.needed_bytes > raised.value.available_bytes > 0
    choices = plan.alternatives(info, machine, want)
    assert 1 <= len(choices) <= 3
    for text, chosen in choices:
        assert text in raised.value.hint
        assert chosen.fits
        total(machine, chosen)


def test_no_force_makes_a_context_that_no_worker_opens(infos: dict[str, ModelInfo]) -> None:
    info, machine = infos["Llama-3.2-1B"], hardware.described(4 * GB)
    longest = 32 * info.context_length
    assert plan.fit(info, machine, Want(context_length=longest, force=True)).context_length
    with pytest.raises(InvalidParameter, match="must be from 1 to"):
        plan.fit(info, machine, Want(context_length=longest + 1, force=True))


def test_memory_that_the_reserve_takes_is_told(infos: dict[str, ModelInfo]) -> None:
    machine, want = hardware.described(GB // 5), Want(reserve_bytes=GB // 2)
    with pytest.raises(DoesNotFit, match="0 B are available beside the reserve of 500 MB"):
        plan.fit(infos["Llama-3.2-1B"], machine, want)


def test_force_plans_it_all_the_same(infos: dict[str, ModelInfo]) -> None:
    want = Want(context_length=4096, force=True)
    chosen = plan.fit(infos["Llama-2-70B"], hardware.described(8 * GB), want)
    assert not chosen.fits
    assert chosen.context_length == 4096


NAMES = st.sampled_from([*LLAMA2, "Llama-3.2-1B"])
MEMORY = st.integers(1 * GB, 60 * GB)
CARDS = st.lists(st.integers(GB // 2, 30 * GB), max_size=3)
CONTEXTS = st.one_of(st.just(0), st.just(MOST), st.integers(1, 131_072))


@settings(deadline=None, max_examples=80)
@given(NAMES, MEMORY, CARDS, CONTEXTS, st.sampled_from(["", "f16", "q8_0"]), st.booleans())
def test_no_plan_is_over_its_budget_or_cuts_what_was_asked(
    infos: dict[str, ModelInfo],
    name: str,
    ram: int,
    cards: list[int],
    context_length: int,
    kv_type: str,
    unified: bool,
) -> None:
    unified = unified and not cards
    machine = hardware.described(ram, cards, unified=unified)
    want = Want(context_length=context_length, kv_type=kv_type)
    try:
        chosen = plan.fit(infos[name], machine, want)
    except DoesNotFit:
        return
    total(machine, chosen)
    assert chosen.fits
    if context_length > 0:
        assert chosen.context_length == context_length
    if kv_type:
        assert chosen.kv_type == kv_type
    assert sum(use.layers for use in chosen.uses) == chosen.layers


@settings(deadline=None, max_examples=60)
@given(NAMES, MEMORY, CARDS, st.integers(0, 20 * GB), st.sampled_from([0, 2048, 4096, 30_000]))
def test_more_vram_never_means_fewer_layers(
    infos: dict[str, ModelInfo],
    name: str,
    ram: int,
    cards: list[int],
    more: int,
    context_length: int,
) -> None:
    want = Want(context_length=context_length)
    layers = []
    for sizes in (cards, [size + more for size in cards]):
        try:
            layers.append(plan.fit(infos[name], hardware.described(ram, sizes), want).gpu_layers)
        except DoesNotFit:
            layers.append(-1)
    assert layers[0] <= layers[1]


@settings(deadline=None, max_examples=25)
@given(NAMES, MEMORY, CARDS, st.integers(1, 131_072))
def test_every_choice_that_is_named_fits(
    infos: dict[str, ModelInfo], name: str, ram: int, cards: list[int], context_length: int
) -> None:
    machine = hardware.described(ram, cards)
    for _, chosen in plan.alternatives(infos[name], machine, Want(context_length=context_length)):
        total(machine, chosen)


def test_a_plan_says_what_it_does(infos: dict[str, ModelInfo]) -> None:
    machine = hardware.described(16 * GB, (4 * GB,))
    said = plan.sentence(plan.fit(infos["Llama-2-7B"], machine, Want()))
    assert said.endswith("tokens in a KV cache of q8_0, all that the model has.")
    assert " of 33 layers on CUDA0 and " in said


# the command


def test_the_command_plans_for_this_machine(smollm2: Path, home: Path) -> None:
    found = cli.data("plan", str(smollm2), "--ctx", "1024", "--no-gpu")
    assert found["context_length"] == 1024
    assert found["uses"][-1]["device"] == HOST
    shown = cli.run("plan", str(smollm2), "--ctx", "max", "--no-gpu")
    assert "context of 8192 tokens" in shown.stdout


def test_the_command_plans_for_another_machine(headers: dict[str, Path], home: Path) -> None:
    path = str(headers["Llama-2-70B"])
    failed = cli.run("plan", path, "--ram", "8GB", "--vram", "4GB")
    assert failed.returncode == 6
    assert "smaller" in failed.stderr
    for option in ("--gpu-layers", "10"), ("--gpu-memory", "4GB"):
        assert "change nothing" in cli.run("plan", path, "--ram", "64GB", *option).stderr
    assert cli.run("plan", path, "--ram", "64GB", "--gpu-layers", "0").stderr == ""
    found = cli.data("plan", path, "--ram", "64GB", "--vram", "24GB", "--vram", "12GB")
    assert [use["device"] for use in found["uses"]] == ["CUDA0", "CUDA1", HOST]


@pytest.mark.parametrize("arguments", [["--ctx", "many"], ["--unified"], ["--vram", "much"]])
def test_nonsense_is_refused(arguments: list[str], home: Path) -> None:
    assert cli.run("plan", "x.gguf", *arguments).returncode == 2


@pytest.fixture
def hub(home: Path) -> Iterator[tuple[Hub, dict[str, str]]]:
    with Hub() as hub:
        yield (
            hub,
            {**os.environ, "HF_ENDPOINT": hub.url, "LOCALLLAMA_RETRIES": "1", "NO_PROXY": "*"},
        )


def test_models_far_away_are_judged_by_their_headers(
    hub: tuple[Hub, dict[str, str]], tmp_path: Path
) -> None:
    server, env = hub
    tiny = write_tiny_llama(tmp_path / "tiny-Q8_0.gguf")[0]
    big = write_header(tmp_path / "big.gguf", Shape(8, 2048, 16, 16, 5632))
    files = {"big-Q4_K_M.gguf": big, "tiny-Q8_0.gguf": tiny}
    server.add_repo("owner/models", files)
    machine = ("--ram", "2GB", "--vram", "900MB")
    rows = cli.data("plan", "hf.co/owner/models", *machine, env=env)
    assert {row["quantization"] for row in rows} == {"Q4_K_M", "F32"}
    assert {row["fits"] for row in rows if row["quantization"] == "F32"} == {"fits"}
    assert {row["fits"] for row in rows if row["quantization"] == "Q4_K_M"} == {"partly"}
    one = cli.data("plan", "hf.co/owner/models:Q4_K_M", *machine, "--ctx", "2048", env=env)
    assert one["context_length"] == 2048
    assert server.bytes_sent() < big.stat().st_size / 50


def test_every_type_of_the_catalog_is_judged_but_the_one_in_a_package(
    hub: tuple[Hub, dict[str, str]], tmp_path: Path
) -> None:
    server, env = hub
    tiny = write_tiny_llama(tmp_path / "tiny.gguf")[0]
    entry = catalog.load().families["smollm2"].entries["135m"]
    files = [file for file in entry.files.values() if file.source is Source.HUGGINGFACE]
    server.add_repo(entry.gguf, {file.names[0]: tiny for file in files})
    result = cli.run("plan", "smollm2:135m", "--ram", "4GB", "--json", env=env)
    assert len(json.loads(result.stdout)) == len(files)
    assert "inside a package" in result.stderr
    alone = cli.run("plan", "smollm2:135m", "--quant", "Q4_1", env=env)
    assert alone.returncode == 2
    assert "pull" in alone.stderr


def test_the_tables_of_the_manual_are_what_is_planned() -> None:
    assert memory_tables.PAGE.read_text() == memory_tables.page()
