"""Sequence state of llama.cpp: bytes to sections and back. Pure functions, no C call.

A sequence blob, as ``llama_state_seq_get_data_ext`` writes it (host-endian, no padding)::

    u32 magic 0xaf143cd8, i32 sequence, then one or two KV sections:
      u32 n_stream (1), u32 cells; nothing more if cells == 0
      per cell        i32 position, u32 n_seq, [i32 x, y, token], i32 sequence[n_seq]
      u32 v_trans, u32 layers
      per layer, K    i32 type, u64 row bytes, cells * row
      per layer, V    v_trans == 0: i32 type, u64 row bytes, cells * row
                      v_trans == 1: i32 type, u32 element bytes, u32 rows, rows * cells * element
    then, where the model has recurrent layers, their section:
      u32 cells (0 or 1); per cell i32 position, u32 0
      u32 s_trans (0), u32 layers, then per tensor (all R, all S) i32 type, u64 row bytes, cells * row

A model with plain attention writes one KV section; one with a sliding window writes two (all positions of
the full-attention layers, then the window of the others), or the second alone as a *partial* blob. A
recurrent model writes no KV section; a hybrid one both, and the recurrent section alone in a partial
blob. Cells have ``x, y, token`` with M-RoPE; with latent attention (MLA) there are no V tensors.

Everything is checked here before the engine sees a byte: each count and length, that the sections tile
the blob exactly, and that the positions are the ones that the caller expects. A blob that is not
understood raises :class:`StateLayoutError`; nothing is guessed.

What is stored is the blob itself in its *canonical form*, so that a restore hands the store's own buffer
to the engine: sequence 0, one sequence id a cell (a context with ``n_seq_max == 1`` writes none, and
llama.cpp then refuses to read its own blob), and an empty second section where the window is kept apart.
What a recurrent model remembers is kept apart too: a blob of rows ends with a recurrent section of no cells.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAGIC = 0xAF143CD8

_ENVELOPE = struct.Struct("=Ii")  # magic, sequence
_SECTION = struct.Struct("=II")  # n_stream, cells
_DATA = struct.Struct("=II")  # v_trans, layers
_COUNT = struct.Struct("=I")  # cells
_EMPTY_RECURRENT = struct.Struct("=III")  # cells, s_trans, layers
_ROWS = struct.Struct("=iQ")  # type, row bytes
_TRANSPOSED = struct.Struct("=iII")  # type, element bytes, rows
_TENSOR_HEAD = _ROWS.size
assert _TRANSPOSED.size == _TENSOR_HEAD

_RECURRENT = struct.Struct("=iIII")  # position, n_seq, s_trans, layers: after a count of 1
_WORD = 4
_CELL_BARE = 2 * _WORD  # position, n_seq = 0
_POSITION, _N_SEQ = 0, 1  # columns of a cell; then those of `Layout.extra`, then the sequence
#: Bytes that must be free before a captured blob, for each of its cells, so that `canonical` works in place.
HEADROOM_PER_CELL = _WORD

_LAYERS_MAX = 4096
_ROW_BYTES_MAX = 1 << 31
_CELLS_MAX = 1 << 27

Cells = npt.NDArray[np.int32]


class StateLayoutError(ValueError):
    """A blob is not laid out as this module knows it."""


class StateMismatch(StateLayoutError):
    """A blob of a known layout does not hold what was expected."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the blobs of one context are made of."""

    sections: int
    """KV sections."""
    extra: int = 0
    """32-bit words of a cell beside its position and sequences."""
    values: bool = True
    """Each layer has a V tensor; not so with latent attention."""
    tail: bytes = b""
    """The recurrent section of a sequence that has none: it ends each blob of rows."""

    @property
    def window(self) -> Layout:
        """Of a partial blob of window rows."""
        return Layout(1, self.extra, self.values, self.tail)


class Tensor(NamedTuple):
    """One tensor of a section: from byte ``data`` on, ``runs`` times ``cell_bytes`` for each cell."""

    data: int
    runs: int
    cell_bytes: int


