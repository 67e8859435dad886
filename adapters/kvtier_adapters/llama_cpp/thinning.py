"""Keeping the checkpoints of one conversation within their bytes: the store side of :func:`.placement.thin`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtier_adapters.llama_cpp.binding import Binding
from kvtier_adapters.llama_cpp.placement import thin
from kvtier_adapters.prefix import Piece


@dataclass(frozen=True, slots=True)
class _Part:
    """Blocks that the checkpoints in ``[first, last]`` need: a snapshot (its own), window rows (any near them)."""

    first: int
    last: int
    nbytes: int
    keys: Sequence[bytes]

    def serves(self, positions: Sequence[int]) -> bool:
        return any(self.first <= position <= self.last for position in positions)


class Thinner:
    """Deletes checkpoints of the conversation that its binding has stored, once they take too many bytes."""

    def __init__(self, binding: Binding) -> None:
        self._to = binding

    def thin(self) -> None:
        """Raises what the store raises. The last checkpoint always stays."""
        to = self._to
        most = to.options.checkpoint_bytes_max
        parts = [part for piece in to.pieces for part in self._parts(piece)]
        if sum(part.nbytes for part in parts) <= most:
            return
        ends = [piece.end for piece in to.pieces if any(part.serves([piece.end]) for part in parts)]

        def cost(positions: Sequence[int]) -> int:
            return sum(part.nbytes for part in parts if part.serves(positions))

        kept = thin(ends, cost, most)
        left = [part for part in parts if part.serves(kept)]
        for part in parts:
            if part not in left:
                for key in part.keys:
                    to.store.delete(key, namespace=to.options.namespace)
        to.stats.checkpoints_thinned += sum(not any(part.serves([end]) for part in left) for end in ends)

    def _parts(self, piece: Piece) -> list[_Part]:
        """What the store has of checkpoints under the key of one piece."""
        to = self._to
        found = []
        snapshot = to.snapshot(piece) if to.memory.snapshots else None
        if snapshot:
            found.append(_Part(piece.end, piece.end, snapshot.nbytes, snapshot.keys(to.secret)))
        window = to.window_part(piece) if to.ring.n_swa else None
        info = to.store.info(window.key, namespace=to.options.namespace) if window else None
        if window and info:
            last = window.end + to.ring.n_swa - 1
            found.append(_Part(window.start + 1, last, info.nbytes, [window.key]))
        return found
