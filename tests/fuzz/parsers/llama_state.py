"""State of llama.cpp: every parser of ``llama_cpp.state``. The first byte of the input says of which layout it is."""

from __future__ import annotations

from kvtier_adapters.llama_cpp.state import (
    HEADROOM_PER_CELL,
    Layout,
    StateLayoutError,
    blank_rows,
    canonical,
    check_recurrent,
    check_rows,
    check_window,
    is_recurrent_tail,
    parse,
    recurrent_only,
    select_rows,
    split,
)
from tests.adapters.blobs import Recurrent
from tests.fuzz.bounds import in_bounds
from tests.fuzz.parsers.target import Target, expect

START, END = 3, 6
TAIL = Recurrent(None).tail
LAYOUTS = [
    Layout(1),
    Layout(2),
    Layout(1, extra=3),
    Layout(1, values=False),
    Layout(1, tail=TAIL),
    Layout(2, tail=TAIL),
    Layout(0, tail=TAIL),
]


def run(data: bytes) -> None:
    layout = LAYOUTS[data[0] % len(LAYOUTS)] if data else LAYOUTS[0]
    blob = memoryview(data)[1:]
    accepted = [use(blob, layout) for use in (rows, window, recurrent)]
    is_recurrent_tail(bytes(blob))
    if not any(accepted):
        raise StateLayoutError("none of it")


def rows(blob: memoryview, layout: Layout) -> bool:
    if not layout.sections:
        return False
    try:
        in_bounds(blob, layout)
    except StateLayoutError:
        return False
    passes(lambda: check_rows(blob, layout, START, END))
    positions = parse(blob, layout)[0].positions
    headroom = HEADROOM_PER_CELL * len(positions)
    start = min(positions, default=0)
    end = start + len(positions)
    buffer = memoryview(bytearray(headroom) + bytes(blob))
    if passes(lambda: canonical(buffer, headroom, layout, start, end)):
        canonical_again(memoryview(bytearray(headroom) + bytes(blob)), headroom, layout, start, end)
    if layout.sections == 2 and passes(lambda: split_up(blob, layout, start, end)):
        both = split_up(blob, layout, start, end)
        expect(passes(lambda: check_rows(both[0], layout, start, end)), "rows that are refused")
        expect(passes(lambda: check_window(both[1], layout.window, start, end)), "a window that is refused")
    return True


def split_up(blob: memoryview, layout: Layout, start: int, end: int) -> tuple[memoryview, memoryview]:
    return split(memoryview(bytearray(blob)), layout, start, end, lambda nbytes: memoryview(bytearray(nbytes)))


def canonical_again(buffer: memoryview, headroom: int, layout: Layout, start: int, end: int) -> None:
    """The canonical form has the same rows, is its own canonical form, and can be restored."""
    before = parse(buffer[headroom:], layout)[0].positions
    once = bytes(canonical(buffer, headroom, layout, start, end))
    expect(parse(memoryview(once), layout)[0].positions == before, "other rows in the canonical form")
    again = canonical(memoryview(bytearray(once)), 0, layout, start, end)
    expect(bytes(again) == once, "another canonical form of itself")
    expect(passes(lambda: check_rows(memoryview(once), layout, start, end)), "a canonical form that is refused")


def window(blob: memoryview, layout: Layout) -> bool:
    one = layout.window
    if not passes(lambda: parse(blob, one)):
        return False
    passes(lambda: check_window(blob, one, START, END))
    passes(lambda: blank_rows(blob, one, 0, 1))
    if passes(lambda: select_rows(blob, one, START + 1, END)):
        kept = parse(select_rows(blob, one, START + 1, END), one)[0].positions
        expect(all(START < position < END for position in kept), f"rows {kept}")
    return True


def recurrent(blob: memoryview, layout: Layout) -> bool:
    if not layout.tail:
        return False
    if passes(lambda: recurrent_only(blob, layout)):
        expect(len(recurrent_only(blob, layout)) <= blob.nbytes + 8 * layout.sections, "longer than it was")
    return passes(lambda: check_recurrent(blob, layout, END))


def passes(use: object) -> bool:
    """Whether it is not refused."""
    assert callable(use)
    try:
        use()
    except StateLayoutError:
        return False
    return True


TARGET = Target(run, (StateLayoutError,))
