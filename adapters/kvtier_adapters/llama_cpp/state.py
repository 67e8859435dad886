"""Sequence state of llama.cpp: bytes to sections and back. Pure functions, no C call.

A sequence blob, as ``llama_state_seq_get_data_ext`` writes it (host-endian, no padding)::

    u32 magic 0xaf143cd8, i32 sequence, then one or two KV sections:
      u32 n_stream (1), u32 cells; nothing more if cells == 0
      per cell        i32 position, u32 n_seq, i32 sequence[n_seq]
      u32 v_trans, u32 layers
      per layer, K    i32 type, u64 row bytes, cells * row
      per layer, V    v_trans == 0: i32 type, u64 row bytes, cells * row
                      v_trans == 1: i32 type, u32 element bytes, u32 rows, rows * cells * element

A model with plain attention writes one section; one with a sliding window writes two (all positions of
the full-attention layers, then the window of the others), or the second alone as a *partial* blob.

Everything is checked here before the engine sees a byte: each count and length, that the sections tile
the blob exactly, and that the positions are the ones that the caller expects. A blob that is not
understood raises :class:`StateLayoutError`; nothing is guessed.

What is stored is the blob itself in its *canonical form*, so that a restore hands the store's own buffer
to the engine: sequence 0, one sequence id a cell (a context with ``n_seq_max == 1`` writes none, and
llama.cpp then refuses to read its own blob), and an empty second section where the window is kept apart.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAGIC = 0xAF143CD8

_ENVELOPE = struct.Struct("=Ii")  # magic, sequence
_SECTION = struct.Struct("=II")  # n_stream, cells
_DATA = struct.Struct("=II")  # v_trans, layers
_ROWS = struct.Struct("=iQ")  # type, row bytes
_TRANSPOSED = struct.Struct("=iII")  # type, element bytes, rows

_CELL_BARE = 8  # position, n_seq = 0
_CELL = 12  # position, n_seq = 1, sequence
#: Bytes that must be free before a captured blob, for each of its cells, so that `canonical` works in place.
HEADROOM_PER_CELL = _CELL - _CELL_BARE

_LAYERS_MAX = 4096
_CELLS_MAX = 1 << 27

Positions = npt.NDArray[np.int32]


class StateLayoutError(ValueError):
    """A blob is not laid out as this module knows it, or does not hold what was expected."""


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
    has_sequence: bool
    """Each cell names one sequence, as a blob that is to be loaded must."""
    positions: Positions
    tensors: tuple[Tensor, ...]

    @property
    def cells(self) -> int:
        return len(self.positions)


def parse(blob: memoryview, sections: int) -> list[Section]:
    """The sections of a sequence blob; they tile it exactly. Raises :class:`StateLayoutError`."""
    (magic, _sequence), at = _read(_ENVELOPE, blob, 0)
    if magic != MAGIC:
        raise StateLayoutError(f"not a sequence state: magic {magic:#010x}")
    found = []
    for _ in range(sections):
        found.append(_parse_section(blob, at))
        at = found[-1].end
    if at != blob.nbytes:
        raise StateLayoutError(f"{blob.nbytes - at} bytes after the last section")
    return found


def canonical(buffer: memoryview, start: int, sections: int) -> memoryview:
    """Rewrite the blob at ``buffer[start:]`` in place to its canonical form and return a view of it.

    The view may begin up to ``HEADROOM_PER_CELL`` bytes a cell before ``start``. Of two sections the first
    is kept and the second emptied: the window is captured apart.
    """
    section, *others = parse(buffer[start:], sections)
    if section.cells == 0:
        raise StateLayoutError("no cells")
    header = _header(section.positions)
    first = start + section.data - len(header)
    if first < 0:
        raise StateLayoutError("no headroom before the blob")
    end = start + section.end
    if others:
        _SECTION.pack_into(buffer, end, 1, 0)
        end += _SECTION.size
    buffer[first : start + section.data] = header
    return buffer[first:end]


def select_rows(blob: memoryview, start: int, end: int) -> memoryview:
    """A canonical blob of one section with only its rows ``[start, end)``; itself if those are all."""
    (section,) = parse(blob, 1)
    keep = (section.positions >= start) & (section.positions < end)
    if keep.all():
        return blob
    parts: list[bytes | memoryview] = [_header(section.positions[keep])]
    at = section.data
    for tensor in section.tensors:
        parts.append(blob[at : tensor.data])
        at = tensor.data + tensor.runs * tensor.cell_bytes * section.cells
        table = np.frombuffer(blob, np.uint8, at - tensor.data, tensor.data)
        parts.append(table.reshape(tensor.runs, section.cells, tensor.cell_bytes)[:, keep].tobytes())
    return memoryview(b"".join(parts))


def blank_rows(like: memoryview, count: int) -> memoryview:
    """A canonical blob of one section with ``count`` rows of zeros, of the same model as ``like``."""
    (section,) = parse(like, 1)
    parts: list[bytes | memoryview] = [_header(np.arange(count, dtype=np.int32))]
    at = section.data
    for tensor in section.tensors:
        parts += [like[at : tensor.data], bytes(tensor.runs * tensor.cell_bytes * count)]
        at = tensor.data + tensor.runs * tensor.cell_bytes * section.cells
    return memoryview(b"".join(parts))


def check_rows(blob: memoryview, sections: int, start: int, end: int) -> None:
    """Raise unless the blob can be loaded and holds exactly the rows ``[start, end)``, no window."""
    rows, *others = parse(blob, sections)
    if any(other.cells for other in others):
        raise StateLayoutError("a piece with window rows")
    _check_positions(rows, start, end)


def check_window(blob: memoryview, start: int, end: int) -> None:
    """Raise unless the partial blob can be loaded and its window is exactly the rows ``[start, end)``."""
    (window,) = parse(blob, 1)
    _check_positions(window, start, end)


def _check_positions(section: Section, start: int, end: int) -> None:
    if not section.has_sequence:
        raise StateLayoutError("no cells, or cells without a sequence")
    expected = np.arange(start, end, dtype=np.int32)
    positions = section.positions
    if not (np.array_equal(positions, expected) or np.array_equal(np.sort(positions), expected)):
        raise StateLayoutError(f"{len(positions)} cells are not the rows {start} to {end}")


def _header(positions: Positions) -> bytes:
    """What comes before ``v_trans`` in a canonical blob."""
    cells = np.empty((len(positions), 3), dtype=np.int32)
    cells[:] = (0, 1, 0)  # position, sequences, sequence
    cells[:, 0] = positions
    return _ENVELOPE.pack(MAGIC, 0) + _SECTION.pack(1, len(positions)) + cells.tobytes()


def _parse_section(blob: memoryview, start: int) -> Section:
    (n_stream, cells), at = _read(_SECTION, blob, start)
    if n_stream != 1 or cells > _CELLS_MAX:
        raise StateLayoutError(f"{n_stream} streams, {cells} cells")
    if cells == 0:
        return Section(start, at, at, False, np.empty(0, dtype=np.int32), ())
    (_position, n_seq), _ = _read(_SECTION, blob, at)
    if n_seq > 1:
        raise StateLayoutError(f"a cell of {n_seq} sequences")
    cell_bytes = _CELL if n_seq else _CELL_BARE
    data = _skip(blob, at, cells * cell_bytes)
    table = np.frombuffer(blob, dtype=np.int32, count=cells * cell_bytes // 4, offset=at)
    table = table.reshape(cells, cell_bytes // 4)
    if not bool((table[:, 1] == n_seq).all()):
        raise StateLayoutError("cells differ in their number of sequences")
    tensors, end = _parse_tensors(blob, data, cells)
    return Section(start, data, end, n_seq == 1, table[:, 0].copy(), tensors)


def _parse_tensors(blob: memoryview, at: int, cells: int) -> tuple[tuple[Tensor, ...], int]:
    (v_trans, layers), at = _read(_DATA, blob, at)
    if v_trans > 1 or not 1 <= layers <= _LAYERS_MAX:
        raise StateLayoutError(f"v_trans {v_trans}, {layers} layers")
    tensors = []
    for number in range(2 * layers):
        if v_trans and number >= layers:
            (kind, cell_bytes, runs), data = _read(_TRANSPOSED, blob, at)
        else:
            (kind, cell_bytes), data = _read(_ROWS, blob, at)
            runs = 1
        if kind < 0 or cell_bytes == 0 or runs == 0:
            raise StateLayoutError(f"tensor of type {kind}, {runs} x {cell_bytes} bytes a cell")
        tensors.append(Tensor(data, runs, cell_bytes))
        at = _skip(blob, data, runs * cell_bytes * cells)
    return tuple(tensors), at


def _read(layout: struct.Struct, blob: memoryview, at: int) -> tuple[tuple[int, ...], int]:
    end = _skip(blob, at, layout.size)
    return layout.unpack_from(blob, at), end


def _skip(blob: memoryview, at: int, nbytes: int) -> int:
    if nbytes > blob.nbytes - at:
        raise StateLayoutError(f"{nbytes} bytes wanted at {at} of {blob.nbytes}")
    return at + nbytes
