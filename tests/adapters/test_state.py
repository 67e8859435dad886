"""The layout of llama.cpp's sequence state: parsed exactly, made loadable, and never trusted."""

from __future__ import annotations

import random
import struct
import tracemalloc
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters.blobs import NO_ROWS, Recurrent, Rows, blob, recurrent

pytest.importorskip("llama_cpp")

from kvtier_adapters.llama_cpp.state import (
    HEADROOM_PER_CELL,
    Layout,
    StateLayoutError,
    StateMismatch,
    blank_rows,
    canonical,
    check_recurrent,
    check_rows,
    check_window,
    empty_bytes,
    is_recurrent_tail,
    parse,
    recurrent_only,
    refused_blob,
    select_rows,
    split,
)

ENVELOPE, SECTION = 8, 8


@dataclass(frozen=True)
class Made:
    """Rows for each section of a blob, and the layout that all blobs of that context have."""

    layout: Layout
    rows: tuple[Rows, ...]

    def blob(self, *rows: Rows, sequence: int = 0) -> bytes:
        return blob(*(rows or self.rows), sequence=sequence, tail=self.layout.tail)


@st.composite
def rows(draw: st.DrawFn, layout: Layout) -> Rows:
    first = draw(st.integers(0, 50))
    positions = list(range(first, first + draw(st.integers(1, 12))))
    if draw(st.booleans()):
        random.Random(draw(st.integers())).shuffle(positions)
    return Rows(
        positions,
        layers=draw(st.integers(0, 3)),
        row_bytes=2 * draw(st.integers(1, 5)),
        v_trans=draw(st.booleans()),
        with_sequence=draw(st.booleans()),
        extra=layout.extra,
        values=layout.values,
    )


recurrents = st.builds(
    Recurrent,
    position=st.integers(0, 90),
    rows=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)


@st.composite
def made(draw: st.DrawFn, sections: int) -> Made:
    tail = draw(st.one_of(st.just(b""), recurrents.map(lambda state: state.tail)))
    layout = Layout(sections, draw(st.sampled_from([0, 3])), draw(st.booleans()), tail)
    return Made(layout, tuple(draw(rows(layout)) for _ in range(sections)))


def loadable(of: Rows) -> Rows:
    return replace(of, with_sequence=True)


def in_place(data: bytes, start: int, end: int, layout: Layout) -> bytes:
    """``canonical`` on a copy that has the headroom a capture leaves."""
    headroom = HEADROOM_PER_CELL * (end - start)
    buffer = bytearray(headroom) + data
    return bytes(canonical(memoryview(buffer), headroom, layout, start, end))


@given(made(2))
def test_sections_tile_the_blob_and_name_their_positions(of: Made) -> None:
    data = memoryview(of.blob())
    first, second = parse(data, of.layout)
    assert (first.start, first.end, second.end) == (ENVELOPE, second.start, len(data) - len(of.layout.tail))
    for section, written in zip((first, second), of.rows, strict=True):
        assert section.positions == list(written.positions)
        assert section.has_sequence == written.with_sequence
        assert len(section.tensors) == written.layers * (2 if of.layout.values else 1)
        assert [t.data for t in section.tensors] == sorted(t.data for t in section.tensors)


@given(made(1))
def test_the_words_of_a_cell_are_kept_in_their_place(of: Made) -> None:
    (section,) = parse(memoryview(of.blob()), of.layout)
    (written,) = of.rows
    assert section.table[:, 2 : 2 + of.layout.extra].tobytes() == b"".join(map(written.words, written.positions))


@given(made(2), st.data())
def test_every_truncation_and_every_extra_byte_is_refused(of: Made, data: st.DataObject) -> None:
    whole = of.blob()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(StateLayoutError):
        parse(memoryview(whole[:cut]), of.layout)
    with pytest.raises(StateLayoutError):
        parse(memoryview(whole + b"\0"), of.layout)
    with pytest.raises(StateLayoutError):
        parse(memoryview(whole), replace(of.layout, sections=1))


