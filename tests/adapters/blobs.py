"""A writer of llama.cpp sequence blobs, after the documented layout and independent of the parser."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

F16, Q8_0 = 1, 8


@dataclass(frozen=True)
class Rows:
    """One KV section to write. ``row_bytes``: of K and V in each layer; ``seed`` fills the tensors."""

    positions: Sequence[int]
    layers: int = 2
    row_bytes: int = 8
    v_trans: bool = False
    with_sequence: bool = True
    seed: int = 0

    def payload(self, layer: int, which: str, position: int) -> bytes:
        """The row of one position: the same bytes wherever and in whatever company it is written."""
        return random.Random(f"{self.seed}/{layer}/{which}/{position}").randbytes(self.row_bytes)

    def keep(self, start: int, end: int) -> Rows:
        return replace(self, positions=[p for p in self.positions if start <= p < end])


def section(rows: Rows) -> bytes:
    out = [struct.pack("=II", 1, len(rows.positions))]
    if not rows.positions:
        return out[0]
    for position in rows.positions:
        cell = struct.pack("=iIi", position, 1, 0) if rows.with_sequence else struct.pack("=iI", position, 0)
        out.append(cell)
    out.append(struct.pack("=II", rows.v_trans, rows.layers))
    for layer in range(rows.layers):
        out.append(struct.pack("=iQ", F16, rows.row_bytes))
        out += [rows.payload(layer, "k", p) for p in rows.positions]
    for layer in range(rows.layers):
        values = [rows.payload(layer, "v", p) for p in rows.positions]
        if rows.v_trans:
            out.append(struct.pack("=iII", F16, 2, rows.row_bytes // 2))
            out += [v[i : i + 2] for i in range(0, rows.row_bytes, 2) for v in values]
        else:
            out.append(struct.pack("=iQ", F16, rows.row_bytes))
            out += values
    return b"".join(out)


def blob(*sections: Rows, sequence: int = 0) -> bytes:
    return struct.pack("=Ii", 0xAF143CD8, sequence) + b"".join(section(s) for s in sections)


NO_ROWS = Rows(())
