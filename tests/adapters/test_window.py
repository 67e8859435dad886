"""A restored window lies in the cells of an uninterrupted run, and evaluation goes on in the same cell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("llama_cpp")

from kvtier_adapters.llama_cpp.window import Gap, Ring, Rows

rings = st.builds(lambda n_swa, more: Ring(n_swa, n_swa + more), st.integers(2, 12), st.integers(1, 12))


def placed(layout: list[Rows | Gap]) -> tuple[dict[int, int], int]:
    """The cell of each row, and the next cell that llama.cpp takes: the first of those freed, else the next."""
    cell, cells, freed = 0, {}, None
    for part in layout:
        if isinstance(part, Gap):
            freed = cell
            cell += part.cells
        else:
            cells.update({row: cell + n for n, row in enumerate(range(part.start, part.end))})
            cell += part.end - part.start
    return cells, cell if freed is None else freed


@given(rings, st.integers(1, 90), st.booleans())
def test_every_row_is_in_its_cell(ring: Ring, stored: int, step_back: bool) -> None:
    end = stored - (step_back and stored > 1)
    layout = ring.layout(ring.needed_from(stored), ring.wanted_from(stored), end)
    cells, following = placed(layout)
    assert set(range(ring.needed_from(stored), end)) <= cells.keys()
    assert all(cell == row % ring.cells for row, cell in cells.items())
    assert following % ring.cells == end % ring.cells
    assert max(cells.values()) < ring.cells


@given(rings, st.integers(1, 90))
def test_what_evaluation_looks_back_to_is_there(ring: Ring, end: int) -> None:
    for resume in {end, max(1, end - 1)}:
        attended = [p for p in range(resume) if resume - p < ring.n_swa]
        cells, _ = placed(ring.layout(ring.needed_from(end), ring.wanted_from(end), resume))
        assert set(attended) <= cells.keys()


@given(rings, st.integers(1, 90))
def test_without_the_older_rows_the_window_is_still_whole(ring: Ring, end: int) -> None:
    cells, _ = placed(ring.layout(ring.needed_from(end), ring.needed_from(end), end))
    assert set(range(ring.needed_from(end), end)) == cells.keys()


@given(st.integers(1, 12), st.integers(1, 90))
def test_a_ring_that_never_wraps_is_filled_in_order(n_swa: int, end: int) -> None:
    ring = Ring(n_swa)
    assert ring.wanted_from(end) == ring.needed_from(end) == max(0, end - n_swa)
    assert ring.layout(ring.needed_from(end), 0, end) == [Rows(max(0, end - n_swa), end)]
