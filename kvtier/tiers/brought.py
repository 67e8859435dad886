"""What became of blocks that were brought into RAM ahead of their use.

Threads: under the lock of the RAM tier's owner.
"""

from __future__ import annotations

from typing import NamedTuple


class Amount(NamedTuple):
    """So many blocks, with so many bytes."""

    blocks: int = 0
    nbytes: int = 0

    def more(self, nbytes: int) -> Amount:
        return Amount(self.blocks + 1, self.nbytes + nbytes)


class Brought:
    """``useful``: used from RAM since they came, each counted once. ``wasted``: gone again without that."""

    def __init__(self) -> None:
        self.useful = Amount()
        self.wasted = Amount()
        self.unused_bytes = 0
        self._sizes: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._sizes)

    def came(self, block_id: int, nbytes: int) -> None:
        self._sizes[block_id] = nbytes
        self.unused_bytes += nbytes

    def used(self, block_id: int) -> None:
        if (nbytes := self._sizes.pop(block_id, None)) is not None:
            self.unused_bytes -= nbytes
            self.useful = self.useful.more(nbytes)

    def gone(self, block_id: int) -> None:
        if (nbytes := self._sizes.pop(block_id, None)) is not None:
            self.unused_bytes -= nbytes
            self.wasted = self.wasted.more(nbytes)
