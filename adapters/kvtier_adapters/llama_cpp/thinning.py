"""Keeping the checkpoints of one conversation within their bytes: the store side of :func:`.placement.thin`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtier_adapters.llama_cpp.binding import Binding
from kvtier_adapters.llama_cpp.placement import thin
from kvtier_adapters.llama_cpp.snapshots import Snapshot
from kvtier_adapters.llama_cpp.window import first_needed
from kvtier_adapters.prefix import Piece

if TYPE_CHECKING:
    from kvtier import BlockInfo


@dataclass(frozen=True, slots=True)
class _Part:
    """What checkpoints in ``[first, last]`` need: a snapshot (its own alone), window rows of a piece (any near)."""

    first: int
    last: int
    nbytes: int
    block: Snapshot | Piece

    def serves(self, positions: Sequence[int]) -> bool:
        return any(self.first <= position <= self.last for position in positions)


class Thinner:
    """Deletes checkpoints of the conversation that its binding has stored, once they take too many bytes."""

    def __init__(self, binding: Binding) -> None:
        self._to = binding
        self._looked_up = -1
        self._left_bytes = 0  # when the parts were last looked at
        self._captured_bytes = 0

    def thin(self) -> None:
        """Raises what the store raises. The last checkpoint always stays."""
        to = self._to
        captured = to.stats.checkpoint_bytes - self._captured_bytes
        if self._looked_up == to.looked_up and self._left_bytes + captured <= to.options.checkpoint_bytes_max:
            return
        self._left_bytes = self._thin()
        self._looked_up, self._captured_bytes = to.looked_up, to.stats.checkpoint_bytes

    def _thin(self) -> int:
        """How many bytes the checkpoints that stay take."""
        to = self._to
        snapshots = [part for piece in to.pieces if (part := self._snapshot(piece))] if to.memory.snapshots else []
        windows = self._windows() if to.ring.n_swa else []
        parts = [*snapshots, *(part for part in windows if part)]
        total = sum(part.nbytes for part in parts)
        if total <= to.options.checkpoint_bytes_max:
            return total
        ends = self._ends(snapshots, windows)
        if not ends:
            return total

        def cost(positions: Sequence[int]) -> int:
            return sum(part.nbytes for part in parts if part.serves(positions))

        kept = thin(ends, cost, to.options.checkpoint_bytes_max)
        for part in parts:
            if not part.serves(kept):
                self._delete(part)
        left = self._ends(
            [part for part in snapshots if part.serves(kept)],
            [part if part and part.serves(kept) else None for part in windows],
        )
        to.stats.checkpoints_thinned += len(ends) - len(left)
        return cost(kept)

    def _ends(self, snapshots: Sequence[_Part], windows: Sequence[_Part | None]) -> list[int]:
        """The positions that can be gone back to with these parts."""
        to = self._to
        whole = {part.last for part in snapshots}
        return [
            piece.end
            for number, piece in enumerate(to.pieces)
            if (not to.memory.snapshots or piece.end in whole) and self._has_window(number, windows)
        ]

    def _snapshot(self, piece: Piece) -> _Part | None:
        snapshot = self._to.snapshot(piece)
        return _Part(piece.end, piece.end, snapshot.nbytes, snapshot) if snapshot else None

    def _windows(self) -> list[_Part | None]:
        """Of each piece."""
        to = self._to
        parts = to.window_parts(to.pieces)
        infos = iter(to.store.info_many([rows.key for rows in parts if rows], namespace=to.namespace))
        return [self._window(rows, next(infos)) if rows else None for rows in parts]

    def _window(self, rows: Piece, info: BlockInfo | None) -> _Part | None:
        return _Part(rows.start + 1, rows.end + self._to.ring.n_swa - 1, info.nbytes, rows) if info else None

    def _has_window(self, number: int, windows: Sequence[_Part | None]) -> bool:
        """Whether the window as of the end of a piece is stored whole; true where there is none."""
        if not windows:
            return True
        pieces = self._to.pieces[: number + 1]
        needed = first_needed(pieces[-1].end, self._to.ring.n_swa)
        for piece, part in zip(reversed(pieces), reversed(windows[: number + 1]), strict=True):
            if piece.end <= needed:
                break
            if part is None or part.first - 1 > max(piece.start, needed):
                return False
        return True

    def _delete(self, part: _Part) -> None:
        to = self._to
        keys = part.block.keys(to.secret) if isinstance(part.block, Snapshot) else [part.block.key]
        for key in keys:
            to.store.delete(key, namespace=to.namespace)
