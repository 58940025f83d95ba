"""The downloader against real servers that fail in every way a real one does."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from localllama.config import Network
from localllama.download import (
    Fetched,
    discard,
    fetch,
    get_bytes,
    get_json,
    probe,
    read_range,
)
from localllama.download.partial import Header, PartialFile, key_of, peek
from localllama.errors import (
    AccessDenied,
    ChecksumMismatch,
    ConnectionLost,
    Gated,
    InvalidConfig,
    LocalLlamaError,
    Offline,
    RateLimited,
    RemoteNotFound,
    ServerFailed,
    StoreError,
)
from localllama.names import RemoteFile
from localllama.progress import Progress, finish
from tests.support.engines import wait_until
from tests.support.hub import Content, Generated, Hub

T = TypeVar("T")

MB = 1_000_000
NETWORK = Network(timeout_seconds=20, retries=2)
CHILD = """
import sys
from pathlib import Path
from localllama.config import Network
from localllama.download import fetch
from localllama.names import RemoteFile
url, size, sha256, folder = sys.argv[1:]
remote = RemoteFile("x.gguf", url=url, size=int(size), sha256=sha256)
for progress in fetch(remote, Path(folder), Network()):
    print(progress.phase, progress.done_bytes, flush=True)
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    with Hub() as running:
        yield running


@pytest.fixture
def partials(tmp_path: Path) -> Path:
    return tmp_path / "partials"


def serve(hub: Hub, content: Content, *, known: bool = True) -> RemoteFile:
    """Publish ``content``; a source that is not ``known`` promises neither size nor digest."""
    url = hub.add_file("x.gguf", content)
    size, sha256 = (content.size, content.sha256) if known else (-1, "")
    return RemoteFile("x.gguf", url=url, size=size, sha256=sha256)


def collect(work: Generator[Progress, None, T]) -> tuple[list[Progress], T]:
    events = []
    while True:
        try:
            events.append(next(work))
        except StopIteration as end:
            return events, end.value


def advance(work: Generator[Progress, None, Fetched], done_bytes: int) -> Progress:
    """Run ``work`` until that much is there."""
    return next(event for event in work if event.done_bytes >= done_bytes)


def notes(events: list[Progress]) -> str:
    return "\n".join(event.note for event in events if event.note)


def right(fetched: Fetched, content: Content) -> bool:
    actual = hashlib.sha256(fetched.path.read_bytes()).hexdigest()
    return actual == content.sha256 == fetched.sha256 and fetched.size == content.size


# It arrives


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [0, 1, 65_537, 30 * MB])
def test_brings_the_file_once(hub: Hub, partials: Path, size: int, known: bool) -> None:
    content = Generated(size)
    events, fetched = collect(fetch(serve(hub, content, known=known), partials, NETWORK))
    assert right(fetched, content)
    assert hub.bytes_sent() == size
    assert [path.name for path in partials.iterdir()] == [fetched.path.name]
    done = [event.done_bytes for event in events if event.phase == "download"]
    assert done == sorted(done)


def test_uses_several_connections(hub: Hub, partials: Path) -> None:
    content = Generated(30 * MB)
    fault = hub.fault("x.gguf", "stall", skip=1)  # one hangs, the others go on
    work = fetch(serve(hub, content), partials, NETWORK)
    advance(work, 20 * MB)
    assert fault.reached.is_set()
    fault.release.set()
    assert right(finish(work), content)


def test_follows_redirects_and_keeps_the_token_at_home(hub: Hub, partials: Path) -> None:
    content = Generated(10 * MB)
    hub.add_repo("o/n", {"x.gguf": content}, private=True)
    remote = RemoteFile(
        "x.gguf",
        url=f"{hub.url}/o/n/resolve/main/x.gguf",
        size=content.size,
        sha256=content.sha256,
        token="hf_valid",
    )
    assert right(finish(fetch(remote, partials, NETWORK)), content)
    assert {seen.authorization for seen in hub.requests if seen.host == "hub"} == {
        "Bearer hf_valid"
    }
    assert {seen.authorization for seen in hub.requests if seen.host == "cdn"} == {""}


