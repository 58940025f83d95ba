"""Where each setting is kept, for one chat, one model or everywhere, and which value counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from localllama.amounts import size
from localllama.engine import remote, sampling
from localllama.errors import InvalidParameter
from localllama.plan import KV_TYPES, Plan, require_possible
from localllama.store import Installed
from localllama.wants import parameter_layers

if TYPE_CHECKING:
    from localllama.tui.app import LocalLlamaApp
    from localllama.tui.screens.chat import ChatScreen

SYSTEM, CONTEXT, KV_TYPE, THEME = "system prompt", "context length", "KV type", "theme"
_HELP = {
    SYSTEM: "What the model is told before everything else.",
    CONTEXT: "Tokens that the model sees at once; more take more memory.",
    KV_TYPE: "How the context is kept: q8_0 takes half the memory of f16.",
    THEME: "Colours of this app, light or dark.",
}
_LAYERS = ("chat", "model", "config.toml")  # that say something of memory

_NOT_APPLICABLE = "not applicable"  # to a model on another machine


class Scope(StrEnum):
    """For what a setting is made."""

    CHAT = "This chat"
    MODEL = "This model"
    EVERYWHERE = "Everywhere"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: what counts, where that comes from, and what each layer says, first wins."""

    name: str
    value: str
    origin: str
    help: str
    layers: tuple[tuple[str, str], ...]


