"""What doctor makes of facts, and what the command prints on this machine."""

from __future__ import annotations

import socket
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from localllama.doctor import Facts, checks, port_owner
from localllama.hardware import Device, Hardware, Memory, NvidiaGpu, NvidiaProcess
from tests.support import cli

MEMORY = Memory(8 << 30, 16 << 30, 4, 4)
CPU = Device("CPU", "CPU", "cpu", "CPU", 8 << 30, 8 << 30)
CARD = Device("CUDA0", "RTX", "gpu", "CUDA", 7 << 30, 8 << 30)
MACHINE = Hardware(MEMORY, (CPU,), frozenset(("AVX2",)), ("CPU",), "0.3.36")
WITH_CUDA = replace(MACHINE, devices=(CPU, CARD), backends=("CUDA", "CPU"))
GOOD = Facts(MACHINE)
RTX = NvidiaGpu("RTX", "450.1", (11, 0), 1 << 30, 8 << 30)
BUSY = replace(RTX, processes=(NvidiaProcess("python", 4242, 6 << 30),))


def test_a_good_machine_has_no_trouble() -> None:
    assert list(checks.troubles(GOOD)) == []
    assert list(checks.troubles(Facts(WITH_CUDA, nvidia=(RTX,), nvidia_names=("RTX",)))) == []


@pytest.mark.parametrize(
    ("facts", "code", "words"),
    [
        (replace(GOOD, hardware=replace(MACHINE, problems=("it died",))), "devices", "it died"),
        (replace(GOOD, nvidia_names=("RTX",)), "cpu_only_build", "DGGML_CUDA=on"),
        (replace(GOOD, amd_gpu=True), "cpu_only_build", "DGGML_HIP=on"),
        (replace(GOOD, system="darwin", machine="arm64"), "cpu_only_build", "DGGML_METAL=on"),
        (
            Facts(replace(WITH_CUDA, devices=(CPU,)), nvidia=(RTX,), nvidia_names=("RTX",)),
            "driver",
            "450.1 (for CUDA up to 11.0)",
        ),
        (Facts(WITH_CUDA, nvidia=(BUSY,)), "vram_taken", "python (pid 4242) 6.4 GB of RTX"),
        (replace(GOOD, model="big", model_trouble="needs 9 GB"), "memory", "big"),
        (replace(GOOD, hardware=replace(MACHINE, cpu_features=frozenset(("AVX",)))), "no_avx2", ""),
        (replace(GOOD, disk_free_bytes=10**9, models_folder="/m"), "disk_full", "1.0 GB are free"),
        (replace(GOOD, disk_type="nfs4"), "network_disk", "nfs4"),
        (replace(GOOD, endpoint="https://x", endpoint_trouble="refused"), "network", "https://x"),
        (replace(GOOD, port_owner="Ollama"), "port_taken", "Ollama"),
    ],
)
def test_each_trouble_has_its_cause_and_its_fix(facts: Facts, code: str, words: str) -> None:
    (trouble,) = checks.troubles(facts)
    assert trouble.code == code
    assert words in f"{trouble.problem} {trouble.fix}"
    assert trouble.fix


def test_an_arm_processor_needs_no_avx2() -> None:
    arm = replace(MACHINE, cpu_features=frozenset(("NEON",)))
    assert list(checks.troubles(Facts(arm, machine="aarch64"))) == []


class Answer(BaseHTTPRequestHandler):
    """Answers as Ollama does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"Ollama is running")

    def log_message(self, *_: object) -> None:
        pass


def test_who_listens_on_a_port_is_told() -> None:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        port = server.server_port
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            assert port_owner(port) == "Ollama"
        finally:
            server.shutdown()
            thread.join()
    assert port_owner(port) == ""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert port_owner(silent.getsockname()[1]) == "another program"


def test_the_command_describes_this_machine(home: Path) -> None:
    env = {"LOCALLLAMA_OFFLINE": "1"}
    found = cli.data("doctor", env=env)
    assert "cpu" in [device["kind"] for device in found["hardware"]["devices"]]
    assert found["hardware"]["memory"]["available_bytes"] > 0
    assert "network" not in [trouble["code"] for trouble in found["troubles"]]
    shown = cli.run("doctor", env=env)
    has_gpu = any("gpu" in device["kind"] for device in found["hardware"]["devices"])
    assert ("GPU       none was found" in shown.stdout) == (
        not has_gpu and not found["hardware"]["unusable_gpu"]
    )
    assert shown.returncode == 0
    assert "CPU" in shown.stdout


def test_an_endpoint_that_is_away_is_found(home: Path) -> None:
    env = {"HF_ENDPOINT": "http://127.0.0.1:1", "LOCALLLAMA_MODEL": "llama2:70b", "NO_PROXY": "*"}
    troubles = {trouble["code"]: trouble for trouble in cli.data("doctor", env=env)["troubles"]}
    assert "127.0.0.1:1" in troubles["network"]["problem"]
