"""Where the rows of a sliding window lie in llama.cpp's cells, so that a restored context computes alike.

llama.cpp keeps a window in a ring: the row of position ``p`` is in cell ``p % cells``, and a cell is used
again when its row has left the window. The order of the cells is the order in which attention adds up
in few bits, so the same rows in other cells give slightly other logits. A restore therefore puts the rows
where an uninterrupted run has them, and evaluation goes on in the same cell. What fills the cells in
between has left the window and is never looked at: blank rows will do. With ``swa_full`` the ring never
wraps, and a row must only be in the same lane of the kernels that add up: the blank rows are then few.

Pure functions; positions and cells are counts of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

#: Kernels add up cells lane by lane. None has more lanes than llama.cpp pads its caches to.
LANES = 256


class Rows(NamedTuple):
    """Rows ``[start, end)``, in consecutive cells."""

    start: int
    end: int


class Blank(NamedTuple):
    """Rows ``[start, end)`` of zeros: positions that have left the window."""

    start: int
    end: int


class Gap(NamedTuple):
    """Cells that are free: the next to be used."""

    cells: int


def first_needed(resume: int, n_swa: int) -> int:
    """The first position that must be complete for evaluating ``resume``; ``n_swa`` 0: no window."""
    return max(0, resume - n_swa + 1) if n_swa else 0


def needed_from(end: int, n_swa: int) -> int:
    """The first row of the window that is kept as of ``end``: one more than :func:`first_needed` for ``end``, so that
    a context restored to ``end`` can go on one token before it as well."""
    return max(0, end - n_swa)


@dataclass(frozen=True, slots=True)
class Ring:
    """A window of ``n_swa`` positions (0: none) in a ring of ``cells`` cells (0: rows may lie anywhere)."""

    n_swa: int
    cells: int = 0
    wraps: bool = True
    """False where no sequence is longer than the ring."""

    def needed_from(self, end: int) -> int:
        return needed_from(end, self.n_swa)

    def layout(self, needed: int, end: int) -> list[Rows | Blank | Gap]:
        """The cells from the first on, for the rows ``[needed, end)`` of a sequence of ``end``."""
        if not self.cells:
            return [Rows(needed, end)]
        lap = end - end % self.cells  # the row in the first cell
        if lap <= needed:
            left = needed - lap if self.wraps else needed % LANES
            return [*([Blank(needed - left, needed)] if left else []), Rows(needed, end)]
        gap = Gap(self.cells - (end - needed))
        return [*([Rows(lap, end)] if lap < end else []), *([gap] if gap.cells else []), Rows(needed, lap)]
