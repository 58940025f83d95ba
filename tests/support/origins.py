"""Checkpoints at the places that people pull them from: the hub, and behind Meta's link."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from tests.support.checkpoints import Shape, write_checkpoint, write_sentencepiece
from tests.support.hub import Hub
from tests.support.torch_files import write_meta

SMALL = Shape(layers=4, width=256, heads=8, kv_heads=4, hidden=512, vocabulary=400)
LICENCE = "LLAMA 2 COMMUNITY LICENSE AGREEMENT\nLlama 2 Version Release Date: July 18, 2023"
FUTURE = 4_000_000_000


def write_hugging_face(folder: Path, shape: Shape = SMALL, *, shards: int = 4) -> Path:
    """Write a whole checkpoint with its vocabulary and licence, and return ``folder``."""
    write_checkpoint(folder, shape, shards=shards)
    write_sentencepiece(folder, shape.vocabulary)
    (folder / "LICENSE").write_text(LICENCE)
    return folder


def publish(hub: Hub, repo: str, folder: Path) -> str:
    """Make the folder a repository of the hub, and return its commit."""
    files = {path.name: path for path in folder.iterdir()}
    return hub.add_repo(repo, files, license="llama2")


def link(hub: Hub, *, expires_at: int = FUTURE, signature: str = "abc") -> str:
    """Meta's link as the e-mail has it."""
    condition = {"DateLessThan": {"AWS:EpochTime": expires_at}}
    policy = json.dumps({"Statement": [{"Resource": "https://x/*", "Condition": condition}]})
    spelled = base64.b64encode(policy.encode()).decode().translate(str.maketrans("+=/", "-_~"))
    return f"{hub.url}/files/*?Policy={spelled}&Signature={signature}&Key-Pair-Id=K1"


def publish_as_meta(hub: Hub, folder: Path, model: str, *, shards: int) -> None:
    """Put a checkpoint in Meta's layout behind the link, with checklists."""
    write_meta(folder, SMALL, shards=shards)
    write_sentencepiece(folder, SMALL.vocabulary)
    tokenizer = folder / "tokenizer.model"
    names = ["params.json", *(f"consolidated.{number:02}.pth" for number in range(shards))]
    for name in names:
        hub.add_file(f"{model}/{name}", folder / name)
    listed = "".join(f"{_md5(folder / name)}  {name}\n" for name in names)
    hub.add_file(f"{model}/checklist.chk", listed.encode())
    hub.add_file("tokenizer.model", tokenizer)
    hub.add_file("tokenizer_checklist.chk", f"{_md5(tokenizer)}  tokenizer.model\n".encode())
    hub.add_file("LICENSE", LICENCE.encode())


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()
