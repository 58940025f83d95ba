"""``localllama verify`` and ``localllama prune``: is the store sound, and what can go."""

from __future__ import annotations

from pathlib import Path

import click

from localllama.cli import output
from localllama.cli.app import App, complete_installed, json_option, yes_option
from localllama.cli.progress import follow
from localllama.engine import snapshots
from localllama.errors import BadFile
from localllama.files import storing
from localllama.store import check


@click.command("verify", epilog="\b\nExample:\n  localllama verify smollm2:135m")
@click.argument("models", nargs=-1, shell_complete=complete_installed)
@json_option
def verify_command(models: tuple[str, ...], as_json: bool) -> None:
    """Hash the data of MODELS (default: all) again and compare it with the manifests."""
    app = App.start()
    chosen, damaged = app.store.scan()
    if models:
        chosen, damaged = [app.installed(model) for model in models], []
    problems = follow(check.verify(app.store, chosen))
    problems += [check.Problem(Path(e.path).stem, e.path, e.message) for e in damaged]
    bad = {problem.model for problem in problems}
    if as_json:
        output.as_json(
            {
                "models": [{"name": model.name, "ok": model.name not in bad} for model in chosen],
                "problems": [
                    {"model": p.model, "file": p.file, "message": p.message} for p in problems
                ],
            }
        )
    else:
        for model in chosen:
            output.result(f"{model.name}: {'damaged' if model.name in bad else 'ok'}")
        for problem in problems:
            output.say(f"{problem.model}: {problem.file} {problem.message}")
    if problems:
        raise BadFile(
            f"{len(problems)} file{'s are' if len(problems) > 1 else ' is'} damaged",
            "remove and pull again: " + ", ".join(sorted(bad)),
        )


@click.command("prune", epilog="\b\nExample:\n  localllama prune --dry-run")
@click.option("--partials", is_flag=True, help="Also downloads that could be resumed.")
@click.option("--cache", is_flag=True, help="Also what was computed of earlier conversations.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would go, remove nothing.")
@yes_option
@json_option
def prune_command(partials: bool, cache: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Show and remove files that no model uses. At a terminal it asks before it removes."""
    app = App.start()
    store, folder = app.store, app.paths.snapshots
    computed = [
        check.Garbage(path, size_bytes, "snapshot")
        for path, size_bytes in (snapshots.files(folder) if cache else ())
    ]

    def prune() -> list[check.Garbage]:
        with storing(folder):
            snapshots.remove(item.path for item in computed)
        return check.prune(store, partials=partials) + computed

    found = check.garbage(store, partials=partials) + computed
    if as_json:
        found = found if dry_run else prune()
        files = [{"path": str(i.path), "size_bytes": i.size_bytes, "kind": i.kind} for i in found]
        total = sum(item.size_bytes for item in found)
        output.as_json({"removed": not dry_run, "size_bytes": total, "files": files})
        return
    for item in found:
        output.result(f"{output.size(item.size_bytes):>8}  {item.kind:9}  {item.path.name}")
    if not found:
        output.say("nothing to remove")
    elif not dry_run and output.agreed("Remove them?", yes=yes):
        freed = sum(item.size_bytes for item in prune())
        output.say(f"{output.size(freed)} freed")
    waiting = [] if partials else check.garbage(store, partials=True)
    waiting_bytes = sum(item.size_bytes for item in waiting if item.kind == "partial")
    if waiting_bytes:
        output.say(
            f"{output.size(waiting_bytes)} of unfinished downloads stay; --partials removes them"
        )
