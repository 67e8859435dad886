"""Index entries as bytes, and the index in LMDB."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.errors import StoreClosed
from kvtier.index import format1, schema
from kvtier.index.data_file import DATA_FILE, looks_cut
from kvtier.index.errors import IndexBusy, IndexUnusable
from kvtier.index.following import FollowingIndex
from kvtier.index.lmdb_index import IndexFull, LmdbIndex, is_sound
from kvtier.index.schema import BlockEntry, ContentEntry, IndexDamaged, SegmentEntry

U64 = st.integers(0, 2**64 - 1)
U8 = st.integers(0, 255)
ALIGNED = st.integers(0, 2**40).map(lambda n: schema.RECORD_ALIGN * n)
SIXTEEN = st.binary(min_size=16, max_size=16)
blocks = st.builds(
    BlockEntry,
    U64,
    U64,
    U64,
    U64,
    ALIGNED,
    ALIGNED,
    U8,
    st.integers(1, 2),
    SIXTEEN,
    st.binary(max_size=64),
    st.binary(min_size=1, max_size=128),
    st.binary(max_size=1024),
    st.lists(U64, min_size=1, max_size=64).map(tuple),
    st.just(0),  # it is elsewhere
)
contents = st.builds(ContentEntry, U8, U64, ALIGNED, st.integers(schema.HEAD_BYTES_MIN, 2**16 - 1), U64, U64)
segment_entries = st.builds(SegmentEntry, U64, U64, st.booleans())


def block(key: bytes = b"key", **changes: object) -> BlockEntry:
    entry = BlockEntry(1, 2, 3, 4, 64, 128, 0, 1, bytes(16), b"ns", key, b"meta", (7, 8))
    return entry._replace(**changes)  # type: ignore[arg-type]


# -- bytes -------------------------------------------------------------------------------------------


@given(U64, blocks)
def test_a_block_entry_comes_back(block_id: int, entry: BlockEntry) -> None:
    key = schema.block_key(block_id)
    assert schema.decode_block(key, schema.encode_block(key, entry)) == entry
    assert entry.nbytes == sum(entry.lengths)


@given(U8, SIXTEEN, contents)
def test_a_content_entry_comes_back(tier_no: int, content_id: bytes, entry: ContentEntry) -> None:
    key = schema.content_key(tier_no, content_id)
    assert schema.decode_content(key, schema.encode_content(key, entry)) == entry


@given(U8, U64, segment_entries)
def test_a_segment_entry_comes_back(tier_no: int, number: int, entry: SegmentEntry) -> None:
    key = schema.segment_key(tier_no, number)
    assert schema.split_segment_key(key) == (tier_no, number)
    assert schema.decode_segment(key, schema.encode_segment(key, entry)) == entry


def test_any_flipped_bit_in_key_or_value_is_noticed() -> None:
    key = schema.block_key(12345)
    value = schema.encode_block(key, block())
    for bit in range(8 * (len(key) + len(value))):
        raw = bytearray(key + value)
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IndexDamaged):
            schema.decode_block(bytes(raw[:8]), bytes(raw[8:]))


@pytest.mark.parametrize("clock", [0, 1, 127, 128, 129, 255, 256, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("seq", [0, 1, 128, 2**63, 2**64 - 1])
def test_clock_and_seq_may_be_any_numbers(clock: int, seq: int) -> None:
    entry = block(clock=clock, seq=seq)
    assert schema.decode_block(b"some key", schema.encode_block(b"some key", entry)) == entry


@pytest.mark.parametrize(
    ("number", "width"),
    [(0, 1), (255, 1), (256, 2), (65_535, 2), (65_536, 4), (2**32 - 1, 4), (2**32, 8), (2**64 - 1, 8)],
)
def test_numbers_are_as_narrow_as_can_be(number: int, width: int) -> None:
    least = len(schema.encode_content(b"some key", ContentEntry(0, 0, 0, 96, 0, 0)))
    for entry in (ContentEntry(0, number, 0, 96, 0, 0), ContentEntry(0, 0, 0, 96, number, 0)):
        assert len(schema.encode_content(b"some key", entry)) == least - 1 + width
    entries = [block(lengths=lengths) for lengths in ((0, 0), (0, number))]
    assert len(set(map(len, (schema.encode_block(b"some key", e) for e in entries)))) == (2 if width > 1 else 1)


def test_what_does_not_start_or_end_where_records_do_is_not_written() -> None:
    for entry in (block(offset=65), block(record_len=65)):
        with pytest.raises(ValueError, match="65"):
            schema.encode_block(b"some key", entry)
    with pytest.raises(struct.error):
        schema.encode_content(b"some key", ContentEntry(0, 1, 64, 95, 5, 1))


def test_an_entry_of_another_format_does_not_pass_its_checksum() -> None:
    key, number = schema.block_key(1), schema.content_key(0, bytes(16))
    for form, other in ((schema.FORM, format1.FORM), (format1.FORM, schema.FORM)):
        value = schema._sealed(key, schema.encode_block(key, block())[:-4], form.seed)
        assert schema.checked_body(key, value, seed=form.seed)
        with pytest.raises(IndexDamaged, match="checksum"):
            other.decode_block(key, value)
        with pytest.raises(IndexDamaged, match="checksum"):
            other.decode_content(number, schema._sealed(number, bytes(55), form.seed))


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_no_entry(raw: bytes) -> None:
    decoders = (schema.decode_block, schema.decode_content, schema.decode_segment, schema.decode_expiry)
    for decode in (*decoders, format1.decode_block, format1.decode_content):
        with pytest.raises(IndexDamaged):
            decode(b"some key", raw)


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_keys_sort_as_numbers_do(numbers: list[int]) -> None:
    assert sorted(numbers) == sorted(numbers, key=schema.block_key)
    assert sorted(numbers) == sorted(numbers, key=lambda n: schema.segment_key(3, n))


# -- the database ------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LmdbIndex]:
    ix = opened(tmp_path)
    yield ix
    ix.close()


def opened(folder: Path, **options: bool) -> LmdbIndex:
    return LmdbIndex(str(folder), map_bytes=1 << 20, read_only=options.get("read_only", False))


def test_what_was_committed_is_read(index: LmdbIndex) -> None:
    content, segment = ContentEntry(0, 1, 64, 99, 5, 2), SegmentEntry(192, 128, True)
    with index.write() as txn:
        txn.put_block(7, block())
        txn.put_content(1, b"c" * 16, content)
        txn.put_segment(1, 9, segment)
        txn.set_counter("seq", 2**63)
        assert txn.block(7) == block()  # a transaction sees what it wrote
    with index.read() as view:
        assert view.block(7) == block()
        assert view.block(8) is None
        assert view.content(1, b"c" * 16) == content
        assert view.content(2, b"c" * 16) is None
        assert view.segment(1, 9) == segment
        assert view.segment(1, 8) is None
        assert (view.counter("seq"), view.counter("other")) == (2**63, 0)
        assert view.count_blocks() == 1
        assert not view.is_complete()


def test_an_exception_rolls_everything_back(index: LmdbIndex) -> None:
    def fail() -> None:
        with index.write() as txn:
            txn.put_block(1, block())
            txn.set_counter("seq", 5)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with index.read() as view:
        assert (view.block(1), view.counter("seq")) == (None, 0)


def test_walks_give_one_tier_in_order(index: LmdbIndex) -> None:
    with index.write() as txn:
        for tier_no in (0, 1, 255):
            for n in (300, 2, 70_000):
                txn.put_segment(tier_no, n, SegmentEntry(n, tier_no, False))
                txn.put_content(tier_no, n.to_bytes(10, "big") + bytes(6), ContentEntry(0, n, 0, 96, 0, tier_no))
        for block_id in (5, 2**63, 1):
            txn.put_block(block_id, block(clock=block_id))
    with index.read() as view:
        for tier_no in (0, 1, 255):
            assert list(view.segments(tier_no)) == [2, 300, 70_000]
            assert [(c.segment_no, c.refs) for _, c in view.contents(tier_no)] == [
                (n, tier_no) for n in (2, 300, 70_000)
            ]
        assert view.segments(7) == {}
        assert list(view.contents(7)) == []
        assert [(b, e.clock) for b, e in view.blocks()] == [(1, 1), (5, 5), (2**63, 2**63)]


def test_deleting_and_clearing(index: LmdbIndex) -> None:
    with index.write() as txn:
        for n in (1, 2):
            txn.put_block(n, block())
            txn.put_content(0, bytes((n,)) * 16, ContentEntry(0, n, 0, 96, 0, 1))
            txn.put_segment(0, n, SegmentEntry(0, 0, False))
        txn.del_block(1)
        txn.del_content(0, b"\x01" * 16)
        txn.del_segment(0, 1)
        txn.del_block(99)
        txn.set_complete()
    with index.read() as view:
        assert [b for b, _ in view.blocks()] == [2]
        assert [c.segment_no for _, c in view.contents(0)] == [2]
        assert list(view.segments(0)) == [2]
        assert view.is_complete()
    with index.write() as txn:
        txn.clear()
    with index.read() as view:
        assert (view.count_blocks(), view.segments(0), view.is_complete()) == (0, {}, False)


def test_expiries_follow_their_blocks(index: LmdbIndex) -> None:
    with index.write() as txn:
        txn.put_block(1, block(expires_at=500))
        txn.put_block(2, block(expires_at=300))
        txn.put_block(3, block())
    with index.read() as view:
        assert list(view.expiring()) == [(300, 2), (500, 1)]
        assert [e.expires_at for _, e in view.blocks()] == [500, 300, 0]
    with index.write() as txn:
        txn.put_block(1, block(expires_at=100))
        txn.put_block(3, block(expires_at=400))
        txn.put_block(2, block())
    with index.read() as view:
        assert list(view.expiring()) == [(100, 1), (400, 3)]
        assert (view.block(2), view.count_expiries()) == (block(), 2)
    with index.write() as txn:
        txn.del_block(1)
        txn.del_block(2)
    with index.read() as view:
        assert list(view.expiring()) == [(400, 3)]
    with index.write() as txn:
        txn.clear()
    with index.read() as view:
        assert (view.count_expiries(), list(view.expiring())) == (0, [])


def test_an_expiry_of_another_put_or_a_damaged_one_says_nothing(index: LmdbIndex) -> None:
    with index.write() as txn:
        for n in (1, 2):
            txn.put_block(n, block(expires_at=500))
        key = schema.block_key(1)  # as a kvtier does that knows no expiries
        txn._txn.put(key, schema.encode_block(key, block(seq=99)), db=index.blocks)
        txn._txn.put(schema.block_key(2), b"rubbish", db=index.expiries)
    with index.read() as view:
        assert [e.expires_at for _, e in view.blocks()] == [0, 0]
        assert index.met_damage


def test_a_damaged_entry_reads_as_none(index: LmdbIndex) -> None:
    with index.write() as txn:
        for n in (1, 2, 3):
            txn.put_block(n, block())
        txn._txn.put(schema.block_key(2), b"rubbish", db=index.blocks)
    with index.read() as view:
        assert view.block(2) is None
        assert [b for b, _ in view.blocks()] == [1, 3]


def test_a_read_sees_one_moment(index: LmdbIndex) -> None:
    with index.read() as before:
        assert before.block(1) is None
        writer = threading.Thread(target=lambda: put(index, 1))
        writer.start()
        writer.join()
        assert before.block(1) is None
        with index.read() as after:
            assert after.block(1) is not None


def put(index: LmdbIndex, block_id: int) -> None:
    with index.write() as txn:
        txn.put_block(block_id, block())


def test_a_full_map_rolls_back_and_can_be_grown(tmp_path: Path) -> None:
    index = LmdbIndex(str(tmp_path), map_bytes=1 << 16, read_only=False)

    def fill() -> None:
        with index.write() as txn:
            for n in range(2000):
                txn.put_block(n, block())

    with pytest.raises(IndexFull):
        fill()
    with index.read() as view:
        assert view.count_blocks() == 0
    for _ in range(10):
        assert index.grow()
    fill()
    with index.read() as view:
        assert view.count_blocks() == 2000
    assert index.disk_bytes() <= (tmp_path / "data.mdb").stat().st_size
    index.close()


def test_a_full_map_has_grown_by_the_next_write(tmp_path: Path) -> None:
    """Whoever fills it; by then once, also if it was told to grow meanwhile."""
    index = LmdbIndex(str(tmp_path), map_bytes=1 << 16, read_only=False)

    def write(count: int) -> None:
        with index.write() as txn:
            for block_id in range(1, count + 1):
                txn.put_block(block_id, block(b"%d" % block_id))

    with pytest.raises(IndexFull):
        write(400)
    write(400)
    assert index._map_bytes == 1 << 17
    with pytest.raises(IndexFull):
        write(1000)
    assert index.grow()
    write(1)
    assert index._map_bytes == 1 << 18
    index.close()


def test_the_map_waits_for_readers_before_it_grows(index: LmdbIndex) -> None:
    grown = threading.Event()
    with index.read() as view:

        def grow() -> None:
            index.grow()
            grown.set()

        grower = threading.Thread(target=grow)
        grower.start()
        assert not grown.wait(0.1)  # it may only be found waiting, never done
        assert view.block(1) is None
    assert grown.wait(60)
    grower.join()
    put(index, 1)


def test_it_comes_back_after_closing(tmp_path: Path) -> None:
    index = opened(tmp_path)
    put(index, 1)
    index.close()
    assert (tmp_path / "data.mdb").stat().st_mode & 0o777 == 0o600
    index = opened(tmp_path, read_only=True)
    with index.read() as view:
        assert view.block(1) == block()
    index.close()


def test_closing_waits_for_readers_and_sends_later_ones_away(tmp_path: Path) -> None:
    index = opened(tmp_path)
    put(index, 1)
    closer = threading.Thread(target=index.close)
    with index.read() as view:
        closer.start()
        closer.join(0.1)
        assert closer.is_alive()  # it may only be found waiting, never done
        assert view.block(1) == block()
    closer.join(60)
    with pytest.raises(StoreClosed), index.read():
        pass
    with pytest.raises(StoreClosed):
        index.disk_bytes()


def test_a_second_opening_in_one_process_is_told_apart_from_damage(tmp_path: Path) -> None:
    index = opened(tmp_path)
    with pytest.raises(IndexBusy) as e:
        opened(tmp_path, read_only=True)
    assert not e.value.is_damaged
    index.close()


def test_what_is_no_index_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"no index" * 1000)
    with pytest.raises(IndexUnusable) as e:
        opened(tmp_path)
    assert e.value.is_damaged


def test_an_offline_look_tells_sound_from_cut(tmp_path: Path) -> None:
    index = opened(tmp_path)
    for n in range(50):
        put(index, n)
    index.close()
    assert is_sound(str(tmp_path))
    assert not looks_cut(str(tmp_path))
    assert not looks_cut(str(tmp_path / "nowhere"))
    data = tmp_path / "data.mdb"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    assert looks_cut(str(tmp_path))
    assert not is_sound(str(tmp_path))


def test_a_reader_meets_no_index_that_another_one_found_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, is_complete in (("old", True), ("new", False)):
        made = opened(tmp_path / name)
        with made.write() as txn:
            txn.put_block(1, block())
            if is_complete:
                txn.set_complete()
        made.close()
    index = FollowingIndex(str(tmp_path / "old"), map_bytes=1 << 20, lock=False)
    enter = index._gate.enter

    def late() -> None:  # between the look at the file and the read
        monkeypatch.undo()
        os.replace(tmp_path / "new" / DATA_FILE, tmp_path / "old" / DATA_FILE)
        with pytest.raises(OSError, match="anew"):
            index._follow()
        enter()

    monkeypatch.setattr(index._gate, "enter", late)
    with pytest.raises(OSError, match="anew"), index.read():
        pass
    index.close()  # no read is under way


def test_an_index_that_died_says_so_until_it_is_opened_anew(index: LmdbIndex) -> None:
    put(index, 1)
    index._env.close()
    for use in (index.disk_bytes, lambda: put(index, 2)):
        with pytest.raises(OSError, match="index"):
            use()
    index.ensure_alive()
    put(index, 2)
    assert index.disk_bytes() > 0
    index._env.close()
    assert not index.grow()