def test_a_password_from_netrc_stays_at_home_too(
    hub: Hub, partials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_ollama("library/m", "latest", {"model": b"bytes"})
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    digest = hashlib.sha256(b"bytes").hexdigest()
    url = f"{hub.url}/v2/library/m/blobs/sha256:{digest}"
    finish(fetch(RemoteFile("m", url=url), partials, NETWORK))
    assert [(seen.host, seen.authorization) for seen in hub.requests] == [
        ("hub", "Basic bWU6c2VjcmV0"),
        ("cdn", ""),
    ]


def test_goes_through_the_proxy_of_the_environment(
    hub: Hub, partials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Generated(100_000)
    serve(hub, content)
    monkeypatch.setenv("HTTP_PROXY", hub.url)
    remote = RemoteFile("x.gguf", url="http://models.invalid/files/x.gguf")
    assert right(finish(fetch(remote, partials, NETWORK)), content)
    assert hub.requests[0].headers["host"] == "models.invalid"


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_trusts_the_certificates_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    pem = tmp_path / "ca.pem"
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", pem, "-out", tmp_path / "c"], check=True, stderr=-3)
    with pem.open("ab") as file:
        file.write((tmp_path / "c").read_bytes())
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Hub(certificate=pem) as hub:
        url = hub.add_file("x", b"secret")
        with pytest.raises(ConnectionLost, match="certificate") as caught:
            get_bytes(url, NETWORK)
        assert "SSL_CERT_FILE" in caught.value.hint
        monkeypatch.setenv(variable, str(tmp_path / "c"))
        assert get_bytes(url, NETWORK) == b"secret"
    monkeypatch.setenv(variable, str(tmp_path / "none"))
    with pytest.raises(InvalidConfig, match="none"):
        get_bytes(url, NETWORK)


def test_limit_rate_holds_back_all_connections_together(hub: Hub, partials: Path) -> None:
    content = Generated(30 * MB)
    limited = replace(NETWORK, limit_rate_bytes=MB // 10)
    work = fetch(serve(hub, content), partials, limited)
    events = [event for event, _ in zip(work, range(15), strict=False)]
    work.close()
    # Unlimited, all of it is there by now.
    assert events[-1].done_bytes < content.size / 10


def test_without_ranges(hub: Hub, partials: Path) -> None:
    content = Generated(10 * MB)
    hub.fault("x.gguf", "no-range", times=None)
    events, fetched = collect(fetch(serve(hub, content), partials, NETWORK))
    assert right(fetched, content)
    assert "cannot resume" in notes(events)
    assert hub.bytes_sent() == content.size


def test_without_ranges_starts_over(hub: Hub, partials: Path) -> None:
    content = Generated(10 * MB)
    hub.fault("x.gguf", "truncate", after=5 * MB)
    hub.fault("x.gguf", "no-range", times=None)
    remote = serve(hub, content)
    events, fetched = collect(fetch(remote, partials, NETWORK))
    assert right(fetched, content)
    assert "trying again" in notes(events) and "cannot resume" in notes(events)
    assert hub.bytes_sent() == 5 * MB + content.size


# It resumes


def kill_often(hub: Hub, partials: Path, content: Generated, kills: int, seed: int) -> None:
    remote = serve(hub, content)
    arguments = [remote.url, str(remote.size), remote.sha256, str(partials)]
    command = [sys.executable, "-c", CHILD, *arguments]
    moments = random.Random(seed)
    for goal in sorted(moments.randrange(content.size) for _ in range(kills)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if int(line.split()[1]) >= goal:
                    break
            child.send_signal(signal.SIGKILL)
    fetched = finish(fetch(remote, partials, NETWORK))
    assert right(fetched, content)
    assert hub.bytes_sent("x.gguf") < 1.2 * content.size


def test_resumes_after_sigkill(hub: Hub, partials: Path) -> None:
    hub.fault("x.gguf", "slow", times=None, rate=20 * MB)
    kill_often(hub, partials, Generated(30 * MB), kills=3, seed=1)


@pytest.mark.accept
def test_resumes_after_20_sigkills(hub: Hub, partials: Path) -> None:
    kill_often(hub, partials, Generated(200 * MB), kills=20, seed=2)


def test_closing_keeps_what_arrived(hub: Hub, partials: Path) -> None:
    content = Generated(20 * MB)
    remote = serve(hub, content)
    stalls = [hub.fault("x.gguf", "stall", after=2 * MB) for _ in range(4)]
    work = fetch(remote, partials, NETWORK)
    advance(work, 8 * MB - 4 * 65_536)
    work.close()  # all four connections hang in a read by now, the rest in their hands
    assert all(fault.reached.is_set() for fault in stalls)
    header, done_bytes = peek(partials, remote.sha256)
    assert (header.url, header.size, done_bytes) == (remote.url, content.size, 8 * MB)
    assert right(finish(fetch(remote, partials, NETWORK)), content)
    assert hub.bytes_sent() == content.size


@pytest.mark.parametrize("kind", ["truncate", "stall"])
@pytest.mark.parametrize("known", [True, False])
def test_a_lost_connection_is_resumed(hub: Hub, partials: Path, kind: str, known: bool) -> None:
    content = Generated(10 * MB)
    hub.fault("x.gguf", kind, times=3, after=MB)
    remote = serve(hub, content, known=known)
    events, fetched = collect(fetch(remote, partials, replace(NETWORK, timeout_seconds=0.5)))
    assert right(fetched, content)
    assert "trying again in" in notes(events)
    assert hub.bytes_sent() == content.size


def test_a_torn_journal_costs_one_piece(hub: Hub, partials: Path) -> None:
    content = Generated(2 * MB)
    remote = serve(hub, content)
    hub.fault("x.gguf", "truncate", times=None, after=MB)
    hub.fault("x.gguf", "status", times=None, skip=1)
    with pytest.raises(ServerFailed):
        finish(fetch(remote, partials, NETWORK))
    (journal,) = partials.glob("*.map")
    os.truncate(journal, journal.stat().st_size - 5)
    _, done_bytes = peek(partials, remote.sha256)
    assert MB - 65_536 * 2 <= done_bytes < MB


def interrupted(hub: Hub, partials: Path, content: Content, done_bytes: int) -> RemoteFile:
    """Leave a partial with the first ``done_bytes`` of ``content``, in pieces of 64 KiB."""
    remote = serve(hub, content)
    partials.mkdir()
    partial = PartialFile(partials, key_of(remote.url, remote.sha256))
    partial.describe(Header(remote.url, content.size, content.etag, remote.sha256))
    for offset in range(0, done_bytes, 65_536):
        partial.write(offset, content.read(offset, min(65_536, done_bytes - offset)))
    partial.close()
    return remote


@pytest.mark.parametrize("known", [True, False])
def test_damaged_pieces_are_fetched_again(hub: Hub, partials: Path, known: bool) -> None:
    content = Generated(10 * MB)
    remote = interrupted(hub, partials, content, 10 * MB - 1)
    if not known:
        for path in list(partials.iterdir()):
            path.rename(path.with_stem(key_of(remote.url, "")))
        remote = replace(remote, sha256="", size=-1)
    (data,) = partials.glob("*.part")
    with data.open("r+b") as file:
        file.seek(3 * MB)
        file.write(bytes(1000))
    events, fetched = collect(fetch(remote, partials, NETWORK))
    assert right(fetched, content)
    assert "damaged" in notes(events)
    assert hub.bytes_sent() <= 1 + 2 * 65_536


def test_a_journal_that_lies_is_not_believed(hub: Hub, partials: Path) -> None:
    content = Generated(2 * MB)
    remote = interrupted(hub, partials, content, MB)
    (journal,) = partials.glob("*.map")
    with journal.open("ab") as file:
        file.write(b"\xff" * 32 + random.Random(3).randbytes(800))
    assert right(finish(fetch(remote, partials, NETWORK)), content)
    assert hub.bytes_sent() == MB


@pytest.mark.parametrize("text", [b"", b"not json", b"[]\n", b'{"other": 1}\n'])
def test_an_unreadable_journal_starts_over(hub: Hub, partials: Path, text: bytes) -> None:
    content = Generated(MB)
    remote = interrupted(hub, partials, content, MB // 2)
    (journal,) = partials.glob("*.map")
    journal.write_bytes(text)
    assert right(finish(fetch(remote, partials, NETWORK)), content)


# It is right or it is refused


def test_corrupt_bytes_are_refused_and_dropped(hub: Hub, partials: Path) -> None:
    content = Generated(MB)
    hub.fault("x.gguf", "corrupt", after=1234)
    remote = serve(hub, content)
    with pytest.raises(ChecksumMismatch, match=content.sha256):
        finish(fetch(remote, partials, NETWORK))
    assert list(partials.iterdir()) == []
    assert right(finish(fetch(remote, partials, NETWORK)), content)


def test_another_size_than_promised_is_refused(hub: Hub, partials: Path) -> None:
    remote = replace(serve(hub, Generated(MB)), size=MB + 1)
    with pytest.raises(ChecksumMismatch, match="1,000,001"):
        finish(fetch(remote, partials, NETWORK))


def test_a_file_that_changes_meanwhile_starts_again(hub: Hub, partials: Path) -> None:
    old, new = Generated(10 * MB, seed=1), Generated(9 * MB, seed=2)
    hub.fault("x.gguf", "changed", skip=1, content=new)
    events, fetched = collect(fetch(serve(hub, old, known=False), partials, NETWORK))
    assert right(fetched, new)
    assert "changed" in notes(events)
    done = [event.done_bytes for event in events if event.phase == "download"]
    assert done == sorted(done)


def test_a_file_that_changed_between_two_runs_starts_again(hub: Hub, partials: Path) -> None:
    old, new = Generated(10 * MB, seed=1), Generated(10 * MB, seed=2)
    remote = serve(hub, old, known=False)
    hub.fault("x.gguf", "stall", after=MB)
    work = fetch(remote, partials, NETWORK)
    advance(work, MB)
    work.close()
    hub.add_file("x.gguf", new)
    events, fetched = collect(fetch(remote, partials, NETWORK))
    assert right(fetched, new)
    assert "changed" in notes(events)


# It says what went wrong


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (401, {}, AccessDenied),
        (403, {}, Gated),
        (404, {}, RemoteNotFound),
        (418, {}, ServerFailed),
        (429, {}, RateLimited),
        (429, {"Retry-After": "7200"}, RateLimited),
        (500, {}, ServerFailed),
        (503, {"Retry-After": "Wed, 21 Oct 2150 07:28:00 GMT"}, ServerFailed),
    ],
)
def test_refusals(
    hub: Hub, partials: Path, status: int, headers: dict[str, str], error: type[LocalLlamaError]
) -> None:
    remote = serve(hub, Generated(MB))
    fault = hub.fault("x.gguf", "status", times=None, status=status, headers=headers)
    with pytest.raises(error) as caught:
        finish(fetch(remote, partials, NETWORK))
    assert "127.0.0.1" in caught.value.message
    assert caught.value.hint or status == 418
    assert list(partials.iterdir()) == []
    fault.times = 0
    assert right(finish(fetch(remote, partials, NETWORK)), Generated(MB))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_outlasted(hub: Hub, partials: Path, status: int) -> None:
    content = Generated(MB)
    hub.fault("x.gguf", "status", status=status, headers={"Retry-After": "0"})
    events, fetched = collect(fetch(serve(hub, content), partials, NETWORK))
    assert right(fetched, content)
    assert f"({status}" in notes(events) and "trying again in" in notes(events)


def test_what_arrived_before_a_failure_is_kept(hub: Hub, partials: Path) -> None:
    content = Generated(2 * MB)
    remote = serve(hub, content)
    hub.fault("x.gguf", "truncate", after=MB)
    failure = hub.fault("x.gguf", "status", times=None, skip=1)
    with pytest.raises(ServerFailed) as caught:
        finish(fetch(remote, partials, NETWORK))
    assert "is kept" in caught.value.hint
    failure.times = 0
    assert right(finish(fetch(remote, partials, NETWORK)), content)
    assert hub.bytes_sent() - content.size < 1000  # the answers that said 500


def test_gated_repositories_name_their_page(hub: Hub, partials: Path) -> None:
    hub.add_repo("o/gated", {"x.gguf": b"x"}, gated=True)
    remote = RemoteFile("x.gguf", url=f"{hub.url}/o/gated/resolve/main/x.gguf")
    for token in ("", "hf_valid"):
        with pytest.raises(Gated) as caught:
            finish(fetch(replace(remote, token=token), partials, NETWORK))
        assert caught.value.page == f"{hub.url}/o/gated"
    with pytest.raises(AccessDenied, match="token"):
        finish(fetch(replace(remote, token="hf_wrong"), partials, NETWORK))
    missing = replace(remote, url=f"{hub.url}/o/none/resolve/main/x.gguf")
    with pytest.raises(RemoteNotFound, match="no repository o/none"):
        finish(fetch(missing, partials, NETWORK))


def test_an_expired_signature_is_renewed(hub: Hub, partials: Path) -> None:
    content = Generated(MB)
    hub.add_repo("o/n", {"x.gguf": content})
    hub.fault("x.gguf", "status", host="cdn", status=403)
    remote = RemoteFile("x.gguf", url=f"{hub.url}/o/n/resolve/main/x.gguf")
    assert right(finish(fetch(remote, partials, NETWORK)), content)


def test_a_redirect_loop_ends(hub: Hub, partials: Path) -> None:
    hub.fault("x.gguf", "redirect-loop", times=None)
    with pytest.raises(ServerFailed, match="circle"):
        finish(fetch(serve(hub, Generated(1)), partials, NETWORK))


def test_a_server_that_stays_silent(hub: Hub, partials: Path) -> None:
    hub.fault("x.gguf", "stall", times=None)
    impatient = replace(NETWORK, timeout_seconds=0.2)
    with pytest.raises(ConnectionLost, match=r"sent nothing for 0\.2 seconds"):
        finish(fetch(serve(hub, Generated(MB)), partials, impatient))


def test_nobody_listens(partials: Path) -> None:
    with Hub() as gone:
        url = gone.add_file("x.gguf", b"")
    with pytest.raises(ConnectionLost, match=r"cannot reach 127\.0\.0\.1\S* \([^\[\d]+\)$"):
        finish(fetch(RemoteFile("x.gguf", url=url), partials, NETWORK))


def test_offline_asks_nobody(hub: Hub, partials: Path) -> None:
    remote = serve(hub, Generated(1))
    with pytest.raises(Offline):
        finish(fetch(remote, partials, replace(NETWORK, offline=True)))
    with pytest.raises(Offline):
        probe(remote.url, replace(NETWORK, offline=True))
    assert hub.requests == []


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
from localllama.errors import DiskFull
try:
    exec(sys.argv.pop(1))
except DiskFull as full:
    print(full.message)
"""


def test_a_full_disk_keeps_what_arrived(hub: Hub, partials: Path) -> None:
    content = Generated(3 * MB)
    remote = serve(hub, content)
    arguments = [remote.url, str(remote.size), remote.sha256, str(partials)]
    command = [sys.executable, "-c", FULL, CHILD, *arguments]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "disk is full" in out.splitlines()[-1]
    _, done_bytes = peek(partials, remote.sha256)
    assert 0 < done_bytes <= MB
    before = hub.bytes_sent()
    assert right(finish(fetch(remote, partials, NETWORK)), content)
    assert hub.bytes_sent() - before == content.size - done_bytes


def test_a_folder_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError):
        finish(fetch(serve(hub, Generated(1)), tmp_path / "file" / "partials", NETWORK))


# Several at once


def test_two_processes_download_once(hub: Hub, partials: Path) -> None:
    content = Generated(10 * MB)
    remote = serve(hub, content)
    stall = hub.fault("x.gguf", "stall", after=MB)
    first = fetch(remote, partials, NETWORK)
    advance(first, MB)
    arguments = [remote.url, str(remote.size), remote.sha256, str(partials)]
    command = [sys.executable, "-c", CHILD, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
        assert second.stdout is not None
        phase, done = second.stdout.readline().split()
        assert phase == "wait" and int(done) >= MB
        stall.release.set()
        assert right(finish(first), content)
        phases = {line.split()[0] for line in second.stdout}
    assert second.returncode == 0
    assert phases <= {"wait", "verify"} and "verify" in phases
    assert hub.bytes_sent() == content.size


def test_the_second_goes_on_where_the_first_died(hub: Hub, partials: Path) -> None:
    content = Generated(10 * MB)
    remote = serve(hub, content)
    hub.fault("x.gguf", "stall", after=MB)
    first = fetch(remote, partials, NETWORK)
    advance(first, 3 * MB)
    second = fetch(remote, partials, NETWORK)
    assert next(second).phase == "wait"
    first.close()
    events, fetched = collect(second)
    assert right(fetched, content)
    download = [event for event in events if event.phase == "download"]
    assert download[0].done_bytes >= 3 * MB


def test_who_waited_finds_it_in_the_store(hub: Hub, partials: Path, tmp_path: Path) -> None:
    content = Generated(100_000)
    remote = serve(hub, content)
    blob = tmp_path / "blob"
    hub.fault("x.gguf", "stall").release.set()

    def have() -> Path | None:
        return blob if blob.exists() else None

    first = fetch(remote, partials, NETWORK, have=have)
    next(first)
    second = fetch(remote, partials, NETWORK, have=have)
    assert next(second).phase == "wait"
    finish(first).path.rename(blob)
    assert finish(second) == Fetched(blob, content.sha256, content.size)
    assert hub.bytes_sent() == content.size


def test_a_damaged_done_file_is_fetched_again(hub: Hub, partials: Path) -> None:
    content = Generated(100_000)
    remote = serve(hub, content)
    fetched = finish(fetch(remote, partials, NETWORK))
    fetched.path.write_bytes(b"something else")
    assert right(finish(fetch(remote, partials, NETWORK)), content)


def test_discard(hub: Hub, partials: Path) -> None:
    remote = serve(hub, Generated(10 * MB))
    hub.fault("x.gguf", "stall", after=MB)
    work = fetch(remote, partials, NETWORK)
    advance(work, MB)
    with pytest.raises(StoreError, match="under way"):
        discard(partials, remote.sha256)
    work.close()
    discard(partials, remote.sha256)
    assert list(partials.iterdir()) == []


# Small questions


def test_probe(hub: Hub) -> None:
    content = Generated(MB)
    hub.add_repo("o/n", {"x.gguf": content})
    head = probe(f"{hub.url}/o/n/resolve/main/x.gguf", NETWORK)
    assert (head.size, head.etag, head.accepts_ranges) == (MB, content.etag, True)
    assert head.final_url.startswith(hub.cdn_url)
    wait_until(lambda: hub.bytes_sent() == 1)  # the server counts after it has sent
    hub.fault("x.gguf", "no-range")
    assert probe(f"{hub.url}/o/n/resolve/main/x.gguf", NETWORK) == replace(
        head, accepts_ranges=False
    )


@pytest.mark.parametrize("kind", ["slow", "no-range"])
def test_read_range(hub: Hub, kind: str) -> None:
    content = Generated(MB)
    hub.fault("x.gguf", kind, times=None, rate=1e9)
    url = serve(hub, content).url
    for start, length in ((0, 10), (65_000, 2000), (MB - 5, 100), (MB, 10), (0, 0)):
        assert read_range(url, start, length, NETWORK) == content.read(start, length)


def test_get_json_and_bytes(hub: Hub) -> None:
    hub.fault("good", "status", status=503)
    assert get_json(hub.add_file("good.json", b'{"a": [1]}'), NETWORK) == {"a": [1]}
    with pytest.raises(ServerFailed, match="not JSON"):
        get_json(hub.add_file("page.html", b"<html>"), NETWORK)
    with pytest.raises(ServerFailed, match="more than"):
        get_bytes(hub.add_file("large", b"x" * 1000), NETWORK, limit_bytes=999)
    with pytest.raises(RemoteNotFound):
        get_bytes(hub.url + "/nothing", NETWORK)