@dataclass(frozen=True, slots=True)
class Section:
    """One KV section of a blob: bytes ``[start, end)``, what follows the cells from ``data`` on."""

    start: int
    data: int
    end: int
    words: memoryview
    """Those of the cells, one cell after the other."""
    cell_words: int
    places: Sequence[tuple[int, int, int]]
    """Of the tensors: the fields of each."""

    @property
    def cells(self) -> int:
        return len(self.words) // self.cell_words

    @property
    def table(self) -> Cells:
        """A row for each cell: a view."""
        return np.frombuffer(self.words, dtype=np.int32).reshape(-1, self.cell_words)

    @property
    def positions(self) -> list[int]:
        return self.words[_POSITION :: self.cell_words].tolist()

    @property
    def tensors(self) -> list[Tensor]:
        return [Tensor(*place) for place in self.places]

    @property
    def has_sequence(self) -> bool:
        """Each cell names one sequence, as a blob that is to be loaded must."""
        return self.cells > 0 and bool(self.words[_N_SEQ])


def parse(blob: memoryview, layout: Layout) -> list[Section]:
    """The KV sections of a sequence blob; with the tail they tile it exactly. Raises :class:`StateLayoutError`."""
    (magic, _sequence), at = _read(_ENVELOPE, blob, 0)
    if magic != MAGIC:
        raise StateLayoutError(f"not a sequence state: magic {magic:#010x}")
    end = blob.nbytes - len(layout.tail)
    if end < at or blob[end:] != layout.tail:
        raise StateLayoutError("another recurrent section than that of a sequence without any")
    found = []
    for _ in range(layout.sections):
        found.append(_parse_section(blob[:end], at, layout))
        at = found[-1].end
    if at != end:
        raise StateLayoutError(f"{end - at} bytes after the last section")
    return found


def canonical(buffer: memoryview, at: int, layout: Layout, start: int, end: int) -> memoryview:
    """Rewrite the blob at ``buffer[at:]`` in place to its canonical form and return a view of it, which passes
    :func:`check_rows`. Raises :class:`StateLayoutError` unless its first section has just the rows ``[start, end)``.

    The view may begin up to ``HEADROOM_PER_CELL`` bytes a cell before ``at``. Of two sections the first
    is kept and the second emptied: the window is captured apart.
    """
    section, *others = parse(buffer[at:], layout)
    if section.cells == 0:
        raise StateLayoutError("no cells")
    _check_positions(section, start, end)
    header = _header(section.table, layout.extra)
    first = at + section.data - len(header)
    if first < 0:
        raise StateLayoutError("no headroom before the blob")
    stop = at + section.end
    if others:
        _SECTION.pack_into(buffer, stop, 1, 0)
        stop += _SECTION.size
        buffer[stop : stop + len(layout.tail)] = layout.tail
    stop += len(layout.tail)
    buffer[first : at + section.data] = header
    return buffer[first:stop]


def split(
    buffer: memoryview, layout: Layout, start: int, end: int, memory: Callable[[int], memoryview]
) -> tuple[memoryview, memoryview]:
    """The two sections of a blob as canonical blobs: of rows, copied into new ``memory``; of the window, in place.

    Raises :class:`StateLayoutError` unless both have just the rows ``[start, end)``.
    """
    section, window = parse(buffer, layout)
    for found in (section, window):
        if found.cells == 0:
            raise StateLayoutError("no cells")
        _check_positions(found, start, end)
    head, window_head = _header(section.table, layout.extra), _header(window.table, layout.extra)
    parts = [memoryview(head), buffer[section.data : section.end], memoryview(_SECTION.pack(1, 0) + layout.tail)]
    rows = memory(sum(part.nbytes for part in parts))
    at = 0
    for part in parts:
        rows[at : at + part.nbytes] = part
        at += part.nbytes
    first = window.data - len(window_head)
    buffer[first : window.data] = window_head  # over what was copied
    return rows, buffer[first:]


def select_rows(blob: memoryview, layout: Layout, start: int, end: int) -> memoryview:
    """A canonical blob of one section with only its rows ``[start, end)``; itself if those are all."""
    (section,) = parse(blob, layout)
    kept = [cell for cell, position in enumerate(section.positions) if start <= position < end]
    if len(kept) == section.cells:
        return blob
    parts: list[bytes | memoryview] = [_header(section.table[kept], layout.extra)]
    at = section.data
    for tensor in section.tensors:
        parts.append(blob[at : tensor.data])
        at = tensor.data + tensor.runs * tensor.cell_bytes * section.cells
        rows = np.frombuffer(blob, np.uint8, at - tensor.data, tensor.data)
        parts.append(rows.reshape(tensor.runs, section.cells, tensor.cell_bytes)[:, kept].tobytes())
    return memoryview(b"".join([*parts, blob[at : section.end], layout.tail]))


