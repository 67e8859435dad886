"""A restored window lies in the cells of an uninterrupted run, and evaluation goes on in the same cell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("llama_cpp")

from kvtier_adapters.llama_cpp.window import LANES, Blank, Gap, Ring, Rows

rings = st.builds(lambda n_swa, more: Ring(n_swa, n_swa + more), st.integers(2, 12), st.integers(1, 12))


def placed(layout: list[Rows | Blank | Gap]) -> tuple[dict[int, int], dict[int, int], int]:
    """The cell of each row, of each blank row, and the next cell that llama.cpp takes: the first free one."""
    cell, free = 0, None
    rows: dict[int, int] = {}
    blank: dict[int, int] = {}
    for part in layout:
        if isinstance(part, Gap):
            free = cell
            cell += part.cells
        else:
            into = rows if isinstance(part, Rows) else blank
            into.update({row: cell + n for n, row in enumerate(range(part.start, part.end))})
            cell += part.end - part.start
    return rows, blank, cell if free is None else free


@given(rings, st.integers(1, 90), st.booleans())
def test_every_row_is_in_its_cell(ring: Ring, stored: int, step_back: bool) -> None:
    end = stored - (step_back and stored > 1)
    rows, blank, following = placed(ring.layout(ring.needed_from(stored), end))
    assert set(range(ring.needed_from(stored), end)) == rows.keys()
    assert all(cell == row % ring.cells for row, cell in (rows | blank).items())
    assert following % ring.cells == end % ring.cells
    assert max(rows.values(), default=0) < ring.cells


@given(rings, st.integers(1, 90))
def test_blank_rows_have_left_the_window(ring: Ring, stored: int) -> None:
    for end in {stored, max(1, stored - 1)}:
        _, blank, _ = placed(ring.layout(ring.needed_from(stored), end))
        assert all(end - position >= ring.n_swa for position in blank)


@given(rings, st.integers(1, 90))
def test_what_evaluation_looks_back_to_is_there(ring: Ring, end: int) -> None:
    for resume in {end, max(1, end - 1)}:
        attended = [p for p in range(resume) if resume - p < ring.n_swa]
        rows, _, _ = placed(ring.layout(ring.needed_from(end), resume))
        assert set(attended) <= rows.keys()


@given(st.integers(1, 12), st.integers(1, 2000))
def test_in_a_ring_that_never_wraps_each_row_is_in_its_lane(n_swa: int, end: int) -> None:
    ring = Ring(n_swa, 2001, wraps=False)
    rows, blank, following = placed(ring.layout(ring.needed_from(end), end))
    assert rows.keys() == set(range(max(0, end - n_swa), end))
    assert all(cell % LANES == row % LANES for row, cell in (rows | blank).items())
    assert len(blank) < LANES
    assert following == len(rows) + len(blank)


@given(st.integers(1, 12), st.integers(1, 90))
def test_where_it_does_not_matter_rows_are_in_order(n_swa: int, end: int) -> None:
    ring = Ring(n_swa)
    assert ring.layout(ring.needed_from(end), end) == [Rows(max(0, end - n_swa), end)]
