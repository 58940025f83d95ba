"""Plain ``localllama`` at a terminal: the app."""

from __future__ import annotations

from localllama.cli.app import App


def start(*, keep: bool) -> int:
    """Run the app until the user leaves it; returns the exit code."""
    from localllama.cli.run import open_history
    from localllama.runner import Runner
    from localllama.tui.app import LocalLlamaApp

    app = App.start()
    with open_history(app, keep=keep) as history:
        runner = Runner(app.store, app.config, app.paths)
        terminal = LocalLlamaApp(runner, app.store, app.config, history)
        terminal.run()
        return terminal.return_code or 0