@given(made(1))
def test_a_blob_of_another_layout_is_refused(of: Made) -> None:
    (written,) = of.rows
    others = [
        replace(of.layout, extra=3 - of.layout.extra),
        replace(of.layout, tail=Recurrent(None, rows=[(7, 7)]).tail),
    ]
    if written.layers:
        others.append(replace(of.layout, values=not of.layout.values))
    for layout in others:
        with pytest.raises(StateLayoutError):
            parse(memoryview(of.blob(loadable(written))), layout)


@given(made(2), st.data())
def test_damage_is_refused_or_stays_inside_the_blob(of: Made, data: st.DataObject) -> None:
    damaged = bytearray(of.blob())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse(memoryview(damaged), of.layout)
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


@pytest.mark.parametrize("offset", [12, 32, 40], ids=["cells", "layers", "row bytes"])
@pytest.mark.parametrize("count", [4096, 1 << 20, 1 << 27])
def test_no_memory_is_taken_for_a_count_that_the_blob_does_not_hold(offset: int, count: int) -> None:
    data = memoryview(bytearray(blob(Rows([0]), NO_ROWS)))
    struct.pack_into("=I", data, offset, count)

    def peak_bytes() -> int:
        tracemalloc.start()
        try:
            with pytest.raises(StateLayoutError):
                check_rows(data, Layout(2), 0, 1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert min(peak_bytes() for _ in range(3)) < 1 << 14  # whatever other threads take at one of these moments


def test_cells_must_agree_on_their_number_of_sequences() -> None:
    data = bytearray(blob(Rows([0, 1, 2])))
    data[16 + 12 + 4] = 2  # llama.cpp would read one sequence id more here, and everything after it shifted
    with pytest.raises(StateLayoutError, match="differ"):
        parse(memoryview(data), Layout(1))


@given(made(2))
def test_canonical_form_is_what_a_context_with_sequences_writes(of: Made) -> None:
    base, _ = of.rows
    start, end = min(base.positions), max(base.positions) + 1
    rows = in_place(of.blob(sequence=7), start, end, of.layout)
    assert rows == of.blob(loadable(base), NO_ROWS)
    check_rows(memoryview(rows), of.layout, start, end)
    one = replace(of.layout, sections=1)
    assert in_place(of.blob(base, sequence=7), start, end, one) == of.blob(loadable(base))


@given(made(2))
def test_a_capture_of_other_rows_than_those_asked_for_is_refused(of: Made) -> None:
    start, end = min(of.rows[0].positions), max(of.rows[0].positions) + 1
    for wrong in ((start, end + 1), (start + 1, end + 1), (start - 1, end), (start, start)):
        with pytest.raises(StateMismatch):
            in_place(of.blob(), *wrong, of.layout)


def test_no_rows_are_no_capture() -> None:
    with pytest.raises(StateLayoutError, match="no cells"):
        in_place(blob(NO_ROWS, NO_ROWS), 0, 0, Layout(2))


@given(made(2))
def test_both_sections_of_a_capture_are_told_apart(of: Made) -> None:
    base = of.rows[0]
    window = replace(of.rows[1], positions=sorted(base.positions))
    start, end = min(base.positions), max(base.positions) + 1

    def split_of(*sections: Rows, start: int = start) -> list[bytes]:
        buffer = memoryview(bytearray(of.blob(*sections, sequence=7)))
        return [bytes(part) for part in split(buffer, of.layout, start, end, lambda n: memoryview(bytearray(n)))]

    assert split_of(base, window) == [of.blob(loadable(base), NO_ROWS), of.blob(loadable(window))]
    with pytest.raises(StateMismatch):
        split_of(base, window, start=start - 1)
    with pytest.raises(StateLayoutError, match="no cells"):
        split_of(base, NO_ROWS)
    with pytest.raises(StateMismatch):
        split_of(base, replace(window, positions=[*window.positions, end]))


def test_canonical_needs_headroom_only_where_the_blob_grows() -> None:
    bare, full = (memoryview(bytearray(blob(Rows([0, 1], with_sequence=s)))) for s in (False, True))
    assert bytes(canonical(full, 0, Layout(1), 0, 2)) == blob(Rows([0, 1]))
    with pytest.raises(StateLayoutError, match="headroom"):
        canonical(bare, 0, Layout(1), 0, 2)


@given(made(1), st.integers(0, 70), st.integers(0, 70))
def test_rows_selected_by_position(of: Made, start: int, length: int) -> None:
    base = loadable(of.rows[0])
    if not base.keep(start, start + length).positions:
        start, length = min(base.positions), 1
    selected = select_rows(memoryview(of.blob(base)), of.layout, start, start + length)
    assert bytes(selected) == of.blob(base.keep(start, start + length))


@given(made(1), st.integers(1, 9))
def test_blank_rows_load_like_real_ones(of: Made, count: int) -> None:
    base = loadable(of.rows[0])
    blank = blank_rows(memoryview(of.blob(base)), of.layout, 0, count)
    check_window(blank, of.layout, 0, count)
    (section,), (like,) = parse(blank, of.layout), parse(memoryview(of.blob(base)), of.layout)
    assert [(t.runs, t.cell_bytes) for t in section.tensors] == [(t.runs, t.cell_bytes) for t in like.tensors]
    assert all(not any(blank[t.data : t.data + t.runs * t.cell_bytes * count]) for t in section.tensors)


@given(made(1))
def test_only_exactly_the_expected_rows_pass(of: Made) -> None:
    base = loadable(of.rows[0])
    start, end = min(base.positions), max(base.positions) + 1
    layout = replace(of.layout, sections=2)
    good = memoryview(of.blob(base, NO_ROWS))
    check_rows(good, layout, start, end)
    for wrong in ((start, end + 1), (start + 1, end + 1), (start - 1, end)):
        with pytest.raises(StateLayoutError):
            check_rows(good, layout, *wrong)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (blob(Rows([0, 1], with_sequence=False), NO_ROWS), "cells without a sequence: llama.cpp refuses them"),
        (blob(Rows([0, 0]), NO_ROWS), "a position twice"),
        (blob(Rows([0, 1]), Rows([0, 1])), "window rows in a piece"),
        (blob(NO_ROWS, NO_ROWS), "empty: it would load and change nothing"),
        (blob(Rows([0, 1])), "one section where the model has two"),
        (blob(Rows([0, 1]), NO_ROWS, tail=Recurrent(1).tail), "a recurrent section where the model has none"),
    ],
)
def test_a_piece_that_must_not_be_loaded(data: bytes, why: str) -> None:
    with pytest.raises(StateLayoutError):
        check_rows(memoryview(data), Layout(2), 0, 2)


