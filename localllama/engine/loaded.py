"""A loaded model: its context, its chat template, and how a request becomes tokens."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

import psutil

from localllama.engine import prompt, templates
from localllama.engine.api import Generate, LoadOptions, Ready
from localllama.engine.cache import common_prefix
from localllama.engine.speculation import LONGEST_DRAFT
from localllama.errors import ContextFull, InvalidParameter
from localllama.native.llama import Library, Vocab

_TURN_BORDER = re.compile(r"<\|.+\|>|<(start|end)_of_turn>|\[/?[A-Z_]+\]")
# Beyond what any rope scaling is used for; llama.cpp spends minutes and all memory on 2**30.
_LONGEST_CONTEXT_FACTOR = 32
# Conversations that nobody is answering but whose tokens are kept as long as there is room. Their
# cells cost decoding next to nothing; a recurrent model would need a state for each.
_IDLE_SEQUENCES = 3


class LoadedModel:
    """Loads a model as LoadOptions say; ``ready`` tells what came of it.

    The context is one pool of ``context_length`` cells, whatever the number of slots: one
    conversation may use all of it when it is alone, several share it.
    """

    def __init__(self, options: LoadOptions, on_progress: Callable[[float], object]) -> None:
        """Load; raises what native.llama raises, InvalidParameter, InvalidTemplate."""
        begun = perf_counter()
        library = Library(sys.stderr.write)
        model = library.load(
            options.paths,
            gpu_layers=options.gpu_layers,
            on_progress=on_progress,
            tensor_split=options.tensor_split,
            main_gpu=options.main_gpu,
            mmap=options.mmap,
            mlock=options.mlock,
            repack=options.repack,
        )
        _require_possible(options.context_length, model.trained_context_length)
        self.vocab = model.vocab
        self.divisible = not model.recurrent
        self.speculates = options.speculate and self.divisible
        self.sequences = options.slots + (_IDLE_SEQUENCES if self.divisible else 0)
        self._template = templates.choose(
            model.chat_template, options.template, options.fallback_template
        )
        self._vocabulary = _vocabulary(model.vocab, self._template)
        self._controls = frozenset(self._vocabulary.controls.values())
        self.context = model.context(
            options.context_length,
            threads=options.threads or _physical_cores(),
            sequences=self.sequences,
            outputs=options.slots + (LONGEST_DRAFT if self.speculates else 0),
            batch_tokens=options.batch_tokens,
            kv_type=options.kv_type,
            flash_attention=options.flash_attention,
        )
        self.context_length = options.context_length  # llama.cpp rounds its own up
        self.ready = Ready(
            context_length=self.context_length,
            trained_context_length=model.trained_context_length,
            template=self._template.origin,
            load_seconds=perf_counter() - begun,
            system_info=library.system_info,
        )

    def prompt_tokens(self, request: Generate, known: Iterable[Sequence[int]]) -> list[int]:
        """Return the tokens of a request, spelt as in ``known`` sequences where they say the same.

        Raises InvalidParameter, InvalidTemplate, and ContextFull.
        """
        if request.prompt is not None:
            start = [self.vocab.bos] if self.vocab.add_bos else []
            tokens = start + self.vocab.tokenize(request.prompt)
        else:
            tokens = self._conversation_tokens(request, known)
        if not tokens:
            raise InvalidParameter("there is nothing to reply to: the prompt is empty")
        needed, available = len(tokens) + request.reserve_tokens, self.context_length
        if needed > available:
            room = f" and {request.reserve_tokens} for the reply" if request.reserve_tokens else ""
            raise ContextFull(
                f"the prompt needs {len(tokens)} tokens{room}, the context holds {available}",
                "shorten it, or load the model with a longer context (--ctx)",
                needed_tokens=needed,
                available_tokens=available,
            )
        return tokens

    def _conversation_tokens(self, request: Generate, known: Iterable[Sequence[int]]) -> list[int]:
        thinking = {} if request.think is None else {"enable_thinking": request.think}
        tokens = prompt.build(
            self._template,
            request.messages,
            self._vocabulary,
            continue_last=request.continue_last,
            extra=thinking,
        )
        nearest = max(known, key=lambda held: common_prefix(held, tokens))
        return prompt.reuse(
            nearest, len(nearest), tokens, self.vocab.piece, self._controls.__contains__
        )


def _require_possible(context_length: int, trained_context_length: int) -> None:
    longest = _LONGEST_CONTEXT_FACTOR * trained_context_length
    if not 1 <= context_length <= longest:
        raise InvalidParameter(
            f"the context length must be from 1 to {longest} tokens, not {context_length}",
            f"the model was trained with {trained_context_length}",
        )


def _vocabulary(vocab: Vocab, template: templates.Template) -> prompt.Vocabulary:
    # Some files mark the tokens around messages as user-defined, which are found in any text.
    # Not so <think> or <tool_call>: they stand inside replies, and templates look for them.
    structural = {
        text: token
        for text, token in vocab.user_defined.items()
        if _TURN_BORDER.fullmatch(text) and text in template.source
    }
    return prompt.Vocabulary(
        tokenize=vocab.tokenize,
        piece=vocab.piece,
        controls=vocab.control | structural,
        bos_token=vocab.text(vocab.bos),
        eos_token=vocab.text(vocab.eos),
        bos_id=vocab.bos,
        add_bos=vocab.add_bos,
    )


def _physical_cores() -> int:
    """Hyper-threads share the units that matter here, and a container may own fewer cores."""
    usable = len(psutil.Process().cpu_affinity()) if hasattr(os, "sched_getaffinity") else 0
    return min(psutil.cpu_count(logical=False) or 1, usable or 1_000)
