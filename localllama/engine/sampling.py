"""Sampling parameters: names, ranges, what they do, and whose value counts. Pure.

One table, PARAMETERS, serves the check of a request, ``/set parameter`` and
``show --parameters``. Load parameters (``num_ctx``, ``num_gpu``) are not here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from localllama.engine import grammar, schema
from localllama.engine.api import Sampling
from localllama.errors import InvalidParameter

DEFAULT = "default"  # the origin of a value that nobody set
REQUEST = "request"  # that of one that was just asked for
_ANY_INT = 2**31 - 1
_MOST_LOGPROBS = 20  # as OpenAI and Ollama allow
_FLAGS = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
_LARGEST_SEED = 2**32 - 2  # llama.cpp reads 2**32 - 1 as "choose one"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One sampling parameter: ``name`` is the field of Sampling, ``aliases`` are other spellings.

    ``kind`` is float, int, bool, str (texts, one or several) or dict (token id to number); ``low``
    and ``high`` are inclusive, for texts the bounds of their length in characters.
    """

    name: str
    kind: type[float] | type[int] | type[bool] | type[str] | type[dict[int, float]]
    low: float
    high: float
    help: str
    aliases: tuple[str, ...] = ()

    @property
    def spellings(self) -> tuple[str, ...]:
        """Its name and its aliases."""
        return (self.name, *self.aliases)

    @property
    def range(self) -> str:
        """The accepted values, in words."""
        if self.kind is str:
            return f"one or more texts of {self.low:g} to {self.high:g} characters"
        if self.kind is bool:
            return "true or false"
        if self.kind is dict:
            return f"token ids with a number from {self.low:g} to {self.high:g} each"
        what = "a whole number" if self.kind is int else "a number"
        return f"{what} from {self.low:.12g} to {self.high:.12g}"

    def convert(self, value: object) -> object:
        """Return ``value`` as Sampling wants it; numbers may come as text.

        Raises InvalidParameter naming the parameter and its range.
        """
        if self.kind is str:
            return self._texts(value)
        if self.kind is bool:
            return self._flag(value)
        if self.kind is dict:
            return self._numbers_by_token(value)
        number = self._number(value)
        if number is None or not self.low <= number <= self.high:
            raise self._refuse(value)
        if self.name == "seed" and number == -1:
            return None
        return int(number) if self.kind is int else float(number)

    def _number(self, value: object) -> float | None:
        if isinstance(value, str):
            try:
                value = int(value) if self.kind is int else float(value)
            except ValueError:
                return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if isinstance(value, float) and (
            not math.isfinite(value) or (self.kind is int and not value.is_integer())
        ):
            return None
        return value

    def _texts(self, value: object) -> tuple[str, ...]:
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, list | tuple):
            raise self._refuse(value)
        for text in texts:
            if not isinstance(text, str) or not self.low <= len(text) <= self.high:
                raise self._refuse(text)
        return tuple(texts)

    def _flag(self, value: object) -> bool:
        flag = _FLAGS.get(value.lower()) if isinstance(value, str) else value
        if not isinstance(flag, bool):
            raise self._refuse(value)
        return flag

    def _numbers_by_token(self, value: object) -> dict[int, float]:
        """Take a mapping (JSON has its token ids as texts), or a text like ``50=-100 51=2``."""
        given: object = value
        if isinstance(value, str):
            given = dict(part.partition("=")[::2] for part in value.replace(",", " ").split())
        if not isinstance(given, Mapping):
            raise self._refuse(value)
        biases: dict[int, float] = {}
        for token, bias in given.items():
            number = self._number(bias)
            if not str(token).isdecimal() or number is None or not self.low <= number <= self.high:
                raise self._refuse(value)
            biases[int(token)] = float(number)
        return biases

    def _refuse(self, value: object) -> InvalidParameter:
        shown = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."
        return InvalidParameter(f"{self.name} must be {self.range}, not {shown}")


PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "temperature",
        float,
        0,
        100,
        "How freely the next token is chosen; 0 always takes the most probable one.",
        ("temp",),
    ),
    Parameter(
        "top_k", int, -1, _ANY_INT, "Choose among this many most probable tokens; 0 means all."
    ),
    Parameter(
        "top_p",
        float,
        0,
        1,
        "Choose among the most probable tokens that together reach this probability.",
    ),
    Parameter(
        "min_p",
        float,
        0,
        1,
        "Leave out tokens less probable than this fraction of the most probable one.",
    ),
    Parameter(
        "typical_p",
        float,
        0,
        1,
        "Prefer tokens about as surprising as the model expects; 1 turns it off.",
        ("typ_p",),
    ),
    Parameter(
        "repeat_last_n",
        int,
        -1,
        _ANY_INT,
        "How many latest tokens the penalties look at; 0 means none, -1 the whole context.",
        ("penalty_last_n",),
    ),
    Parameter(
        "repeat_penalty",
        float,
        0.01,
        100,
        "Divide the score of tokens that came lately by this; 1 turns it off.",
        ("penalty_repeat", "repetition_penalty"),
    ),
    Parameter(
        "presence_penalty",
        float,
        -100,
        100,
        "Take this from the score of every token that came lately.",
    ),
    Parameter(
        "frequency_penalty",
        float,
        -100,
        100,
        "Take this from the score of a token each time that it came lately.",
    ),
    Parameter(
        "dry_multiplier",
        float,
        0,
        100,
        "How strongly to avoid tokens that would repeat a sequence (DRY); 0 turns it off.",
    ),
    Parameter(
        "dry_base",
        float,
        1,
        100,
        "How much stronger for each further token that the sequence is long.",
    ),
    Parameter(
        "dry_allowed_length",
        int,
        0,
        _ANY_INT,
        "Sequences up to this many tokens may come again.",
    ),
    Parameter(
        "dry_penalty_last_n",
        int,
        -1,
        _ANY_INT,
        "How many latest tokens to look through for them; 0 means none, -1 the whole context.",
        ("dry_range",),
    ),
    Parameter(
        "dry_sequence_breakers",
        str,
        1,
        40,
        "Texts that no such sequence goes across.",
        ("dry_sequence_breaker",),
    ),
    Parameter(
        "xtc_probability",
        float,
        0,
        1,
        "How often to leave out the most probable of several good tokens; 0 turns it off.",
    ),
    Parameter(
        "xtc_threshold",
        float,
        0,
        1,
        "The probability that makes a token one of those; above 0.5 turns it off.",
    ),
    Parameter(
        "mirostat",
        int,
        0,
        2,
        "Keep the text equally surprising by version 1 or 2, instead of top_k and its like.",
    ),
    Parameter(
        "mirostat_tau",
        float,
        0,
        100,
        "How surprising: low for focused text, high for varied text.",
        ("mirostat_ent",),
    ),
    Parameter(
        "mirostat_eta",
        float,
        0,
        1,
        "How quickly mirostat corrects itself.",
        ("mirostat_lr",),
    ),
    Parameter(
        "seed",
        int,
        -1,
        _LARGEST_SEED,
        "The same seed chooses the same tokens again; -1 takes a new one each time.",
    ),
    Parameter("stop", str, 1, 256, "End the reply before any of these texts."),
    Parameter(
        "max_tokens",
        int,
        -1,
        _ANY_INT,
        "The longest reply in tokens; -1 means until the model ends it or the context is full.",
        ("num_predict", "n_predict"),
    ),
    Parameter(
        "ignore_eos",
        bool,
        0,
        1,
        "Go on after the model has ended its reply, up to max_tokens.",
    ),
    Parameter(
        "logit_bias",
        dict,
        -100,
        100,
        "Add to the scores of single tokens; -100 as good as forbids one.",
    ),
)
_BY_SPELLING = {name: p for p in PARAMETERS for name in p.spellings}


@dataclass(frozen=True, slots=True)
class Resolved:
    """The values that count, and for each parameter the label of the layer it came from."""

    sampling: Sampling
    origins: dict[str, str]


def lookup(name: str) -> Parameter:
    """Return the parameter of that name or alias; raises InvalidParameter with a near miss."""
    spelled = name.strip().lower().replace("-", "_")
    if spelled in _BY_SPELLING:
        return _BY_SPELLING[spelled]
    near = difflib.get_close_matches(spelled, _BY_SPELLING, n=1)
    hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(p.name for p in PARAMETERS)
    raise InvalidParameter(f"there is no sampling parameter {name!r}", hint)


def known(values: Mapping[str, object]) -> dict[str, object]:
    """Return those of ``values`` that are sampling parameters, whatever else a file holds."""
    return {name: value for name, value in values.items() if name in _BY_SPELLING}


def validate(sampling: Sampling) -> None:
    """Raise InvalidParameter unless every value has its type and lies in its range.

    A grammar must parse, and every keyword of a schema be one that can be kept to.
    """
    for parameter in PARAMETERS:
        value = getattr(sampling, parameter.name)
        if value is not None or parameter.name != "seed":
            parameter.convert(value)
    if sampling.logprobs not in range(-1, _MOST_LOGPROBS + 1):
        raise InvalidParameter(f"logprobs must be a whole number from -1 to {_MOST_LOGPROBS}")
    if sampling.grammar and sampling.schema:
        raise InvalidParameter("a reply can follow a grammar or a schema, not both")
    if sampling.grammar:
        grammar.check(sampling.grammar)
    if sampling.schema:
        schema.definitions(sampling.schema)


def resolve(layers: Sequence[tuple[str, Mapping[str, object]]]) -> Resolved:
    """Merge labelled layers, the most important first: request, chat, model, GGUF, catalog.

    None means "not set here". Raises InvalidParameter for an unknown name in any layer, or a value
    that counts and is wrong.
    """
    values: dict[str, object] = {}
    origins = {parameter.name: DEFAULT for parameter in PARAMETERS}
    for label, layer in layers:
        for spelling, value in layer.items():
            try:
                parameter = lookup(spelling)
                if value is not None and parameter.name not in values:
                    values[parameter.name] = parameter.convert(value)
                    origins[parameter.name] = label
            except InvalidParameter as error:
                where = "" if label == REQUEST else f"{label}: "
                raise InvalidParameter(where + error.message, error.hint) from error
    return Resolved(msgspec.convert(values, Sampling), origins)
