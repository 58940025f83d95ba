"""The line editor of the conversation at the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localllama.cli import output


class Editor:
    """Reads messages: line editing, history, completion of slash commands, three quotes."""

    def __init__(self, file: Path, commands: Mapping[str, Any]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import NestedCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        self.stopped = False  # the last thing the user did was Ctrl-C
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            self._file_history: Any = FileHistory(str(file))
        except OSError:  # a read-only home: talk all the same
            self._file_history = InMemoryHistory()
        self._forgetful = InMemoryHistory()
        completer = NestedCompleter.from_nested_dict(commands)
        self._prompt: PromptSession[str] = PromptSession(
            history=self._file_history, completer=completer, complete_while_typing=False
        )

    def remember(self, yes: bool) -> None:
        """Keep what is typed on disk, or from now on only for this sitting."""
        self._prompt.history = self._file_history if yes else self._forgetful
        self._prompt.default_buffer.history = self._prompt.history

    def read(self) -> str | None:
        """Return the next message or command, None when the user leaves."""
        lines: list[str] = []
        while True:
            prompt = "... " if lines else ">>> "
            try:
                line = self._prompt.prompt(prompt, placeholder=_placeholder(lines))
            except EOFError:
                return None
            except KeyboardInterrupt:
                if self.stopped:
                    return None
                output.say("Ctrl-C again, Ctrl-D or /bye leaves")
                self.stopped = True
                lines = []
                continue
            self.stopped = False
            line = line.encode(errors="replace").decode()  # bytes typed that are no UTF-8
            if not lines and not line.lstrip().startswith('"""'):
                return line
            lines.append(line if lines else line.lstrip()[3:])
            if lines[-1].rstrip().endswith('"""'):
                lines[-1] = lines[-1].rstrip()[:-3]
                return "\n".join(lines)


def _placeholder(lines: list[str]) -> Any:
    from prompt_toolkit.formatted_text import HTML

    text = 'end with """' if lines else "Send a message (/? for help)"
    return HTML(f"<ansibrightblack>{text}</ansibrightblack>")
