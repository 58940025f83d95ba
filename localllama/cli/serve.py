"""``localllama serve``: Ollama's, OpenAI's and Anthropic's APIs on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from localllama.cli import output
from localllama.cli.app import App, offline_option
from localllama.errors import InvalidParameter
from localllama.runner import Runner
from localllama.wants import MOST_SLOTS

_EXAMPLES = """\b
Examples:
  localllama serve
  localllama serve --host 127.0.0.1:8080
  localllama serve --host 0.0.0.0 --api-key-file ~/.config/localllama/keys
"""


@click.command("serve", epilog=_EXAMPLES)
@click.option("--host", metavar="HOST[:PORT]", help="Where to listen; default 127.0.0.1:11434.")
@click.option("--port", "--ollama-port", type=click.IntRange(0, 65535), help="Another port.")
@click.option("--api-key", multiple=True, help="Let in who has this key. May be given again.")
@click.option("--api-key-file", type=click.Path(), help="A file with a key on each line.")
@click.option("--insecure-no-auth", is_flag=True, help="Let everybody in the network in.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="A further name of this server.")
@click.option(
    "--parallel",
    type=click.IntRange(1, MOST_SLOTS),
    help="Replies at once from one model; default as many as are worth it here.",
)
@click.option(
    "--pull",
    "pulls",
    type=click.Choice(("any", "catalog", "none")),
    help="What clients may fetch; any also lets them make and delete models. "
    "Default any on this machine, catalog in a network.",
)
@click.option(
    "--grace", type=click.IntRange(0, 3600), default=30, help="Seconds for replies at the end."
)
@offline_option
def serve_command(
    host: str | None,
    port: int | None,
    api_key: tuple[str, ...],
    api_key_file: str | None,
    insecure_no_auth: bool,
    allow_host: tuple[str, ...],
    parallel: int | None,
    pulls: str | None,
    grace: int,
) -> None:
    """Serve the installed models to programs that know Ollama, OpenAI or Anthropic.

    Models are loaded when they are asked for and shared with run. Only programs of this machine
    can connect, unless --host says otherwise.
    """
    from dataclasses import replace

    from localllama.server import serve

    app = App.start()
    config = app.config
    if parallel is not None:
        config = replace(config, run=replace(config.run, slots=parallel))
    address = serve.parse_address(host or app.config.serve.host)
    if port is not None:
        address = replace(address, port=port)
    keys = (*api_key, *_lines(api_key_file), *app.config.serve.api_key.split(","))
    policy = serve.policy(
        address,
        app.config,
        keys=tuple(filter(None, (key.strip() for key in keys))),
        hosts=allow_host,
        pulls=pulls or "",
        is_open=insecure_no_auth,
    )
    with serve.listen(address) as sock:
        bound = replace(address, port=sock.getsockname()[1])
        serve.serve(
            Runner(app.store, config, app.paths),
            app.store,
            config,
            sock,
            policy,
            grace_seconds=grace,
            on_ready=lambda: output.say(f"serving {bound}, also at /v1; Ctrl-C ends it"),
        )


def _lines(file: str | None) -> list[str]:
    if file is None:
        return []
    try:
        return Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidParameter(f"cannot read the keys in {file}: {reason}") from error
