"""Tiny models of random weights, one for each kind of memory that llama.cpp has: ``path(name)`` writes it once.

They answer nonsense, but their logits depend on every token of the prompt, so state that was restored wrongly shows.
The vocabulary is one token a byte; bos is 1 and eos is 2.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests import models
from tests.tiny import attention, hybrid, recurrent, sparse
from tests.tiny.attention import LLAMA4_CHUNK, WINDOW
from tests.tiny.writer import Writer

Kind = Literal["attention", "window", "recurrent", "hybrid", "hybrid-window", "opaque"]


@dataclass(frozen=True)
class Tiny:
    """A model: what its memory is, what llama.cpp says of it, and what makes it."""

    name: str
    kind: Kind
    build: Callable[[str], Writer]
    n_swa: int = 0
    is_recurrent: bool = False
    is_hybrid: bool = False


MODELS: dict[str, Tiny] = {
    tiny.name: tiny
    for tiny in (
        Tiny("mha", "attention", attention.llama(heads=4, kv_heads=4)),
        # of a head of 64, llama.cpp turns quantised K and V
        Tiny("gqa", "attention", attention.llama(heads=4, kv_heads=2, head=64)),
        Tiny("mqa", "attention", attention.llama(heads=4, kv_heads=1)),
        Tiny("deepseek2", "attention", attention.deepseek2),  # no V
        Tiny("qwen2vl", "attention", attention.qwen2vl),  # cells with x, y and token
        Tiny("gemma3", "window", attention.gemma3, n_swa=WINDOW),
        Tiny("llama4", "window", attention.llama4, n_swa=LLAMA4_CHUNK),  # chunks instead
        Tiny("mamba", "recurrent", recurrent.mamba, is_recurrent=True),
        Tiny("mamba2", "recurrent", recurrent.mamba2, is_recurrent=True),
        Tiny("rwkv6", "recurrent", recurrent.rwkv6, is_recurrent=True),
        Tiny("rwkv7", "recurrent", recurrent.rwkv7, is_recurrent=True),
        Tiny("jamba", "hybrid", hybrid.jamba, is_hybrid=True),
        Tiny("falcon-h1", "hybrid", hybrid.falcon_h1, is_hybrid=True),  # both in every layer
        Tiny("lfm2", "hybrid", hybrid.lfm2([0, 1, 0, 1]), is_hybrid=True),  # R and no S
        Tiny("qwen35", "hybrid", hybrid.qwen35, is_hybrid=True),
        Tiny("lfm2-swa", "hybrid-window", hybrid.lfm2([0, 1] * 4, window=WINDOW), n_swa=WINDOW, is_hybrid=True),
        Tiny("qwen4exp", "opaque", sparse.qwen4exp, is_hybrid=True),
        Tiny("minimax-m3", "opaque", sparse.minimax_m3),
        Tiny("deepseek32", "opaque", sparse.deepseek32),
    )
}
NAMES: tuple[str, ...] = tuple(MODELS)


def path(name: str) -> Path:
    """The file of model ``name``, beside Gemma's (``tests/models.py``). Safe in several processes at once."""
    folder = Path(os.environ.get("KVTIER_MODEL_CACHE", models.ROOT / ".cache" / "models"))
    target = folder / f"tiny-{name}-{_generation()}.gguf"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            write(name, Path(scratch) / target.name).replace(target)  # whole or not at all
    return target


def write(name: str, target: Path) -> Path:
    """Write model ``name`` to ``target``: the same bytes every time."""
    return MODELS[name].build(name).write(target)


@functools.cache
def _generation() -> str:
    """Another one with every change of the code that makes the files."""
    code = [Path(__file__), *sorted((Path(__file__).parent / "tiny").glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in code)).hexdigest()[:12]
