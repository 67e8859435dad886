"""Where the rows of a sliding window lie in llama.cpp's cells, so that a restored context computes alike.

llama.cpp keeps a window in a ring: the row of position ``p`` is in cell ``p % cells``, and a cell is used
again when its row has left the window. The order of the cells is the order in which attention adds up
in 16 bits, so the same rows in another rotation give slightly other logits. A restore therefore puts the
rows where an uninterrupted run has them, the gap in between included, and evaluation goes on in the same
cell. With ``swa_full`` the ring never wraps and rows in ascending order are as good.

Pure functions; positions and cells are counts of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Rows(NamedTuple):
    """Rows ``[start, end)``, in consecutive cells."""

    start: int
    end: int


class Gap(NamedTuple):
    """Cells that stay free."""

    cells: int


@dataclass(frozen=True, slots=True)
class Ring:
    """A window of ``n_swa`` positions (0: none) in a ring of ``cells`` cells (0: one that never wraps)."""

    n_swa: int
    cells: int = 0

    def needed_from(self, end: int) -> int:
        """The first row of the window as of ``end``: one more than evaluating ``end`` looks back to, so
        that a context restored to ``end`` can go on one token before it as well."""
        return max(0, end - self.n_swa)

    def wanted_from(self, end: int) -> int:
        """The first row that :meth:`layout` has a use for, as of ``end`` or the position before."""
        if self.cells == 0:
            return self.needed_from(end)
        lap = (end - 1) % self.cells + 1
        return max(0, min(self.needed_from(end), end - lap))

    def layout(self, needed: int, available: int, end: int) -> list[Rows | Gap]:
        """The cells from the first on, for the rows ``[needed, end)``; rows from ``available`` on may be used.

        Rows that are not available are only wanted where a lap is longer than the window: the rows then lie
        at the first cells, which is right for attention and wrong only for where the next lap begins.
        """
        lap = end % self.cells if self.cells else end
        if not self.cells or lap >= end - needed:
            is_whole_lap = self.cells > 0 and available <= end - lap
            return [Rows(end - lap if is_whole_lap else needed, end)]
        newest, gap, oldest = Rows(end - lap, end), self.cells - (end - needed), Rows(needed, end - lap)
        return [*([newest] if lap else []), *([Gap(gap)] if gap else []), oldest]