def blank_rows(like: memoryview, layout: Layout, first: int, count: int) -> memoryview:
    """A canonical blob of one section with ``count`` rows of zeros from ``first`` on, of the same model as ``like``."""
    (section,) = parse(like, layout)
    cells = np.zeros((count, section.cell_words), dtype=np.int32)
    cells[:, _POSITION] = np.arange(first, first + count)
    parts: list[bytes | memoryview] = [_header(cells, layout.extra)]
    at = section.data
    for tensor in section.tensors:
        parts += [like[at : tensor.data], bytes(tensor.runs * tensor.cell_bytes * count)]
        at = tensor.data + tensor.runs * tensor.cell_bytes * section.cells
    return memoryview(b"".join([*parts, like[at : section.end], layout.tail]))


def check_rows(blob: memoryview, layout: Layout, start: int, end: int) -> None:
    """Raise unless the blob can be loaded and holds exactly the rows ``[start, end)``, no window."""
    rows, *others = parse(blob, layout)
    if any(other.cells for other in others):
        raise StateMismatch("a piece with window rows")
    _check_loadable(rows)
    _check_positions(rows, start, end)


def check_window(blob: memoryview, layout: Layout, start: int, end: int) -> None:
    """Raise unless the partial blob can be loaded and its window is exactly the rows ``[start, end)``."""
    (window,) = parse(blob, layout)
    _check_loadable(window)
    _check_positions(window, start, end)


def recurrent_only(blob: memoryview, layout: Layout) -> bytes:
    """The partial blob of a hybrid model without its window rows: they are captured apart.

    ``layout``: of the partial blob, with the tail of a sequence that has no recurrent state.
    """
    size = _recurrent_bytes(layout.tail)
    if size > blob.nbytes - _ENVELOPE.size:
        raise StateLayoutError("no recurrent section")
    emptied = _SECTION.pack(1, 0) * layout.sections
    return _ENVELOPE.pack(MAGIC, 0) + emptied + bytes(blob[blob.nbytes - size :])


def check_recurrent(blob: memoryview, layout: Layout, end: int) -> None:
    """Raise unless the blob holds what the recurrent layers remember of ``end`` tokens, and no rows.

    ``layout``: as for :func:`recurrent_only`. Types and sizes must be those of the context's own layers.
    """
    expected = _ENVELOPE.pack(MAGIC, 0) + _SECTION.pack(1, 0) * layout.sections
    at = len(expected)
    if blob.nbytes != at + _recurrent_bytes(layout.tail) or blob[:at] != expected:
        raise StateLayoutError(f"{blob.nbytes} bytes are not a recurrent state")
    (cells,), at = _read(_COUNT, blob, at)
    (position, n_seq, s_trans, layers), at = _read(_RECURRENT, blob, at)
    _, own_trans, own_layers = _EMPTY_RECURRENT.unpack_from(layout.tail)
    if (cells, position, n_seq, s_trans, layers) != (1, end - 1, 0, own_trans, own_layers):
        raise StateMismatch(f"a recurrent state of {cells} cells at position {position}, not one at {end - 1}")
    for header, row_bytes in _recurrent_tensors(layout.tail):
        if blob[at : at + len(header)] != header:
            raise StateLayoutError(f"another recurrent tensor at byte {at}")
        at += len(header) + row_bytes


def refused_blob() -> bytes:
    """A blob whose only cell llama.cpp refuses: it names no sequence."""
    return _ENVELOPE.pack(MAGIC, 0) + _SECTION.pack(1, 1) + bytes(_CELL_BARE)


def empty_bytes(layout: Layout) -> int:
    """Bytes of the state of a sequence that holds nothing."""
    return _ENVELOPE.size + layout.sections * _SECTION.size + len(layout.tail)


def is_recurrent_tail(tail: bytes) -> bool:
    """Whether the bytes are the recurrent section of a sequence without any, as this module knows it."""
    if len(tail) <= _EMPTY_RECURRENT.size or (len(tail) - _EMPTY_RECURRENT.size) % _ROWS.size:
        return False
    cells, s_trans, layers = _EMPTY_RECURRENT.unpack_from(tail)
    tensors = list(_recurrent_tensors(tail))
    sound = all(row_bytes <= _ROW_BYTES_MAX for _, row_bytes in tensors)
    return cells == 0 and s_trans == 0 and 1 <= layers <= _LAYERS_MAX and len(tensors) <= 2 * layers and sound


