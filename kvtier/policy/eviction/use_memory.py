"""How often blocks that have left were used, roughly."""

from __future__ import annotations

USES_MAX = 7
_LEAST_CELLS = 256
_TAG_SHIFT = 59
_USES_BITS = 3


class UseMemory:
    """A direct-mapped table of bytes: five bits to tell blocks apart, three for the uses. A block takes the place of
    another, so that what does not come for long is forgotten by and by. Of blocks that were never seen, one in 32 is
    taken for another one."""

    def __init__(self) -> None:
        self._cells = bytearray(_LEAST_CELLS)

    @property
    def nbytes(self) -> int:
        return self._cells.__sizeof__()

    def store(self, block: int, uses: int) -> None:
        self._cells[block & len(self._cells) - 1] = block >> _TAG_SHIFT << _USES_BITS | min(uses, USES_MAX)

    def recall(self, block: int) -> int:
        """Uses of ``block``, at most :data:`USES_MAX`; 0: not known."""
        cell = self._cells[block & len(self._cells) - 1]
        return cell & USES_MAX if cell >> _USES_BITS == block >> _TAG_SHIFT else 0

    def grow(self, cells: int) -> None:
        """Room for about so many, if there is less; what is known stays."""
        while 2 * len(self._cells) <= cells:
            self._cells = self._cells * 2
