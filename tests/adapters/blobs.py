"""A writer of llama.cpp sequence blobs, after the documented layout and independent of the parser."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

F16, Q8_0, F32 = 1, 8, 0


@dataclass(frozen=True)
class Rows:
    """One KV section to write. ``row_bytes``: of K and V in each layer; ``seed`` fills the tensors and extra words."""

    positions: Sequence[int]
    layers: int = 2
    row_bytes: int = 8
    v_trans: bool = False
    with_sequence: bool = True
    seed: int = 0
    extra: int = 0
    """Words of a cell between its number of sequences and its sequences: x, y and token with M-RoPE."""
    values: bool = True
    """There are V tensors; not so with latent attention."""

    def payload(self, layer: int, which: str, position: int) -> bytes:
        """The row of one position: the same bytes wherever and in whatever company it is written."""
        return random.Random(f"{self.seed}/{layer}/{which}/{position}").randbytes(self.row_bytes)

    def words(self, position: int) -> bytes:
        return random.Random(f"{self.seed}/words/{position}").randbytes(4 * self.extra)

    def keep(self, start: int, end: int) -> Rows:
        return replace(self, positions=[p for p in self.positions if start <= p < end])


@dataclass(frozen=True)
class Recurrent:
    """A recurrent section to write, as of ``position``; None: of a sequence that has no state.

    ``rows``: bytes of each layer's R and S, 0 where there is none.
    """

    position: int | None
    rows: Sequence[tuple[int, int]] = ((8, 24), (8, 24))
    seed: int = 0

    @property
    def tail(self) -> bytes:
        """The section of the same model without any state."""
        return recurrent(replace(self, position=None))


def section(rows: Rows) -> bytes:
    out = [struct.pack("=II", 1, len(rows.positions))]
    if not rows.positions:
        return out[0]
    for position in rows.positions:
        sequence = struct.pack("=i", 0) if rows.with_sequence else b""
        out.append(struct.pack("=iI", position, rows.with_sequence) + rows.words(position) + sequence)
    out.append(struct.pack("=II", rows.v_trans, rows.layers))
    for layer in range(rows.layers):
        out.append(struct.pack("=iQ", F16, rows.row_bytes))
        out += [rows.payload(layer, "k", p) for p in rows.positions]
    for layer in range(rows.layers if rows.values else 0):
        values = [rows.payload(layer, "v", p) for p in rows.positions]
        if rows.v_trans:
            out.append(struct.pack("=iII", F16, 2, rows.row_bytes // 2))
            out += [v[i : i + 2] for i in range(0, rows.row_bytes, 2) for v in values]
        else:
            out.append(struct.pack("=iQ", F16, rows.row_bytes))
            out += values
    return b"".join(out)


def recurrent(state: Recurrent) -> bytes:
    out = [struct.pack("=I", state.position is not None)]
    if state.position is not None:
        out.append(struct.pack("=iI", state.position, 0))
    out.append(struct.pack("=II", 0, len(state.rows)))
    for which in (0, 1):
        for layer, sizes in enumerate(state.rows):
            if sizes[which]:
                out.append(struct.pack("=iQ", F32, sizes[which]))
                filled = 0 if state.position is None else sizes[which]
                out.append(random.Random(f"{state.seed}/{layer}/{which}").randbytes(filled))
    return b"".join(out)


def blob(*sections: Rows, sequence: int = 0, tail: bytes = b"") -> bytes:
    return struct.pack("=Ii", 0xAF143CD8, sequence) + b"".join(section(s) for s in sections) + tail


NO_ROWS = Rows(())