def _recurrent_tensors(tail: bytes) -> Iterator[tuple[bytes, int]]:
    """The header of each recurrent tensor, and the bytes of its row."""
    for at in range(_EMPTY_RECURRENT.size, len(tail), _ROWS.size):
        yield tail[at : at + _ROWS.size], _ROWS.unpack_from(tail, at)[1]


def _recurrent_bytes(tail: bytes) -> int:
    """Bytes of the recurrent section of one cell."""
    return len(tail) + 2 * _WORD + sum(row_bytes for _, row_bytes in _recurrent_tensors(tail))


def _check_loadable(section: Section) -> None:
    if not section.has_sequence:
        raise StateMismatch("no cells, or cells without a sequence")


def _check_positions(section: Section, start: int, end: int) -> None:
    positions, expected = section.positions, list(range(start, end))
    if positions != expected and sorted(positions) != expected:
        raise StateMismatch(f"{len(positions)} cells are not the rows {start} to {end}")


def _header(table: Cells, extra: int) -> bytes:
    """What comes before ``v_trans`` in a canonical blob."""
    cells = np.zeros((len(table), 2 + extra + 1), dtype=np.int32)  # the last column: sequence 0
    cells[:, : 2 + extra] = table[:, : 2 + extra]
    cells[:, _N_SEQ] = 1
    return _ENVELOPE.pack(MAGIC, 0) + _SECTION.pack(1, len(table)) + cells.tobytes()


def _parse_section(blob: memoryview, start: int, layout: Layout) -> Section:
    (n_stream, cells), at = _read(_SECTION, blob, start)
    if n_stream != 1 or cells > _CELLS_MAX:
        raise StateLayoutError(f"{n_stream} streams, {cells} cells")
    if cells == 0:
        return Section(start, at, at, blob[at:at].cast("i"), 2 + layout.extra, ())
    (_position, n_seq), _ = _read(_SECTION, blob, at)
    if n_seq > 1:
        raise StateLayoutError(f"a cell of {n_seq} sequences")
    words = 2 + layout.extra + n_seq
    data = _skip(blob, at, cells * words * _WORD)
    table = blob[at:data].cast("i")
    if table[_N_SEQ::words].tolist().count(n_seq) != cells:
        raise StateLayoutError("cells differ in their number of sequences")
    places, end = _parse_tensors(blob, data, cells, layout.values)
    return Section(start, data, end, table, words, places)


def _parse_tensors(blob: memoryview, at: int, cells: int, values: bool) -> tuple[list[tuple[int, int, int]], int]:
    """The fields of each :class:`Tensor`, and where the last one ends. Called for each block: hence the plain loop."""
    (v_trans, layers), at = _read(_DATA, blob, at)
    if v_trans > 1 or layers > _LAYERS_MAX:
        raise StateLayoutError(f"v_trans {v_trans}, {layers} layers")
    found, whole, runs = [], blob.nbytes, 1
    for number in range(2 * layers if values else layers):
        data = at + _TENSOR_HEAD
        if data > whole:
            raise StateLayoutError(f"the head of a tensor at {at} of {whole}")
        if v_trans and number >= layers:
            kind, cell_bytes, runs = _TRANSPOSED.unpack_from(blob, at)
        else:
            kind, cell_bytes = _ROWS.unpack_from(blob, at)
        if kind < 0 or cell_bytes == 0 or runs == 0:
            raise StateLayoutError(f"tensor of type {kind}, {runs} x {cell_bytes} bytes a cell")
        found.append((data, runs, cell_bytes))
        at = data + runs * cell_bytes * cells
    if at > whole:
        raise StateLayoutError(f"tensors up to {at} of {whole}")
    return found, at


def _read(layout: struct.Struct, blob: memoryview, at: int) -> tuple[tuple[int, ...], int]:
    end = _skip(blob, at, layout.size)
    return layout.unpack_from(blob, at), end


def _skip(blob: memoryview, at: int, nbytes: int) -> int:
    if nbytes > blob.nbytes - at:
        raise StateLayoutError(f"{nbytes} bytes wanted at {at} of {blob.nbytes}")
    return at + nbytes
