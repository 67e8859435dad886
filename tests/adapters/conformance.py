"""A conversation in batches and the logits behind each: uninterrupted, captured until a kill, and gone on with.

``python -m tests.adapters.conformance FOLDER CASE...`` is the process that is killed: it runs every case uninterrupted
and captured, writes down what it saw, and ends by ``SIGKILL``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvtier import Store
from tests import models, tiny_models
from tests.adapters import engine

if TYPE_CHECKING:
    from llama_cpp import Llama

    from kvtier_adapters.llama_cpp import Attachment

Logits = npt.NDArray[np.float32]

ANSWER = 32


@dataclass(frozen=True)
class Case:
    """A model, and the settings of its context that change the form of its state."""

    model: str
    flash_attn: bool = True
    swa_full: bool = False
    type_k: str = "f16"
    type_v: str = "f16"

    def __str__(self) -> str:
        flags = [name for name in ("flash_attn", "swa_full") if getattr(self, name)]
        types = [self.type_k] if self.type_k == self.type_v else [self.type_k, self.type_v]
        return "-".join([self.model, *flags, *types])

    @property
    def ends(self) -> tuple[int, ...]:
        """Where the batches of the prompt end: at the ends of blocks, between them, one token apart."""
        if self.model in tiny_models.MODELS:
            return 64, 128, 200, 256, 300, 384, 449, 512, 513, 640, 700
        return 300, 600, 840

    @property
    def stored(self) -> tuple[int, ...]:
        """What is captured and gone back to: all of them, and a position in the middle of the answer."""
        return *self.ends, self.ends[-1] + ANSWER // 2

    @contextlib.contextmanager
    def loaded(self, **changes: Any) -> Iterator[Llama]:
        llm = self._load(**changes)
        try:
            yield llm
        finally:
            llm.close()

    def _load(self, **changes: Any) -> Llama:
        import llama_cpp

        types = {name: getattr(llama_cpp, f"GGML_TYPE_{getattr(self, name).upper()}") for name in ("type_k", "type_v")}
        if self.model not in tiny_models.MODELS:
            return engine.load(engine.Setup(self.model, self.flash_attn, self.swa_full), **types, **changes)
        options = {"n_ctx": 1024, "n_batch": 128, "n_ubatch": 128, "n_threads": 1, "n_threads_batch": 1, **types}
        settings = {"flash_attn": self.flash_attn, "swa_full": self.swa_full, "verbose": False, "seed": 1}
        return llama_cpp.Llama(str(tiny_models.path(self.model)), **{**options, **settings, **changes})

    def attached(self, llm: Llama, store: Store) -> Attachment:
        """To a namespace of the case: the fingerprint leaves out ``swa_full``, on purpose."""
        from kvtier_adapters.llama_cpp import attach

        return attach(llm, store, reproducible=True, namespace=str(self).encode())


@dataclass(frozen=True)
class Seen:
    """What the killed process saw: the tokens of prompt and answer, and the logits behind each batch."""

    tokens: list[int]
    uninterrupted: Logits
    captured: Logits
    generated: list[int]


def prompt(llm: Llama, length: int) -> list[int]:
    """Random words for the tiny models, whose vocabulary is bytes: prose has half of them never."""
    if llm.n_vocab() > 1000:
        return engine.prompt(llm, length)
    chosen = random.Random(5)
    return [llm.token_bos(), *(chosen.randrange(3, llm.n_vocab()) for _ in range(length - 1))]


def logits(llm: Llama) -> Logits:
    """After the last token that was evaluated."""
    import llama_cpp

    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), (llm.n_vocab(),)).copy()


def behind_batches(
    llm: Llama, tokens: Sequence[int], ends: Sequence[int], done: int = 0, then: Callable[[int], None] = lambda _: None
) -> Logits:
    """Evaluate what follows the first ``done`` tokens in batches up to ``ends``; the logits behind each."""
    ends = [end for end in ends if end > done]
    seen = []
    for start, end in itertools.pairwise([done, *ends]):
        llm.eval(list(tokens[start:end]))
        seen.append(logits(llm))
        then(end)
    return np.stack(seen)
