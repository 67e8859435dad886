"""Tiny models (``tests/tiny_models.py``) in llama.cpp, and what tests do with them. They load in milliseconds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import tiny_models
from tests.adapters import engine

if TYPE_CHECKING:
    from llama_cpp import Llama

#: One model for each kind of memory.
KINDS = ["mha", "gemma3", "mamba", "jamba", "lfm2-swa", "qwen4exp"]
#: Those that can be gone back to at checkpoints only.
SNAPSHOTS = ["mamba", "jamba", "lfm2-swa", "qwen4exp"]
N_BATCH = 128


def load(name: str | Path, **changes: Any) -> Llama:
    """A model by its name, or from a file. One thread; the sliding window is kept in a ring."""
    from llama_cpp import Llama

    file = name if isinstance(name, Path) else tiny_models.path(name)
    options: dict[str, Any] = {"n_ctx": 1024, "n_batch": N_BATCH, "n_ubatch": N_BATCH, "swa_full": False}
    return Llama(str(file), **{**options, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **changes})


@contextlib.contextmanager
def loaded(name: str | Path, **changes: Any) -> Iterator[Llama]:
    llm = load(name, **changes)
    try:
        yield llm
    finally:
        llm.close()


def cold(llm: Llama, tokens: Sequence[int], count: int = 16) -> list[int]:
    """The greedy answer to a prompt in an empty context."""
    answer = engine.greedy(engine.fresh(llm), tokens, count)
    engine.fresh(llm)
    return answer


def other_seed(name: str, target: Path, seed: str) -> Path:
    """The same model with other weights."""
    return tiny_models.MODELS[name].build(seed).write(target)