def test_rows_with_the_state_of_the_recurrent_layers_are_refused() -> None:
    """It would be loaded with the rows, and be that of another position."""
    state = Recurrent(1)
    layout = Layout(1, tail=state.tail)
    check_rows(memoryview(blob(Rows([0, 1]), tail=state.tail)), layout, 0, 2)
    with pytest.raises(StateLayoutError, match="recurrent"):
        check_rows(memoryview(blob(Rows([0, 1]), tail=recurrent(state))), layout, 0, 2)


def test_a_window_holds_exactly_its_rows() -> None:
    check_window(memoryview(blob(Rows([6, 7, 5]))), Layout(1), 5, 8)
    for wrong in ((4, 8), (5, 9), (6, 8)):
        with pytest.raises(StateLayoutError):
            check_window(memoryview(blob(Rows([6, 7, 5]))), Layout(1), *wrong)
    with pytest.raises(StateLayoutError):
        check_window(memoryview(blob(Rows([5]), NO_ROWS)), Layout(1), 5, 6)


def test_checks_need_no_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a new process its code is read from the disk page by page, which the first restore would wait for."""
    piece, window = memoryview(blob(Rows([0, 1]), NO_ROWS)), memoryview(blob(Rows([6, 7, 5])))
    monkeypatch.setattr("kvtier_adapters.llama_cpp.state.np", None)
    check_rows(piece, Layout(2), 0, 2)
    check_window(window, Layout(1), 5, 8)
    assert select_rows(window, Layout(1), 5, 8) is window


@given(recurrents, st.lists(st.integers(0, 40), max_size=2))
def test_the_recurrent_state_alone_of_a_partial_blob(state: Recurrent, cells: list[int]) -> None:
    """A partial blob of a hybrid model with a window holds the window's rows before it."""
    layout = Layout(len(cells), tail=state.tail)
    partial = blob(*(Rows(range(count)) for count in cells), sequence=3, tail=recurrent(state))
    alone = recurrent_only(memoryview(partial), layout)
    assert alone == blob(*(NO_ROWS for _ in cells), tail=recurrent(state))
    assert state.position is not None
    check_recurrent(memoryview(alone), layout, state.position + 1)


