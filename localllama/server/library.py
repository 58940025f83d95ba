"""The installed models as requests name them, and what their files say they can do."""

from __future__ import annotations

from functools import cached_property

from localllama import catalog, model_card, names, pull
from localllama.catalog import Catalog
from localllama.engine import templates
from localllama.errors import InvalidName, InvalidTemplate, LocalLlamaError, ModelNotFound
from localllama.gguf_file import ModelInfo
from localllama.names import ModelName, Source
from localllama.store import Installed, Store

_REMEMBERED = 256  # headers; reading one takes 20-50 ms, most of it the vocabulary
_REMOTE = (Source.CATALOG, Source.HUGGINGFACE, Source.OLLAMA)


class Library:
    """The models of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._headers: dict[str, ModelInfo] = {}

    @cached_property
    def catalog(self) -> Catalog:
        """The known models, the user's own included."""
        return catalog.load(user=self.store.paths.user_catalog)

    def name(self, text: str) -> ModelName:
        """Return the full name that ``text`` stands for; no paths and no web addresses.

        Raises InvalidName.
        """
        try:
            name = pull.full_name(text, self.store, lambda: self.catalog)
        except InvalidName as error:
            raise InvalidName("invalid model name", error.message) from error
        if name.source not in _REMOTE:
            raise InvalidName("invalid model name", "paths and web addresses are not served")
        return name

    def own_name(self, text: str) -> ModelName:
        """Return ``text`` as the name of a model that is made here; raises InvalidName."""
        try:
            return names.own(text)
        except InvalidName as error:
            raise InvalidName("invalid model name", error.message) from error

    def find(self, text: str) -> Installed:
        """Return the installed model of that name; raises InvalidName, ModelNotFound."""
        name = self.name(text)
        model = self.store.find(name)
        if model is None:
            raise ModelNotFound(f"model '{text}' not found", self._where(name))
        return model

    def _where(self, name: ModelName) -> str:
        """Say how to get a model that is not installed."""
        if name.source is Source.CATALOG:
            try:
                catalog.resolve(name, self.catalog)
            except LocalLlamaError:
                return "localllama list shows the installed models"
        return f"localllama pull {name} fetches it"

    def header(self, model: Installed) -> ModelInfo:
        """Return what the GGUF header says; raises BadFile."""
        key = model.weights[0].sha256
        if key not in self._headers:
            if len(self._headers) >= _REMEMBERED:
                self._headers.clear()
            self._headers[key] = model_card.header(self.store, model)
        return self._headers[key]

    def template(self, model: Installed) -> str:
        """Return the source of the chat template that is used; '' for one that is broken."""
        try:
            own = self.header(model).chat_template
            return templates.choose(own, model.template, model.fallback_template).source
        except (InvalidTemplate, LocalLlamaError):
            return ""

    def has_template(self, model: Installed) -> bool:
        """Whether somebody made the model for conversations."""
        return bool(model.template or model.fallback_template or self.header(model).chat_template)

    def capabilities(self, model: Installed) -> list[str]:
        """Return what the model can do, in Ollama's words."""
        header, template = self.header(model), self.template(model)
        found = ["embedding" if _embeds(header) else "completion"]
        if "tools" in template:
            found.append("tools")
        if thinks(template):
            found.append("thinking")
        if any(key.startswith("tokenizer.ggml.fim_") for key in header.metadata) or (
            "tokenizer.ggml.prefix_token_id" in header.metadata
        ):
            found.append("insert")
        return found


def thinks(template: str) -> bool:
    """Whether a chat template is that of a model that thinks before it answers."""
    return "enable_thinking" in template or "<think>" in template


def _embeds(header: ModelInfo) -> bool:
    """Whether it is a model of meanings only; others can embed as well."""
    return "bert" in header.architecture
