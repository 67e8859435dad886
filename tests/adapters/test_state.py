"""The layout of llama.cpp's sequence state: parsed exactly, made loadable, and never trusted."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters.blobs import NO_ROWS, Rows, blob

pytest.importorskip("llama_cpp")

from kvtier_adapters.llama_cpp.state import (
    HEADROOM_PER_CELL,
    Layout,
    StateLayoutError,
    blank_rows,
    canonical,
    check_rows,
    check_window,
    parse,
    select_rows,
)


@st.composite
def rows(draw: st.DrawFn, start: int = 0) -> Rows:
    first = draw(st.integers(start, start + 50))
    positions = list(range(first, first + draw(st.integers(1, 12))))
    if draw(st.booleans()):
        random.Random(draw(st.integers())).shuffle(positions)
    return Rows(
        positions,
        layers=draw(st.integers(1, 3)),
        row_bytes=2 * draw(st.integers(1, 5)),
        v_trans=draw(st.booleans()),
        with_sequence=draw(st.booleans()),
    )


def in_place(data: bytes, cells: int, sections: int) -> bytes:
    """``canonical`` on a copy that has the headroom a capture leaves."""
    headroom = HEADROOM_PER_CELL * cells
    buffer = bytearray(headroom) + data
    return bytes(canonical(memoryview(buffer), headroom, Layout(sections)))


@given(rows(), rows())
def test_sections_tile_the_blob_and_name_their_positions(base: Rows, window: Rows) -> None:
    data = memoryview(blob(base, window))
    first, second = parse(data, Layout(2))
    assert (first.start, first.end, second.end) == (8, second.start, len(data))
    assert first.positions.tolist() == list(base.positions)
    assert second.positions.tolist() == list(window.positions)
    assert [t.data for t in first.tensors] == sorted(t.data for t in first.tensors)


@given(rows(), rows(), st.data())
def test_every_truncation_and_every_extra_byte_is_refused(base: Rows, window: Rows, data: st.DataObject) -> None:
    whole = blob(base, window)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(StateLayoutError):
        parse(memoryview(whole[:cut]), Layout(2))
    with pytest.raises(StateLayoutError):
        parse(memoryview(whole + b"\0"), Layout(2))
    with pytest.raises(StateLayoutError):
        parse(memoryview(whole), Layout(1))


@given(rows(), st.data())
def test_damage_is_refused_or_stays_inside_the_blob(base: Rows, data: st.DataObject) -> None:
    damaged = bytearray(blob(base, NO_ROWS))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse(memoryview(damaged), Layout(2))
    except StateLayoutError:
        return
    for section in found:
        for tensor in section.tensors:
            assert section.data < tensor.data
            assert tensor.data + tensor.runs * tensor.cell_bytes * section.cells <= section.end <= len(damaged)


@given(st.binary(max_size=200))
def test_noise_raises_nothing_else(noise: bytes) -> None:
    for data in (noise, blob(Rows([0]))[:16] + noise):
        with pytest.raises(StateLayoutError):
            parse(memoryview(data), Layout(1))


@pytest.mark.parametrize("offset", [8, 12, 20, 24 + 4], ids=["streams", "cells", "sequences", "layers"])
def test_a_count_beyond_all_reason_is_refused_at_once(offset: int) -> None:
    data = bytearray(blob(Rows([0], with_sequence=False)))
    data[offset : offset + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(StateLayoutError):
        parse(memoryview(data), Layout(1))


def test_cells_must_agree_on_their_number_of_sequences() -> None:
    data = bytearray(blob(Rows([0, 1, 2])))
    data[16 + 12 + 4] = 2  # llama.cpp would read one sequence id more here, and everything after it shifted
    with pytest.raises(StateLayoutError, match="differ"):
        parse(memoryview(data), Layout(1))


@given(rows(), rows())
def test_canonical_form_is_what_a_context_with_sequences_writes(base: Rows, window: Rows) -> None:
    captured = blob(base, window, sequence=7)
    loadable = Rows(base.positions, base.layers, base.row_bytes, base.v_trans, with_sequence=True)
    assert in_place(captured, len(base.positions), 2) == blob(loadable, NO_ROWS)
    assert in_place(blob(base, sequence=7), len(base.positions), 1) == blob(loadable)


def test_canonical_needs_headroom_only_where_the_blob_grows() -> None:
    bare, full = (memoryview(bytearray(blob(Rows([0, 1], with_sequence=s)))) for s in (False, True))
    assert bytes(canonical(full, 0, Layout(1))) == blob(Rows([0, 1]))
    with pytest.raises(StateLayoutError, match="headroom"):
        canonical(bare, 0, Layout(1))


@given(rows(), st.integers(0, 70), st.integers(0, 70))
def test_rows_selected_by_position(base: Rows, start: int, length: int) -> None:
    base = Rows(base.positions, base.layers, base.row_bytes, base.v_trans)
    if not base.keep(start, start + length).positions:
        start, length = min(base.positions), 1
    assert bytes(select_rows(memoryview(blob(base)), Layout(1), start, start + length)) == blob(
        base.keep(start, start + length)
    )


@given(rows(), st.integers(1, 9))
def test_blank_rows_load_like_real_ones(base: Rows, count: int) -> None:
    base = Rows(base.positions, base.layers, base.row_bytes, base.v_trans)
    blank = blank_rows(memoryview(blob(base)), Layout(1), 0, count)
    check_window(blank, Layout(1), 0, count)
    (section,), (like,) = parse(blank, Layout(1)), parse(memoryview(blob(base)), Layout(1))
    assert [(t.runs, t.cell_bytes) for t in section.tensors] == [(t.runs, t.cell_bytes) for t in like.tensors]
    assert all(not any(blank[t.data : t.data + t.runs * t.cell_bytes * count]) for t in section.tensors)


@given(rows())
def test_only_exactly_the_expected_rows_pass(base: Rows) -> None:
    start, end = min(base.positions), max(base.positions) + 1
    good = memoryview(blob(Rows(base.positions, v_trans=base.v_trans), NO_ROWS))
    check_rows(good, Layout(2), start, end)
    for wrong in ((start, end + 1), (start + 1, end + 1), (start - 1, end)):
        with pytest.raises(StateLayoutError):
            check_rows(good, Layout(2), *wrong)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (blob(Rows([0, 1], with_sequence=False), NO_ROWS), "cells without a sequence: llama.cpp refuses them"),
        (blob(Rows([0, 0]), NO_ROWS), "a position twice"),
        (blob(Rows([0, 1]), Rows([0, 1])), "window rows in a piece"),
        (blob(NO_ROWS, NO_ROWS), "empty: it would load and change nothing"),
        (blob(Rows([0, 1])), "one section where the model has two"),
    ],
)
def test_a_piece_that_must_not_be_loaded(data: bytes, why: str) -> None:
    with pytest.raises(StateLayoutError):
        check_rows(memoryview(data), Layout(2), 0, 2)


def test_a_window_holds_exactly_its_rows() -> None:
    check_window(memoryview(blob(Rows([6, 7, 5]))), Layout(1), 5, 8)
    for wrong in ((4, 8), (5, 9), (6, 8)):
        with pytest.raises(StateLayoutError):
            check_window(memoryview(blob(Rows([6, 7, 5]))), Layout(1), *wrong)
    with pytest.raises(StateLayoutError):
        check_window(memoryview(blob(Rows([5]), NO_ROWS)), Layout(1), 5, 6)