def test_a_partial_blob_too_short_for_its_recurrent_state_is_refused() -> None:
    state = Recurrent(5)
    with pytest.raises(StateLayoutError, match="no recurrent section"):
        recurrent_only(memoryview(blob(tail=recurrent(state)[1:])), Layout(0, tail=state.tail))


@given(recurrents, st.data())
def test_no_recurrent_state_but_the_expected_one_passes(state: Recurrent, data: st.DataObject) -> None:
    """llama.cpp aborts the process if there is more than one cell, and checks nothing but types and sizes."""
    assert state.position is not None
    layout, good = Layout(1, tail=state.tail), blob(NO_ROWS, tail=recurrent(state))
    check_recurrent(memoryview(good), layout, state.position + 1)
    with pytest.raises(StateLayoutError):
        check_recurrent(memoryview(good), layout, state.position + 2)
    damaged = bytearray(good)
    damaged[data.draw(st.sampled_from(header_bytes(state)))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StateLayoutError):
        check_recurrent(memoryview(damaged), layout, state.position + 1)
    cut = data.draw(st.integers(0, len(good) - 1))
    for wrong in (good[:cut], good + b"\0", blob(tail=recurrent(state)), blob(Rows([0]), tail=recurrent(state))):
        with pytest.raises(StateLayoutError):
            check_recurrent(memoryview(wrong), layout, state.position + 1)


def header_bytes(state: Recurrent) -> list[int]:
    """Where in a blob of one empty section and ``state`` there is something else than a tensor's row."""
    found = list(range(ENVELOPE + SECTION + 5 * 4))  # cells, position, sequences, s_trans, layers
    at = len(found)
    for size in (sizes[which] for which in (0, 1) for sizes in state.rows if sizes[which]):
        found += range(at, at + 12)
        at += 12 + size
    return found


@given(recurrents)
def test_a_tail_is_known_by_its_form(state: Recurrent) -> None:
    tail = state.tail
    assert is_recurrent_tail(tail)
    assert empty_bytes(Layout(2, tail=tail)) == len(blob(NO_ROWS, NO_ROWS, tail=tail))
    assert not is_recurrent_tail(recurrent(state))
    assert not is_recurrent_tail(tail[:-1])
    assert not is_recurrent_tail(tail + bytes(4))


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        (b"", "nothing"),
        (struct.pack("=III", 0, 0, 1), "a layer without a tensor: nothing tells what its rows are"),
        (struct.pack("=III", 1, 0, 1) + struct.pack("=iQ", 0, 8), "a cell"),
        (struct.pack("=III", 0, 1, 1) + struct.pack("=iQ", 0, 8), "S transposed"),
        (struct.pack("=III", 0, 0, 0) + struct.pack("=iQ", 0, 8), "no layers, and a tensor"),
        (struct.pack("=III", 0, 0, 4097) + struct.pack("=iQ", 0, 8), "too many layers"),
        (struct.pack("=III", 0, 0, 1) + struct.pack("=iQ", 0, 8) * 3, "more tensors than R and S of each layer"),
        (struct.pack("=III", 0, 0, 1) + struct.pack("=iQ", 0, (1 << 31) + 1), "a row of more than 2 GiB"),
    ],
)
def test_bytes_that_are_no_tail(tail: bytes, why: str) -> None:
    assert not is_recurrent_tail(tail)


def test_the_blob_to_refuse_has_a_cell_without_a_sequence() -> None:
    """llama.cpp empties the sequence, and then finds nothing to load."""
    assert refused_blob() == struct.pack("=IiIIiI", 0xAF143CD8, 0, 1, 1, 0, 0)
    with pytest.raises(StateLayoutError):
        parse(memoryview(refused_blob()), Layout(1))