class Settings:
    """The settings of the chat that is open, of a model, and of everything."""

    def __init__(self, app: LocalLlamaApp, chat: ChatScreen) -> None:
        self._app = app
        self._chat = chat
        self.model: Installed | None = app.models.installed
        self.plan: Plan | None = None  # how the model would be loaded, once somebody has asked

    @property
    def own(self) -> dict[str, object]:
        """The chat's sampling parameters."""
        conversation = self._chat.conversation
        return dict(conversation.chat.parameters if conversation else self._chat.settings)

    @property
    def system(self) -> str:
        """The system prompt that counts."""
        return next((text for _, text in self._systems() if text), "")

    def all(self) -> list[Setting]:
        """Return every setting as it stands; raises InvalidParameter for wrong values."""
        layers = [("chat", self.own)]
        layers += parameter_layers(self.model, self._app.config) if self.model else []
        resolved = sampling.resolve(layers)
        rows = [
            self._plain(SYSTEM, self._systems(), "none"),
            self._context(),
            self._loading(
                KV_TYPE, self._kv_types(self.model), self.plan.kv_type if self.plan else ""
            ),
            self._plain(THEME, [("config.toml", self._app.config.tui.theme)], self._app.theme),
        ]
        for parameter in sampling.PARAMETERS:
            said = [(label, _said(parameter, values)) for label, values in layers]
            value = shown(getattr(resolved.sampling, parameter.name))
            if self._elsewhere and parameter.name not in remote.SENT:
                value = _NOT_APPLICABLE
            origin = resolved.origins[parameter.name]
            about = f"{parameter.help} Accepted: {parameter.range}."
            rows.append(Setting(parameter.name, value, origin, about, tuple(said)))
        return rows

    def change(self, name: str, text: str, scope: Scope) -> None:
        """Set something, or with "" no longer; raises InvalidParameter and what storing raises."""
        if name == THEME:
            self._app.configure("tui", "theme", text or None)
            self._app.theme = text or self._app.usual_theme
        elif name == SYSTEM:
            self._change_system(text, scope)
        elif name in (CONTEXT, KV_TYPE):
            self._change_memory(name, text, scope)
        else:
            parameter = sampling.lookup(name)
            value = _listed(parameter, text) if text else None
            self._change_parameter(parameter.name, value, scope)

    def take(self, system: str, parameters: Mapping[str, Any]) -> None:
        """Give the chat all that a preset holds."""
        self._set_chat(dict(parameters))
        self._change_system(system, Scope.CHAT)

    def _change_parameter(self, name: str, value: object, scope: Scope) -> None:
        if scope is Scope.CHAT:
            self._set_chat(_with(self.own, name, value))
        elif scope is Scope.MODEL:
            model = self._need_model()
            self._save(replace(model, parameters=_with(model.parameters, name, value)))
        elif isinstance(value, dict):
            raise InvalidParameter(f"{name} cannot be set everywhere", "set it for the chat")
        else:
            also = sampling.lookup(name).aliases
            self._app.configure("parameters", name, value, also=also)  # type: ignore[arg-type]  # see convert()

    def _change_system(self, text: str, scope: Scope) -> None:
        if scope is Scope.EVERYWHERE:
            raise InvalidParameter("a system prompt is of a chat or a model", "Tab changes that")
        if scope is Scope.MODEL:
            self._save(replace(self._need_model(), system=text))
        elif self._chat.conversation is not None:
            self._chat.conversation.change(system=text)
        else:
            self._chat.system = text or None

    def _change_memory(self, name: str, text: str, scope: Scope) -> None:
        if name == CONTEXT and text and (not text.isdecimal() or not int(text)):
            raise InvalidParameter(f"the context length is a number of tokens, not {text!r}")
        trained = int(self.model.info.get("context_length") or 0) if self.model else 0
        if name == CONTEXT and text and trained:
            require_possible(int(text), trained)
        if name == KV_TYPE and text and text not in KV_TYPES:
            raise InvalidParameter(f"there is no KV type {text!r}", f"known: {', '.join(KV_TYPES)}")
        before, want = self._asked(), self._app.models.want
        if self._elsewhere and scope is not Scope.EVERYWHERE:
            raise InvalidParameter("the model is not local: its server decides that")
        if scope is Scope.EVERYWHERE:
            if name == CONTEXT:
                length = int(text) if text else None
                self._app.configure("run", "context_length", length, also=("ctx",))
            else:
                self._app.configure("run", "kv_type", text or None)
        elif scope is Scope.MODEL:
            key = "num_ctx" if name == CONTEXT else "kv_type"
            value = int(text) if text and name == CONTEXT else text or None
            model = self._need_model()
            self._save(replace(model, parameters=_with(model.parameters, key, value)))
        elif name == CONTEXT:
            want = replace(want, context_length=int(text) if text else 0)
        else:
            want = replace(want, kv_type=text)
        loaded = self._app.models.installed
        if loaded is None or loaded.remote:
            return
        self._app.models.want = want
        self._chat.keep_model()
        if self._asked() != before:  # else another layer wins, or it is another model's
            self._load_again()

    def _load_again(self) -> None:
        """Load the model with what is asked for now, but break off no reply."""
        self._app.models.outdated = True
        if self._chat.busy:
            self._app.notify("This holds from the next message: the model is loaded again then")
        else:
            self._app.models.again()
            self._app.notify("The model is loaded again with this")

    def _systems(self) -> list[tuple[str, str]]:
        conversation = self._chat.conversation
        chat = conversation.chat.system if conversation else self._chat.system
        return [("chat", chat or ""), ("model", self.model.system if self.model else "")]

    def _asked(self) -> list[str]:
        """The context length and KV type that the loaded model should have, "" = any."""
        loaded = self._app.models.installed
        both = self._contexts(loaded), self._kv_types(loaded)
        return [next((value for _, value in layers if value), "") for layers in both]

    def _contexts(self, model: Installed | None) -> list[tuple[str, str]]:
        own = model.parameters.get("num_ctx") if model else 0
        lengths = self._app.models.want.context_length, own, self._app.config.run.context_length
        return [(label, str(n or "")) for label, n in zip(_LAYERS, lengths, strict=True)]

    def _kv_types(self, model: Installed | None) -> list[tuple[str, str]]:
        own = model.parameters.get("kv_type") if model else ""
        types = self._app.models.want.kv_type, own, self._app.config.run.kv_type
        return [(label, str(kv or "")) for label, kv in zip(_LAYERS, types, strict=True)]

    @property
    def _elsewhere(self) -> bool:
        return self.model is not None and self.model.remote

    def _context(self) -> Setting:
        """The context length, with the number that the program chose and what it takes."""
        engine, length, kv_bytes = self._app.models.engine, 0, 0
        if engine is not None and self.model == self._app.models.installed:
            length = engine.ready.context_length
            kv_bytes = sum(held.kv_bytes for held in engine.label.devices)
        elif self.plan is not None:
            length = self.plan.context_length
            kv_bytes = sum(use.kv_bytes for use in self.plan.uses)
        setting = self._loading(CONTEXT, self._contexts(self.model), str(length or ""))
        if not kv_bytes or self._elsewhere:
            return setting
        return replace(setting, help=f"{setting.help} {length} take {size(kv_bytes)}.")

    def _loading(self, name: str, layers: list[tuple[str, str]], chosen: str) -> Setting:
        if self._elsewhere:
            return Setting(name, _NOT_APPLICABLE, sampling.DEFAULT, _HELP[name], ())
        default = f"{chosen} (by the program)" if chosen else "chosen by the program"
        return self._plain(name, layers, default)

    def _plain(self, name: str, layers: list[tuple[str, str]], default: str) -> Setting:
        first = next(((label, value) for label, value in layers if value), None)
        origin, value = first or (sampling.DEFAULT, default)
        return Setting(name, value, origin, _HELP[name], tuple(layers))

    def _set_chat(self, parameters: dict[str, object]) -> None:
        self._chat.settings = parameters
        if self._chat.conversation is not None:
            self._chat.conversation.change(parameters=parameters)

    def _need_model(self) -> Installed:
        if self.model is None:
            raise InvalidParameter("no model is chosen", "F2 shows those there are")
        return self.model

    def _save(self, changed: Installed) -> None:
        if changed.remote:
            raise InvalidParameter(
                "only local models keep settings of their own", "Tab changes for what they are"
            )
        self.model = self._app.store.save(replace(changed, saved=True))
        loaded = self._app.models.installed
        if loaded is not None and loaded.name == self.model.name:
            self._app.models.installed = self.model


def shown(value: object) -> str:
    """Return a value as it can be typed in again."""
    if value is None:
        return "random"
    if isinstance(value, tuple | list):
        return json.dumps(list(value), ensure_ascii=False) if value else "none"
    if isinstance(value, dict):
        return " ".join(f"{token}={bias:g}" for token, bias in value.items()) or "none"
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _said(parameter: sampling.Parameter, values: Mapping[str, object]) -> str:
    """What one layer says of a parameter, under any of its names; "" for nothing."""
    found = [values[name] for name in parameter.spellings if values.get(name) is not None]
    return shown(found[0]) if found else ""


def _listed(parameter: sampling.Parameter, text: str) -> object:
    """Read what was typed: several texts come as a JSON list."""
    if parameter.kind is str and text.startswith("["):
        try:
            return parameter.convert(json.loads(text))
        except ValueError as error:
            raise InvalidParameter(f"{text} is no JSON list", 'write ["one", "two"]') from error
    return parameter.convert(text)


def _with(values: Mapping[str, Any], name: str, value: object) -> dict[str, Any]:
    """Return the values with one more, or without it under any of its names."""
    spelled = sampling.lookup(name).spellings if sampling.known({name: 0}) else (name,)
    kept = {key: other for key, other in values.items() if key not in spelled}
    return kept if value is None else {**kept, name: value}
