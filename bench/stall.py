"""How long a capture holds up the thread that generates, against a memcpy of the same bytes.

Beside it what llama.cpp itself takes to hand out these rows, into memory in use: no capture can take less.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import Llama

from bench.measure import spread, timed
from bench.workloads import model_files, prompt
from kvtier import Store
from kvtier_adapters.llama_cpp import attach

TURNS = (64, 256, 1024)
_HISTORY_TOKENS = 512


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of the calling thread for capturing a turn of 64, 256 and 1024 tokens behind a history."""
    turns, repeats = (TURNS[:1], 3) if quick else (TURNS, 6)
    rows = []
    for name, model in model_files().items():
        llm = Llama(str(model), n_ctx=_HISTORY_TOKENS + max(turns) * repeats + 64, flash_attn=True, verbose=False)
        for tokens in turns:
            say(f"{name}, {tokens} tokens")
            asked = prompt(model, _HISTORY_TOKENS + tokens * repeats)
            rows.append({"model": name, "turn_tokens": tokens, **_measure(llm, asked, tokens)})
        llm.close()
    return {"rows": rows, "history_tokens": _HISTORY_TOKENS}


def _measure(llm: Llama, asked: list[int], turn_tokens: int) -> dict[str, Any]:
    """Turn after turn of one conversation; one copy, between memory in use, after each capture."""
    captures, copies, engine, sizes = [], [], [], set()
    llm.reset()
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder, Store.open(Path(folder)) as store:
        attachment = attach(llm, store)
        stats, session = attachment.stats, attachment.session
        llm.eval(asked[:_HISTORY_TOKENS])
        session.capture(checkpoint=True)
        for start in range(_HISTORY_TOKENS, len(asked), turn_tokens):
            llm.eval(asked[start : start + turn_tokens])
            store.flush()
            before = stats.bytes_captured + stats.checkpoint_bytes
            captures.append(timed(partial(session.capture, checkpoint=True)))
            nbytes = stats.bytes_captured + stats.checkpoint_bytes - before
            if not nbytes or stats.errors or stats.captures_skipped:
                raise RuntimeError(f"the turn was not captured: {stats}")
            copies.append(copy_s(nbytes))
            engine.append(_engine_s(llm, start))
            sizes.add(nbytes)
        attachment.detach()
    capture, memcpy = spread(captures), spread(copies)
    return {
        "bytes": max(sizes),
        "engine_s": spread(engine),
        "capture_s": capture,
        "memcpy_s": memcpy,
        "capture_to_memcpy": capture["median"] / memcpy["median"],
    }


def copy_s(nbytes: int) -> float:
    """Seconds for one copy of so many bytes from memory in use into memory in use."""
    source, target = np.ones(nbytes, dtype=np.uint8), np.ones(nbytes, dtype=np.uint8)
    return timed(lambda: np.copyto(target, source))


def _engine_s(llm: Llama, start: int) -> float:
    """Seconds for reading the rows from ``start`` on through llama.cpp's own interface, the second time."""
    memory, scratch = llama_cpp.llama_get_memory(llm.ctx), llama_cpp.llama_max_parallel_sequences() - 1

    def read(target: npt.NDArray[np.uint8]) -> None:
        llama_cpp.llama_memory_seq_cp(memory, 0, scratch, start, -1)
        size = llama_cpp.llama_state_seq_get_size(llm.ctx, scratch)
        pointer = target.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if llama_cpp.llama_state_seq_get_data(llm.ctx, pointer, size, scratch) != size:
            raise RuntimeError("llama_state_seq_get_data failed")
        llama_cpp.llama_memory_seq_rm(memory, scratch, -1, -1)

    llama_cpp.llama_memory_seq_cp(memory, 0, scratch, start, -1)
    target = np.empty(llama_cpp.llama_state_seq_get_size(llm.ctx, scratch), dtype=np.uint8)
    read(target)
    return timed(partial(read, target))
