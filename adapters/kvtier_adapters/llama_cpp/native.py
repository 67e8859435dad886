"""The few C calls of llama.cpp that capture and restore need, with the checks that keep the process alive.

llama.cpp aborts the process (GGML_ASSERT) where a sequence id is out of range or a range is copied
across KV streams; :func:`refusal` excludes both for a whole context, once. What a blob holds is checked in
:mod:`.state` before it comes here.

A range is captured by tagging its cells with a second sequence id, *scratch* (no data moves), and reading
that sequence; it is restored by loading into scratch and tagging the cells with sequence 0. Scratch, and the
*holder* of cells that must stay free, are the highest ids that llama.cpp knows, which no context with fewer
sequences hands out.

Not thread-safe, like the context itself: one thread at a time.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from kvtier_adapters.llama_cpp.state import HEADROOM_PER_CELL, canonical
from kvtier_adapters.llama_cpp.window import Ring

if TYPE_CHECKING:
    from llama_cpp import Llama

_SEQUENCE = 0  # the one sequence that llama_cpp.Llama uses
_EMPTY_SECTION = 8
_ENVELOPE = 8
_RING_PADDING = 256
_ROPE_WITH_SECTIONS = {"M-RoPE": 8, "vision RoPE": 24, "interleaved M-RoPE": 40}
_U8P = ctypes.POINTER(ctypes.c_uint8)


class NativeError(RuntimeError):
    """llama.cpp refused a capture or a restore."""


def refusal(llm: Llama) -> str | None:
    """Why the state of this context cannot be handled by ranges, or None if it can."""
    model, context = llm.model, llm.ctx
    if llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model):
        return "recurrent or hybrid memory"
    if llama_cpp.llama_model_has_encoder(model) or llama_cpp.llama_model_is_diffusion(model):
        return "not a decoder-only model"
    rope = llama_cpp.llama_model_rope_type(model)
    for name, number in _ROPE_WITH_SECTIONS.items():
        if rope == number:
            return name
    if hasattr(llm.chat_handler, "clip_model_path"):
        return "multimodal chat handler"
    if llm.context_params.embeddings or llama_cpp.llama_get_memory(context) is None:
        return "embedding context"
    if llm._logits_all and llm.draft_model is None:
        return "logits_all: a restored prefix has no logits"
    n_seq_max = llama_cpp.llama_n_seq_max(context)
    if n_seq_max > 1 and not llm.context_params.kv_unified:
        return "several KV streams (kv_unified is off)"
    if n_seq_max > llama_cpp.llama_max_parallel_sequences() - 2:
        return "no sequence ids left for captures and restores"
    if _sections(llm) is None:
        return "unknown memory layout"
    return None


def _sections(llm: Llama) -> int | None:
    """1 for a plain KV cache, 2 for one with a sliding window, from the size of an empty sequence's state."""
    scratch = llama_cpp.llama_max_parallel_sequences() - 1
    full, partial = (
        llama_cpp.llama_state_seq_get_size_ext(llm.ctx, scratch, flags)
        for flags in (llama_cpp.LLAMA_STATE_SEQ_FLAGS_NONE, llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)
    )
    windowed = llama_cpp.llama_model_n_swa(llm.model) > 0
    if partial == _ENVELOPE + _EMPTY_SECTION and full == partial + windowed * _EMPTY_SECTION:
        return 2 if windowed else 1
    return None


def _ring(llm: Llama) -> Ring:
    """The window's cells, as llama_kv_cache_iswa allots them. Were it otherwise, restores would still be right,
    but not to the bit."""
    n_swa, n_ctx = int(llama_cpp.llama_model_n_swa(llm.model)), int(llama_cpp.llama_n_ctx(llm.ctx))
    sequences = int(llama_cpp.llama_n_seq_max(llm.ctx)) if llm.context_params.kv_unified else 1
    cells = min(n_ctx, n_swa * sequences + int(llama_cpp.llama_n_ubatch(llm.ctx)))
    cells += -cells % _RING_PADDING
    return Ring(n_swa, 0 if llm.context_params.swa_full or cells >= n_ctx else cells)


