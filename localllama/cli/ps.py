"""``localllama ps``: the models that are loaded now, whoever loaded them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from localllama.cli import output
from localllama.cli.app import App, json_option
from localllama.runner import Runner, Running


@click.command("ps", epilog="\b\nExample:\n  localllama ps --json")
@json_option
def ps_command(as_json: bool) -> None:
    """List the models that are loaded, the latest first."""
    app = App.start()
    loaded = Runner(app.store, app.config, app.paths).running()
    if as_json:
        output.as_json({"models": [_facts(running) for running in loaded]})
        return
    output.table(
        ("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "PARALLEL", "UNTIL"),
        (
            (
                running.record.label.name,
                running.record.label.digest[:12],
                output.size(running.record.label.size_bytes),
                running.processor,
                str(running.record.context_length),
                str(running.record.label.slots),
                running.until,
            )
            for running in loaded
        ),
    )


def _facts(running: Running) -> dict[str, Any]:
    record, status = running.record, running.status
    left = status.seconds_left if status else None
    expires = None if left is None else datetime.now(UTC) + timedelta(seconds=left)
    return {
        "name": record.label.name,
        "digest": record.label.digest,
        "size_bytes": record.label.size_bytes,
        "gpu_bytes": record.label.gpu_bytes,
        "processor": running.processor,
        "devices": {held.device: held.total_bytes for held in record.label.devices},
        "explanation": record.label.explanation,
        "context_length": record.context_length,
        "slots": record.label.slots,
        "parallel": record.label.parallel,
        "pid": record.pid,
        "started_at": record.started_at,
        "expires_at": expires.isoformat(timespec="seconds") if expires else None,
        "clients": status.clients if status else None,
        "running": status.running if status else None,
    }
