"""Segment writer, reader and scanner on real files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier.fs import FileSystem, OsFileSystem, PortableFileSystem
from kvtier.segment.format import (
    HEAD_BYTES_MAX,
    NO_SUM,
    PAGE,
    SEGMENT_HEADER_BYTES,
    FormatError,
    RecordHead,
    RecordKind,
    RecordState,
    payload_sum,
)
from kvtier.segment.reader import Extent, SegmentFiles, check_records, fetch_records
from kvtier.segment.scanner import Damaged, Found, TornTail, scan
from kvtier.segment.writer import Draft, SegmentWriter, Written
from kvtier.testing import FaultyFileSystem

STORE, TIER, SEGMENT = bytes(range(16)), 2, 5


def draft(key: bytes, payload: Sequence[bytes], kind: RecordKind = RecordKind.BLOCK, meta: bytes = b"") -> Draft:
    size = sum(map(len, payload))
    head = RecordHead(kind, 0, 1, 0, b"", key, meta, (size,), key.ljust(16, b"."), size, NO_SUM)
    return Draft(head, list(payload))


class Bench:
    """One segment file and what was written to it."""

    def __init__(self, folder: Path, fs: FileSystem | None = None) -> None:
        self.fs = fs or OsFileSystem()
        self.path = str(folder / "s.seg")
        self.writer = SegmentWriter.create(self.fs, self.path, STORE, TIER, SEGMENT)

    def append(self, *drafts: Draft) -> list[Written]:
        return self.writer.append(drafts)

    def scan(self, start: int = 0, *, payloads: bool = False) -> list[Found | Damaged | TornTail]:
        fd = self.fs.open(self.path)
        try:
            return list(scan(self.fs, fd, STORE, TIER, SEGMENT, start=start, payloads=payloads))
        finally:
            self.fs.close(fd)

    def read(self, *written: Written) -> list[bytes | FormatError]:
        wanted = [(extent(w), [memoryview(bytearray(w.head.stored_len))]) for w in written]
        fd = self.fs.open(self.path)
        try:
            results = check_records(fetch_records(self.fs, fd, wanted), STORE, TIER)
        finally:
            self.fs.close(fd)
        return [r if isinstance(r, FormatError) else bytes(v[0]) for r, (_, v) in zip(results, wanted, strict=True)]

    def patch(self, offset: int, data: bytes) -> None:
        fd = self.fs.open(self.path, write=True)
        self.fs.write_at(fd, [data], offset)
        self.fs.close(fd)

    @property
    def size(self) -> int:
        return os.path.getsize(self.path)


def extent(w: Written) -> Extent:
    return Extent(w.segment_no, w.offset, w.head.head_len, w.head.stored_len, w.head.content_id)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    b = Bench(tmp_path)
    yield b
    b.writer.close()


# -- writing -----------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.lists(st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 3)), max_size=6), max_size=5))
def test_what_was_appended_is_scanned_and_read(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[tuple[bytes, int]]]
) -> None:
    for fs in (OsFileSystem(), PortableFileSystem()):
        b = Bench(tmp_path_factory.mktemp("s"), fs)
        payloads, written = [], []
        for group in groups:
            drafts = [draft(b"k%d" % i, [value] * times) for i, (value, times) in enumerate(group)]
            payloads += [b"".join(d.payload) for d in drafts]
            written += b.append(*drafts)
        b.writer.close()
        assert b.scan(payloads=True) == [Found(w.offset, w.head) for w in written]
        assert b.size == b.writer.length
        if written:
            assert b.read(*written) == payloads
            assert b.read(*written[::2]) == payloads[::2]


LONG = [512 << 10, (1 << 20) + 1, 2 << 20, 100, 2 << 20]


@pytest.mark.parametrize("is_padded", [True, False])
def test_long_payloads_start_where_a_page_does_and_others_are_read_as_well(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_padded: bool
) -> None:
    """An older kvtier did not pad heads."""
    if not is_padded:
        monkeypatch.setattr(RecordHead, "at", lambda head, offset: head)
    drafts = [draft(b"%d" % i, [os.urandom(n)]) for i, n in enumerate(LONG)]
    written = [*bench.append(*drafts[:2]), *bench.append(*drafts[2:])]
    aligned = [w.head.stored_len for w in written if (w.offset + w.head.head_len) % PAGE == 0]
    assert aligned == ([n for n in LONG if n > 100] if is_padded else [])
    assert bench.scan(payloads=True) == [Found(w.offset, w.head) for w in written]
    assert bench.read(*written) == [d.payload[0] for d in drafts]
    assert bench.size == bench.writer.length <= sum(d.head.record_len_max for d in drafts) + SEGMENT_HEADER_BYTES


def test_an_append_is_one_reservation_and_one_write(tmp_path: Path) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    b = Bench(tmp_path, fs)
    fs.counts.clear()
    b.append(*[draft(b"%d" % i, [b"x" * 1000, b"y"]) for i in range(100)])
    assert (fs.counts["reserve"], fs.counts["write_at"], fs.counts["sync_data"]) == (1, 1, 0)
    b.writer.sync()
    assert fs.counts["sync_data"] == 1


def test_a_full_disk_is_noticed_before_a_byte_is_written(tmp_path: Path) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    b = Bench(tmp_path, fs)
    fs.fail_at(1, errno.ENOSPC, op="reserve")
    with pytest.raises(OSError, match="space"):
        b.append(draft(b"k", [b"x"]))
    assert b.size == b.writer.length == SEGMENT_HEADER_BYTES


def test_create_leaves_no_descriptor_behind_when_it_fails(tmp_path: Path) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    fs.fail_at(1, errno.EIO, op="write_at")
    with pytest.raises(OSError, match="Input/output"):
        Bench(tmp_path, fs)
    assert fs.counts["close"] == 1


# -- scanning ----------------------------------------------------------------------------------------


def three(bench: Bench) -> list[Written]:
    return bench.append(*[draft(b"k%d" % i, [bytes((65 + i,)) * 1000]) for i in range(3)])


def test_a_torn_tail_ends_a_scan_wherever_the_file_was_cut(bench: Bench) -> None:
    a, b, c = three(bench)
    whole = bench.size
    for size in (whole - 1, c.offset + c.head.head_len, c.offset + 10, c.offset + 1):
        os.truncate(bench.path, size)
        *found, tail = bench.scan()
        assert found == [Found(w.offset, w.head) for w in (a, b)]
        assert isinstance(tail, TornTail)
        assert tail.offset == c.offset
    os.truncate(bench.path, c.offset)
    assert len(bench.scan()) == 2


def test_zeros_or_dirt_behind_the_last_record_are_a_torn_tail(bench: Bench) -> None:
    three(bench)
    end = bench.size
    for dirt in (bytes(5000), b"KVR1" * 1000, os.urandom(3 << 20)):
        bench.patch(end, dirt)
        *found, tail = bench.scan(payloads=True)
        assert len(found) == 3
        assert isinstance(tail, TornTail)
        assert tail.offset == end
        os.truncate(bench.path, end)


def test_a_bad_head_in_the_middle_is_damage_and_the_scan_goes_on(bench: Bench) -> None:
    a, b, c = three(bench)
    bench.patch(b.offset + 20, b"!!!")
    first, damage, last = bench.scan()
    assert (first, last) == (Found(a.offset, a.head), Found(c.offset, c.head))
    assert isinstance(damage, Damaged)
    assert (damage.offset, damage.end) == (b.offset, c.offset)


def test_damage_of_any_length_is_passed(bench: Bench) -> None:
    """The next record may be megabytes behind, and its magic may stand across two reads."""
    first = bench.append(draft(b"big", [os.urandom((1 << 20) + 777)]))[0]
    for i in range(70):
        bench.append(draft(b"k%d" % i, [b""]))
    bench.patch(first.offset, b"gone")
    damage, *found = bench.scan()
    assert isinstance(damage, Damaged)
    assert len(found) == 70
    assert all(isinstance(f, Found) for f in found)


def test_a_bad_payload_is_seen_only_if_payloads_are_read(bench: Bench) -> None:
    a, b, c = three(bench)
    bench.patch(b.offset + b.head.head_len + 500, b"!")
    assert bench.scan() == [Found(w.offset, w.head) for w in (a, b, c)]
    _, damage, _ = bench.scan(payloads=True)
    assert damage == Damaged(b.offset, c.offset, "payload checksum differs")


def test_a_copied_record_is_not_believed(bench: Bench) -> None:
    a, *_ = three(bench)
    raw = Path(bench.path).read_bytes()[a.offset : a.offset + a.head.record_len]
    bench.patch(bench.size, raw)
    assert isinstance(bench.scan()[-1], TornTail)


def test_a_scan_may_start_behind_known_records(bench: Bench) -> None:
    _, b, c = three(bench)
    assert bench.scan(start=b.offset) == [Found(w.offset, w.head) for w in (b, c)]
    assert bench.scan(start=bench.size) == []


def test_a_file_that_is_not_this_segment_is_refused(bench: Bench) -> None:
    three(bench)
    fd = bench.fs.open(bench.path)
    for args in ((bytes(16), TIER, SEGMENT), (STORE, 1, SEGMENT), (STORE, TIER, 6)):
        with pytest.raises(FormatError):
            list(scan(bench.fs, fd, *args))
    bench.fs.close(fd)
    os.truncate(bench.path, 10)
    with pytest.raises(FormatError):
        bench.scan()


def test_a_reference_has_no_payload_to_check(bench: Bench) -> None:
    w = bench.append(draft(b"k", [], RecordKind.REFERENCE))[0]
    assert bench.scan(payloads=True) == [Found(w.offset, w.head)]
    assert w.head.payload_sum == NO_SUM


# -- reading -----------------------------------------------------------------------------------------


def test_neighbours_come_in_one_read_over_gaps(tmp_path: Path) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    b = Bench(tmp_path, fs)
    written = b.append(*[draft(b"k%d" % i, [bytes((i,)) * 1000]) for i in range(5)])
    fs.counts.clear()
    assert b.read(written[0], written[1], written[4]) == [bytes((i,)) * 1000 for i in (0, 1, 4)]
    assert fs.counts["read_at"] == 1


def test_one_bad_record_spoils_no_other(bench: Bench) -> None:
    a, b, c = three(bench)
    bench.patch(b.offset + b.head.head_len, b"!")
    first, second, third = bench.read(a, b, c)
    assert (first, third) == (b"A" * 1000, b"C" * 1000)
    assert isinstance(second, FormatError)
    os.truncate(bench.path, c.offset + c.head.record_len - 100)
    assert isinstance(bench.read(c)[0], FormatError)


@pytest.mark.parametrize(
    "lie", [{"content_id": bytes(16)}, {"stored_len": 999}, {"stored_len": 1001}, {"head_len": 107}, {"segment_no": 6}]
)
def test_a_record_must_be_what_was_expected(bench: Bench, lie: dict[str, object]) -> None:
    w = three(bench)[0]
    e = extent(w)._replace(**lie)  # type: ignore[arg-type]
    fd = bench.fs.open(bench.path)
    result = check_records(fetch_records(bench.fs, fd, [(e, [memoryview(bytearray(e.stored_len))])]), STORE, TIER)[0]
    bench.fs.close(fd)
    assert isinstance(result, FormatError)


def test_a_marked_record_is_still_read(bench: Bench) -> None:
    """A reader that located it before it died gets the old, sound bytes."""
    w = three(bench)[1]
    bench.patch(w.offset + 4, bytes((RecordState.PAYLOAD_ONLY,)))
    assert bench.read(w) == [b"B" * 1000]


def test_the_largest_head_is_read_whole(bench: Bench) -> None:
    head = RecordHead(
        RecordKind.BLOCK,
        0,
        1,
        0,
        b"n" * 64,
        b"k" * 128,
        b"m" * 1024,
        (1,) * 64,
        bytes(16),
        64,
        payload_sum([b"x" * 64]),
    )
    w = bench.append(Draft(head, [b"x" * 64]))[0]
    assert w.head.head_len <= HEAD_BYTES_MAX
    assert bench.scan(payloads=True) == [Found(w.offset, w.head)]


# -- descriptors -------------------------------------------------------------------------------------


class TestSegmentFiles:
    @pytest.fixture
    def fs(self) -> FaultyFileSystem:
        return FaultyFileSystem(OsFileSystem())

    @pytest.fixture
    def files(self, tmp_path: Path, fs: FaultyFileSystem) -> SegmentFiles:
        for i in range(200):
            (tmp_path / str(i)).write_bytes(b"%d" % i)
        return SegmentFiles(fs, lambda number: str(tmp_path / str(number)))

    def test_a_descriptor_is_kept_open(self, fs: FaultyFileSystem, files: SegmentFiles) -> None:
        for _ in range(3):
            with files.lease(7):
                pass
        assert (fs.counts["open"], fs.counts["close"]) == (1, 0)
        files.close()
        assert fs.counts["close"] == 1

    def test_at_most_128_stay_open(self, fs: FaultyFileSystem, files: SegmentFiles) -> None:
        for i in range(200):
            with files.lease(i):
                assert fs.counts["open"] - fs.counts["close"] <= 128
        with files.lease(199):
            pass
        assert fs.counts["open"] == 200  # the newest are the ones that stay

    def test_one_in_use_is_not_closed(self, fs: FaultyFileSystem, files: SegmentFiles) -> None:
        with files.lease(0) as fd:
            for i in range(1, 200):
                with files.lease(i):
                    pass
            files.forget(0)
            files.close()
            assert fs.size(fd) == 1
        assert fs.counts["close"] == fs.counts["open"]

    def test_a_forgotten_one_is_closed_after_its_last_user(self, fs: FaultyFileSystem, files: SegmentFiles) -> None:
        with files.lease(0), files.lease(0):
            files.forget(0)
            assert fs.counts["close"] == 0
        assert fs.counts["close"] == 1
        files.forget(1)  # never opened
        with files.lease(1):
            pass
        assert fs.counts["close"] == 1

    def test_one_that_is_not_there_raises(self, files: SegmentFiles) -> None:
        for _ in range(2):
            with pytest.raises(FileNotFoundError), files.lease(999):
                pass