class SequenceState:
    """Sequence 0 of a context that :func:`refusal` has nothing against."""

    def __init__(self, llm: Llama) -> None:
        self._llm = llm
        self._scratch = int(llama_cpp.llama_max_parallel_sequences()) - 1
        self._buffer: npt.NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
        self._holder = self._scratch - 1
        self.sections = _sections(llm) or 1
        self.ring = _ring(llm) if self.sections == 2 else Ring(0)

    @property
    def pos_min(self) -> int:
        """The first position from which on everything is there (on a window: of the window); -1 if empty."""
        return int(llama_cpp.llama_memory_seq_pos_min(self._memory, _SEQUENCE))

    @property
    def pos_max(self) -> int:
        """The last position; -1 if empty."""
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, _SEQUENCE))

    def truncate(self, length: int) -> None:
        """Drop the rows from ``length`` on. On a window, what it had already dropped does not come back."""
        if not llama_cpp.llama_memory_seq_rm(self._memory, _SEQUENCE, length, -1):
            raise NativeError(f"rows from {length} on cannot be removed")

    def clear(self) -> None:
        """Drop all rows, and whatever an interrupted call left behind; evaluation begins in the first cell."""
        if llama_cpp.llama_n_seq_max(self._context) == 1:
            llama_cpp.llama_memory_clear(self._memory, False)
            return
        for sequence in (self._holder, self._scratch, _SEQUENCE):  # others belong to the context's owner
            llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def capture_rows(self, start: int, end: int) -> memoryview:
        """The rows ``[start, end)`` as a canonical blob, without window rows.

        The view is of a buffer that the next capture overwrites.
        """
        return self._capture(start, end, llama_cpp.LLAMA_STATE_SEQ_FLAGS_NONE, self.sections)

    def capture_window(self, start: int, end: int) -> memoryview:
        """The rows ``[start, end)`` of the sliding window's layers as a canonical partial blob; buffer as above.

        ``start`` is at least ``end - n_swa``: older rows are no part of a window that reaches ``end``.
        """
        return self._capture(start, end, llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY, 1)

    def append_rows(self, blob: memoryview) -> None:
        """Add the rows of a checked blob to the sequence."""
        self._append(blob, llama_cpp.LLAMA_STATE_SEQ_FLAGS_NONE)

    def append_window(self, blob: memoryview) -> None:
        """Add the rows of a checked partial blob to the window."""
        self._append(blob, llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)

    def hold_cells(self, blob: memoryview) -> None:
        """Take the window's next cells for rows that belong to nobody, until :meth:`release_cells`."""
        self._set(blob, self._holder, llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)

    def release_cells(self) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, self._holder, -1, -1)

    @property
    def _context(self) -> Any:
        context = self._llm.ctx
        if context is None:
            raise NativeError("the model was closed")
        return context

    @property
    def _memory(self) -> Any:
        return llama_cpp.llama_get_memory(self._context)

    def _capture(self, start: int, end: int, flags: int, sections: int) -> memoryview:
        memory, context = self._memory, self._context
        llama_cpp.llama_memory_seq_rm(memory, self._scratch, -1, -1)
        llama_cpp.llama_memory_seq_cp(memory, _SEQUENCE, self._scratch, start, end)
        try:
            size = int(llama_cpp.llama_state_seq_get_size_ext(context, self._scratch, flags))
            headroom = HEADROOM_PER_CELL * (end - start)
            if len(self._buffer) < headroom + size:
                self._buffer = np.empty(headroom + size, dtype=np.uint8)
            target = ctypes.cast(self._buffer.ctypes.data + headroom, _U8P)
            wrote = int(llama_cpp.llama_state_seq_get_data_ext(context, target, size, self._scratch, flags))
        finally:
            llama_cpp.llama_memory_seq_rm(memory, self._scratch, -1, -1)
        if wrote != size or size == 0:
            raise NativeError(f"rows {start} to {end}: {wrote} of {size} bytes captured")
        return canonical(self._buffer.data[: headroom + size], headroom, sections)

    def _append(self, blob: memoryview, flags: int) -> None:
        self._set(blob, self._scratch, flags)
        llama_cpp.llama_memory_seq_cp(self._memory, self._scratch, _SEQUENCE, -1, -1)
        llama_cpp.llama_memory_seq_rm(self._memory, self._scratch, -1, -1)

    def _set(self, blob: memoryview, sequence: int, flags: int) -> None:
        source = ctypes.cast(np.frombuffer(blob, dtype=np.uint8).ctypes.data, _U8P)
        read = int(llama_cpp.llama_state_seq_set_data_ext(self._context, source, blob.nbytes, sequence, flags))
        if read != blob.nbytes:
            raise NativeError(f"{read} of {blob.nbytes} bytes restored")
