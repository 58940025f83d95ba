"""One prompt to two models, or to one with two sets of parameters, side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Input, Static

from localllama.engine import sampling
from localllama.errors import InvalidParameter
from localllama.harmless import printable
from localllama.tui.comparing import Contestant, Side
from localllama.tui.messages import SideChanged
from localllama.tui.page import Page
from localllama.tui.screens.dialogs import Ask, Choose
from localllama.tui.widgets.keys import Keys

if TYPE_CHECKING:
    from localllama.tui.app import LocalLlamaApp

_FRAME_SECONDS = 1 / 15  # two texts are drawn
_LEFT, _RIGHT = 0, 1


class CompareScreen(Page[None]):
    """Nothing here is kept: what is worth it can be asked in a chat."""

    app: LocalLlamaApp

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Stop/back", priority=True),
        Binding("ctrl+l", "model(0)", "Left model", priority=True),
        Binding("ctrl+r", "model(1)", "Right model", priority=True),
        Binding("ctrl+t", "parameters(0)", "Left parameters", priority=True),
        Binding("ctrl+y", "parameters(1)", "Right parameters", priority=True),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._contestants: list[Contestant] = []
        self._sides: list[Side] = []

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Horizontal(id="sides"):
            for number in (_LEFT, _RIGHT):
                with Vertical(classes="side"):
                    yield Static(id=f"title-{number}", classes="title", markup=False)
                    with VerticalScroll():
                        yield Static(id=f"reply-{number}", markup=False)
                    yield Static(id=f"state-{number}", classes="note", markup=False)
        yield Input(placeholder="Ask both; Enter sends", id="prompt")
        yield Keys()

    def on_screen_resume(self) -> None:
        """Begin with the chat's model and the one installed latest beside it."""
        models = self.app.known_models()
        if not self._contestants and models:
            first = self.app.models.installed or models[0]
            second = next((model for model in models if model.name != first.name), first)
            self._contestants = [Contestant(first), Contestant(second)]
        self._show_titles()
        self.query_one("#prompt").focus()

    def _show_titles(self) -> None:
        for number, contestant in enumerate(self._contestants):
            self.query_one(f"#title-{number}", Static).update(printable(contestant.title))
        if not self._contestants:
            self.query_one("#title-0", Static).update("No model is installed: F2 gets one")

    @on(Input.Submitted, "#prompt")
    def _ask(self, event: Input.Submitted) -> None:
        event.stop()
        prompt = event.value.strip()
        if not prompt or not self._contestants:
            return
        if any(side.busy for side in self._sides):
            self.notify("The models are still replying: Esc stops them")
            return
        app = self.app
        self._sides = [Side(c, app.runner, app.config, self._changed) for c in self._contestants]
        left, right = self._sides
        left.start(prompt, None)
        right.start(prompt, left)
        event.input.value = ""
        event.input.placeholder = prompt

    def _changed(self, side: Side) -> None:
        """Called in a side's thread: ask for one drawing at a time."""
        if not side.told:
            side.told = True
            self.post_message(SideChanged(side))

    def on_side_changed(self, event: SideChanged) -> None:
        """Draw a side, but not too often."""
        self.set_timer(_FRAME_SECONDS, lambda: self._draw(event.side))

    def _draw(self, side: Side) -> None:
        side.told = False  # what comes from here on is told again
        if side in self._sides:
            number = self._sides.index(side)
            reply = self.query_one(f"#reply-{number}", Static)
            reply.update(printable(side.text))
            self.query_one(f"#state-{number}", Static).update(printable(side.state))
            pane = reply.parent
            if isinstance(pane, VerticalScroll) and pane.is_vertical_scroll_end:
                pane.scroll_end(animate=False)

    # who is compared

    def action_model(self, number: int) -> None:
        """Choose the model of a side."""
        models = {model.name: model for model in self.app.known_models()}
        if not self._contestants:
            return

        def chosen(name: str | None) -> None:
            if name is not None:
                self._contestants[number] = replace(self._contestants[number], model=models[name])
                self._show_titles()

        side = ("left", "right")[number]
        present = self._contestants[number].model.name
        options = [(name, Contestant(model).title) for name, model in models.items()]
        self.app.push_screen(Choose(f"Which model at the {side}?", options, present), chosen)

    def action_parameters(self, number: int) -> None:
        """Set the parameters of a side."""
        if not self._contestants:
            return
        own = self._contestants[number].parameters

        def give(text: str) -> None:
            changed = replace(self._contestants[number], parameters=_read(text))
            self._contestants[number] = changed
            self._show_titles()

        side = ("left", "right")[number]
        question = f"Parameters at the {side}, like temperature=0.2 top_k=10; - for none"
        value = " ".join(f"{name}={value}" for name, value in own.items())
        self.app.push_screen(Ask(question, give, value))

    def action_back(self) -> None:
        """Stop the replies, or leave."""
        busy = [side for side in self._sides if side.busy]
        for side in busy:
            side.stop()
        if not busy:
            self.dismiss()


def _read(text: str) -> dict[str, object]:
    """Return the parameters in ``name=value name=value``; raises InvalidParameter."""
    parameters: dict[str, object] = {}
    for part in text.split() if text != "-" else []:
        name, equals, value = part.partition("=")
        if not equals:
            raise InvalidParameter(f"{part!r} is no parameter", "write temperature=0.2 top_k=10")
        parameter = sampling.lookup(name)
        parameters[parameter.name] = parameter.convert(value)
    return parameters
