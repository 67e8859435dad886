"""Reference counts and live bytes, on a real index, against a walk over what is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.index.lmdb_index import LmdbIndex, View
from kvtier.index.schema import CONTENT_KEY_BYTES, NamespaceEntry
from kvtier.segment.format import NO_SUM, RecordHead, RecordKind, RecordState
from kvtier.segment.writer import Written
from kvtier.tiers.catalog import Change
from kvtier.tiers.census import is_exact

TIER = 0


class Bench:
    """An index, and records "appended" to segments of 40 that exist only as numbers."""

    def __init__(self, folder: Path) -> None:
        self.index = LmdbIndex(str(folder), map_bytes=1 << 24, read_only=False)
        self.at = 0
        self.states: dict[tuple[int, int], RecordState] = {}
        self.length: dict[tuple[int, int], int] = {}

    def append(self, key: int, content: int | None, *, reference: bool = False, seq: int = 1) -> Written:
        kind = RecordKind.REFERENCE if reference else RecordKind.BLOCK
        content_id = bytes((content or 0,)) * 16
        stored = 0 if reference else 1000
        head = RecordHead(kind, 0, seq, 0, b"", bytes((key,)), b"", (1000,), content_id, stored, NO_SUM)
        written = Written(1 + self.at // 40, 64 * (self.at % 40), head)
        self.at += 1
        self.states[written.segment_no, written.offset] = RecordState.LIVE
        self.length[written.segment_no, written.offset] = head.record_len
        return written

    @contextmanager
    def change(self) -> Iterator[Change]:
        with self.index.write() as txn:
            change = Change(txn, when=0)
            yield change
            change.finish({}, set())
        for f in change.freed:
            self.states[f.segment_no, f.offset] = f.state
        for dropped in change.dropped:
            assert all(s is RecordState.DEAD for (no, _), s in self.states.items() if no == dropped[1])

    def check(self) -> None:
        """References, states and live bytes are what a walk over all blocks says."""
        with self.index.read() as view:
            blocks = dict(view.blocks())
            contents = dict(view.contents(TIER))
            census = {b"": NamespaceEntry(len(blocks), sum(e.nbytes for e in blocks.values()))} if blocks else {}
            assert is_exact(view)
            assert view.namespaces(9) == census
            refs = Counter(e.content_id[:CONTENT_KEY_BYTES] for e in blocks.values())
            assert {c: e.refs for c, e in contents.items()} == refs
            expected = dict.fromkeys(self.states, RecordState.DEAD)
            for content in contents.values():
                expected[content.segment_no, content.offset] = RecordState.PAYLOAD_ONLY
            for entry in blocks.values():
                expected[entry.segment_no, entry.offset] = RecordState.LIVE
                content = contents[entry.content_id[:CONTENT_KEY_BYTES]]
                owns = (content.segment_no, content.offset) == (entry.segment_no, entry.offset)
                assert (entry.kind == RecordKind.BLOCK) is owns
            assert self.states == expected
            self.check_segments(view, expected)

    def check_segments(self, view: View, states: dict[tuple[int, int], RecordState]) -> None:
        live: Counter[int] = Counter()
        for place, state in states.items():
            if state is not RecordState.DEAD:
                live[place[0]] += self.length[place]
        assert {no: e.live_bytes for no, e in view.segments(TIER).items()} == dict(live)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    b = Bench(tmp_path)
    yield b
    b.index.close()


def test_the_last_of_two_takes_the_bytes_along(bench: Bench) -> None:
    with bench.change() as change:
        assert change.link(1, TIER, 1, bench.append(1, 5))
        assert change.link(2, TIER, 2, bench.append(2, 5, reference=True))
    bench.check()
    with bench.change() as change:
        change.unlink(1)
        assert [f.state for f in change.freed] == [RecordState.PAYLOAD_ONLY]
    bench.check()
    with bench.change() as change:
        change.unlink(2)
        assert sorted(f.state for f in change.freed) == [RecordState.DEAD] * 2
        assert change.dropped == []
    bench.check()
    with bench.index.read() as view:
        assert view.segments(TIER) == {}


def test_a_reference_to_nothing_is_refused_and_dead(bench: Bench) -> None:
    with bench.change() as change:
        assert not change.link(1, TIER, 1, bench.append(1, 5, reference=True))
    bench.check()


def test_a_block_may_take_the_same_bytes_anew(bench: Bench) -> None:
    with bench.change() as change:
        change.link(1, TIER, 1, bench.append(1, 5))
    for seq in (2, 3):  # with other metadata, say: a reference to what was its own record
        with bench.change() as change:
            change.link(1, TIER, seq, bench.append(1, 5, reference=True, seq=seq))
        bench.check()
    with bench.change() as change:
        change.unlink(1)
    bench.check()


def test_equal_bytes_that_came_twice_are_counted_once(bench: Bench) -> None:
    """As recovery may meet them: two payload records of one content."""
    with bench.change() as change:
        change.link(1, TIER, 1, bench.append(1, 5))
        change.link(2, TIER, 2, bench.append(2, 5))
    bench.check()
    with bench.change() as change:
        change.unlink(1)
        change.unlink(2)
    bench.check()


def test_quarantine_takes_all_that_share(bench: Bench) -> None:
    with bench.change() as change:
        change.link(1, TIER, 1, bench.append(1, 5))
        for key in (2, 3):
            change.link(key, TIER, key, bench.append(key, 5, reference=True))
        change.link(4, TIER, 4, bench.append(4, 6))
    with bench.change() as change:
        assert sorted(change.quarantine(2, TIER, bytes((5,)) * 16)) == [1, 2, 3]
    bench.check()
    with bench.index.read() as view:
        assert [b for b, _ in view.blocks()] == [4]
    with bench.change() as change:
        assert change.quarantine(2, TIER, bytes((5,)) * 16) == {}
    bench.check()


def test_what_is_held_stays_while_it_is_held(bench: Bench) -> None:
    with bench.change() as change:
        change.link(1, TIER, 1, bench.append(1, 5))
    content_id = bytes((5,)) * 16
    with bench.change() as change, change.holding(TIER, [content_id, b"absent".ljust(16)]):
        change.unlink(1)
        assert change.link(2, TIER, 2, bench.append(2, 5, reference=True))
    bench.check()
    with bench.change() as change, change.holding(TIER, [content_id]):
        change.unlink(2)
    bench.check()
    with bench.index.read() as view:
        assert list(view.contents(TIER)) == []


steps = st.lists(
    st.tuples(st.sampled_from(["put", "put", "delete", "quarantine"]), st.integers(1, 6), st.integers(1, 3))
)


@settings(max_examples=60)
@given(st.lists(steps, max_size=12))
def test_counts_are_right_after_any_changes(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[tuple[str, int, int]]]
) -> None:
    bench = Bench(tmp_path_factory.mktemp("index"))
    clock = 0
    for group in groups:
        with bench.change() as change:
            for step, key, content in group:
                clock += 1
                content_id = bytes((content,)) * 16
                if step == "put":
                    known = change.txn.content(TIER, content_id) is not None
                    change.link(key, TIER, clock, bench.append(key, content, reference=known, seq=clock))
                elif step == "delete":
                    change.unlink(key)
                else:
                    change.quarantine(key, TIER, content_id)
        bench.check()
    bench.index.close()
