"""The few C calls of llama.cpp that capture and restore need, with the checks that keep the process alive.

llama.cpp aborts the process (GGML_ASSERT) where a sequence id is out of range or a range is copied across
KV streams: :mod:`.memory` excludes both for a whole context, once. What a blob holds is checked in
:mod:`.state` before it comes here.

A range is captured by tagging its cells with a second sequence id, *scratch* (no data moves), and reading
that sequence; it is restored by loading into scratch and tagging the cells with the sequence. Scratch and
the *holder* of cells that must stay free are used within one capture or one restore, never between two.

Not thread-safe, like the context itself: one thread at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import Any

import llama_cpp
import numpy as np

from kvtier_adapters.llama_cpp.context import Context
from kvtier_adapters.llama_cpp.memory import FULL, PARTIAL, Memory, scratch_ids
from kvtier_adapters.llama_cpp.state import (
    HEADROOM_PER_CELL,
    Layout,
    canonical,
    check_recurrent,
    empty_bytes,
    recurrent_only,
    refused_blob,
    split,
)
from kvtier_adapters.llama_cpp.window import LANES, Ring

_U8P = ctypes.POINTER(ctypes.c_uint8)


class NativeError(RuntimeError):
    """llama.cpp refused a capture or a restore."""


def ring_of(context: Context, memory: Memory) -> Ring:
    """The window's cells, as llama_kv_cache_iswa allots them. Were it otherwise, restores would still be right,
    but not to the bit."""
    if not memory.n_swa:
        return Ring(0)
    sequences = context.n_seq_max
    cells = memory.n_swa * sequences + int(llama_cpp.llama_n_ubatch(context.handle))
    cells += -cells % LANES
    if context.params.swa_full or cells >= context.n_ctx:
        return Ring(memory.n_swa, context.n_ctx + LANES, wraps=False)
    return Ring(memory.n_swa, cells if sequences == 1 else 0)  # sequences that share a ring lie anywhere


class SequenceState:
    """One sequence of a context, whose memory is ``memory``. ``buffer`` gives the memory for a capture."""

    def __init__(self, context: Context, sequence: int, memory: Memory, buffer: Callable[[int], memoryview]) -> None:
        self.context = context
        self.sequence = sequence
        self.memory = memory
        self._buffer = buffer
        self.valid_from = 0
        """Window rows before this position are blank: see :mod:`.window`."""
        self._scratch, self._holder = scratch_ids()

    @property
    def pos_min(self) -> int:
        """The first position from which on everything is there (on a window: of the window); -1 if empty."""
        first = int(llama_cpp.llama_memory_seq_pos_min(self.context.memory, self.sequence))
        return first if first < 0 else max(first, self.valid_from)

    @property
    def pos_max(self) -> int:
        """The last position; -1 if empty."""
        return int(llama_cpp.llama_memory_seq_pos_max(self.context.memory, self.sequence))

    def truncate(self, length: int) -> None:
        """Drop the rows from ``length`` on. On a window, what it had already dropped does not come back."""
        if not llama_cpp.llama_memory_seq_rm(self.context.memory, self.sequence, length, -1):
            raise NativeError(f"rows from {length} on cannot be removed")

    def clear(self) -> None:
        """Drop the whole sequence, and whatever an interrupted call left behind."""
        self.valid_from = 0
        if self.context.n_seq_max == 1:
            llama_cpp.llama_memory_clear(self.context.memory, False)  # evaluation begins in the first cell
            return
        llama_cpp.llama_memory_seq_rm(self.context.memory, self.sequence, -1, -1)
        if self.memory.rows:
            self._release(self._scratch)
            self._release(self._holder)

    def drop_window(self) -> None:
        """Drop the window's rows and keep the others."""
        self.valid_from = 0
        self._load_refused(self.sequence, PARTIAL)
        if self._size(self.sequence, PARTIAL) != empty_bytes(self._layout.window):
            raise NativeError("rows of a window are left")

    def capture_rows(self, start: int, end: int) -> memoryview:
        """The rows ``[start, end)`` as a canonical blob, without window rows; its memory is the caller's."""
        headroom = HEADROOM_PER_CELL * (end - start)
        with self._tagged(start, end):
            self._untag_window()
            buffer = self._read(self._scratch, FULL, headroom)
        blob = canonical(buffer, headroom, self._layout, start, end)
        return (
            blob if blob.nbytes > buffer.nbytes // 2 else memoryview(bytes(blob))
        )  # not with a window that is dropped

    def capture_window(self, start: int, end: int) -> memoryview:
        """The rows ``[start, end)`` of the sliding window's layers as a canonical partial blob; memory as above.

        ``start`` is at least ``end - n_swa``: older rows are no part of a window that reaches ``end``.
        """
        headroom = HEADROOM_PER_CELL * (end - start)
        with self._tagged(start, end):
            buffer = self._read(self._scratch, PARTIAL, headroom)
        return canonical(buffer, headroom, self._layout.window, start, end)

    def capture_both(self, start: int, end: int) -> tuple[memoryview, memoryview]:
        """:meth:`capture_rows` and :meth:`capture_window` of the same rows, of which llama.cpp is asked once."""
        if self.memory.recurrent:  # whose state comes with the window alone, not with the rows
            return self.capture_rows(start, end), self.capture_window(start, end)
        with self._tagged(start, end):
            buffer = self._read(self._scratch, FULL)
        return split(buffer, self._layout, start, end, self._buffer)

    def capture_snapshot(self) -> memoryview:
        """What the rows do not tell of the sequence as it is now: see :class:`.Memory`; memory as above."""
        blob = self._read(self.sequence, self.memory.snapshot_flags)
        if self.memory.recurrent:
            return memoryview(recurrent_only(blob, self.memory.recurrent))
        return blob

    @contextlib.contextmanager
    def appending(self) -> Iterator[Callable[[memoryview], None]]:
        """What adds the rows of a checked blob to the sequence. Scratch is given back at the end: each load of another
        blob empties it too."""
        with self._scratch_in_use():
            yield lambda blob: self._add(blob, FULL, self.sequence)

    def append_window(self, blob: memoryview) -> None:
        """Add the rows of a checked partial blob to the window."""
        with self._scratch_in_use():
            self._add(blob, PARTIAL, self.sequence)

    def hold_cells(self, blob: memoryview) -> None:
        """Take the window's next cells for rows that belong to nobody, until :meth:`release_cells`."""
        with self._scratch_in_use():
            self._add(blob, PARTIAL, self._holder)

    def release_cells(self) -> None:
        self._release(self._holder)

    def restore_snapshot(self, blob: memoryview, end: int) -> None:
        """Load a snapshot as of ``end``; rows of it are in the context already. Raises ``StateLayoutError``."""
        if self.memory.recurrent:
            check_recurrent(blob, self.memory.recurrent, end)
        self._set(blob, self.sequence, self.memory.snapshot_flags)

    @property
    def _layout(self) -> Layout:
        assert self.memory.layout is not None, "rows of a memory without rows"
        return self.memory.layout

    @contextlib.contextmanager
    def _tagged(self, start: int, end: int) -> Iterator[None]:
        """Inside, scratch has the rows ``[start, end)``."""
        with self._scratch_in_use():
            llama_cpp.llama_memory_seq_cp(self.context.memory, self.sequence, self._scratch, start, end)
            yield

    @contextlib.contextmanager
    def _scratch_in_use(self) -> Iterator[None]:
        """Scratch holds nothing afterwards."""
        try:
            yield
        finally:
            self._release(self._scratch)

    def _untag_window(self) -> None:
        """Take the tag of scratch from the window's cells, so that they are not read with its rows."""
        if self.memory.n_swa and not self.memory.recurrent:
            self._load_refused(self._scratch, PARTIAL)

    def _size(self, sequence: int, flags: int) -> int:
        return int(llama_cpp.llama_state_seq_get_size_ext(self.context.handle, sequence, flags))

    def _read(self, sequence: int, flags: int, headroom: int = 0) -> memoryview:
        """The state of a sequence, behind ``headroom`` bytes: copied there once, by llama.cpp."""
        size = self._size(sequence, flags)
        if size == 0:
            raise NativeError("no state to capture")
        buffer = self._buffer(headroom + size)
        target = ctypes.byref(ctypes.c_uint8.from_buffer(buffer, headroom))
        wrote = int(llama_cpp.llama_state_seq_get_data_ext(self.context.handle, target, size, sequence, flags))
        if wrote != size:
            raise NativeError(f"{wrote} of {size} bytes captured")
        return buffer

    def _add(self, blob: memoryview, flags: int, sequence: int) -> None:
        """Give the rows of a blob to a sequence; scratch has them too."""
        with _muted() if self.memory.recurrent else contextlib.nullcontext():  # it has no cell for scratch, and says so
            self._set(blob, self._scratch, flags)
        llama_cpp.llama_memory_seq_cp(self.context.memory, self._scratch, sequence, -1, -1)

    def _set(self, blob: memoryview, sequence: int, flags: int) -> None:
        read = self._try_set(blob, sequence, flags)
        if read != blob.nbytes:
            raise NativeError(f"{read} of {blob.nbytes} bytes restored")

    def _try_set(self, blob: memoryview, sequence: int, flags: int) -> int:
        source = ctypes.cast(np.frombuffer(blob, dtype=np.uint8).ctypes.data, _U8P)
        return int(llama_cpp.llama_state_seq_set_data_ext(self.context.handle, source, blob.nbytes, sequence, flags))

    def _load_refused(self, sequence: int, *flags: int) -> None:
        """Empty a sequence, or the part of it that these flags are of: a load does that first, and is then refused."""
        with _muted():
            for flag in flags:
                self._try_set(memoryview(refused_blob()), sequence, flag)

    def _release(self, sequence: int) -> None:
        """Take the tag of scratch or holder from all cells.

        A hybrid memory does not remove sequences that its recurrent half has no cell for. A load does first
        remove what the sequence holds, and a blob that is then refused leaves it empty.
        """
        if not self.memory.recurrent:
            llama_cpp.llama_memory_seq_rm(self.context.memory, sequence, -1, -1)
            return
        self._load_refused(sequence, *((FULL, PARTIAL) if self.memory.n_swa else (FULL,)))
        if self._size(sequence, FULL) != empty_bytes(self._layout):
            raise NativeError("cells of a scratch sequence are left")


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Without llama.cpp's log: what is refused here is meant to be."""
    callback, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    with _LOG:  # it is the process's: of two that find it silent, one would leave it so
        llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(user_data))
        llama_cpp.llama_log_set(_SILENCE, ctypes.c_void_p())
        try:
            yield
        finally:
            llama_cpp.llama_log_set(callback, user_data)


def _say_nothing(_level: int, _text: bytes, _user_data: Any) -> None:
    return None


_LOG = threading.Lock()
_SILENCE = llama_cpp.llama_log_callback(_say_nothing)
