"""Damaged, misplaced and missing files: detected, counted, never served; the key can be stored again."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from kvtier import BlockState, Config, FlushError, Hit, Miss, MissReason, Store, running
from kvtier.events import BlockQuarantined, Event, RebuildProgress, Recovered, SegmentLost
from kvtier.index.lmdb_index import LmdbIndex
from kvtier.segment.format import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, Place, RecordHead, unpack_head
from tests.stores import KIB, config, disk_tier, fill, flip, names, noise, segments, settle, tier, value_of

OPENING = "import sys; from kvtier import Store; Store.open(sys.argv[1] + '/store').close()"
KEYS = names(6)
SIZE = 20 * KIB


class Damaged:
    """A store of six blocks in two segments, closed, so that its files can be tampered with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = config(folder, tier(segment_bytes=80 * KIB), value_bytes_max=64 * KIB)
        self.events: list[Event] = []
        with self.open() as store:
            self.values = fill(store, KEYS, SIZE)
            self.places = {key: self._place(store, key) for key in KEYS}
            self.store_id = store._identity.store_id
        assert len(self.files) == 2

    def open(self, settings: Config | None = None) -> Store:
        self.events = []
        return Store.open(settings or self.settings, background=False, listeners=[self._note])

    def _note(self, event: Event) -> None:
        if not isinstance(event, RebuildProgress):
            self.events.append(event)

    def _place(self, store: Store, key: bytes) -> tuple[int, int]:
        assert store._back is not None
        (located,) = store._back.locate([store._wanted(key, b"")])
        assert not isinstance(located, MissReason)
        return located.content.segment_no, located.content.offset

    @property
    def files(self) -> list[Path]:
        return segments(self.folder)

    @property
    def index(self) -> Path:
        return self.folder / "store" / "index"

    def file_of(self, key: bytes) -> Path:
        return self.files[self.places[key][0] - 1]

    def head_of(self, key: bytes) -> RecordHead:
        segment_no, offset = self.places[key]
        raw = self.file_of(key).read_bytes()[offset:]
        return unpack_head(raw, Place(self.store_id, 0, segment_no, offset))

    def check(self, store: Store, lost: set[bytes], reason: MissReason | None = MissReason.CORRUPT) -> None:
        """Exactly the blocks in ``lost`` are misses, for this reason; each can be stored again, and stays."""
        for key in KEYS:
            hit = store.get(key)
            if key in lost:
                assert isinstance(hit, Miss)
                assert reason in (None, hit.reason)
            else:
                assert value_of(hit) == self.values[key]
        settle(store)
        for key in lost:
            hit = store.get(key)
            assert isinstance(hit, Miss)
            assert hit.reason is MissReason.ABSENT
            store.put(key, self.values[key])
        store.flush()
        store.close()
        with self.open() as again:
            for key in KEYS:
                assert value_of(again.get(key)) == self.values[key]


@pytest.fixture
def damaged(tmp_path: Path) -> Damaged:
    return Damaged(tmp_path)


# -- one record --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 5, 8, 47, 100, RECORD_HEADER_BYTES - 1, RECORD_HEADER_BYTES + 1])
def test_flipped_bit_in_a_head(damaged: Damaged, at: int) -> None:
    flip(damaged.file_of(KEYS[1]), damaged.places[KEYS[1]][1] + at)
    with damaged.open() as store:
        damaged.check(store, {KEYS[1]})


@pytest.mark.parametrize("at", [0, SIZE // 2, SIZE - 1])
def test_flipped_bit_in_a_payload(damaged: Damaged, at: int) -> None:
    flip(damaged.file_of(KEYS[1]), damaged.places[KEYS[1]][1] + damaged.head_of(KEYS[1]).head_len + at)
    with damaged.open() as store:
        assert isinstance(store.get(KEYS[1]), Miss)
        target = bytearray(SIZE)
        assert not store.get_into(KEYS[1], target)
        assert [bool(h) for h in store.get_many(KEYS)] == [True, False, True, True, True, True]
        settle(store)
        stats = store.stats()
        assert stats.quarantined == 1
        assert stats.misses["corrupt"] == 3
        (event,) = damaged.events
        assert isinstance(event, BlockQuarantined)
        assert (event.tier, event.segment, event.offset) == ("disk", *damaged.places[KEYS[1]])
        damaged.check(store, {KEYS[1]}, None)


def test_any_flipped_bit(damaged: Damaged, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Wherever it is: the block that stands there is a miss or right, and all others are right."""
    rng = random.Random(1)
    whole = [file.read_bytes() for file in damaged.files]
    for _ in range(60):
        number = rng.randrange(2)
        at = rng.randrange(len(whole[number]))
        flip(damaged.files[number], at)
        before = [key for key in KEYS if damaged.places[key] <= (number + 1, at)]
        owner = max(before, key=damaged.places.__getitem__, default=None)
        with Store.open(damaged.settings, read_only=True) as store:
            for key in KEYS:
                hit = store.get(key)
                assert value_of(hit) == damaged.values[key] if isinstance(hit, Hit) else key == owner
        damaged.files[number].write_bytes(whole[number])


def test_every_block_that_shares_a_damaged_payload_is_a_miss(damaged: Damaged) -> None:
    with damaged.open() as store:
        store.put(b"twin", damaged.values[KEYS[1]])
    flip(damaged.file_of(KEYS[1]), damaged.places[KEYS[1]][1] + 4000)
    with damaged.open() as store:
        assert isinstance(store.get(b"twin"), Miss)
        settle(store)
        assert store.stats().quarantined == 1
        damaged.check(store, {KEYS[1]}, MissReason.ABSENT)
    with damaged.open() as store:
        assert isinstance(store.get(b"twin"), Miss)
        assert store.stats().bytes_on_disk > 0


def test_a_damaged_block_that_moves_down_is_not_believed_there(tmp_path: Path) -> None:
    settings = config(
        tmp_path,
        tier("top", bytes_max=768 * KIB, segment_bytes=80 * KIB),
        tier("low", segment_bytes=80 * KIB),
        value_bytes_max=64 * KIB,
    )
    with Store.open(settings, background=False) as store:
        first = fill(store, KEYS, SIZE)
    flip(segments(tmp_path, "top")[0], SEGMENT_HEADER_BYTES + 4000)
    with Store.open(settings, background=False) as store:
        fill(store, names(30, "more"), SIZE)
        assert store.stats().counters["demotions"] >= len(KEYS) - 1
        assert store.stats().counters["corrupt_on_move"] == 1
        assert isinstance(store.get(KEYS[0]), Miss)
        for key in KEYS[1:]:
            assert value_of(store.get(key)) == first[key]


# -- whole segments ----------------------------------------------------------------------------------


def test_truncated_segment(damaged: Damaged) -> None:
    os.truncate(damaged.files[0], damaged.places[KEYS[1]][1] + 1000)
    lost = {key for key in KEYS if damaged.places[key][0] == 1} - {KEYS[0]}
    with damaged.open() as store:
        assert store.stats().counters["segments_short"] == 1
        damaged.check(store, lost)


def test_truncated_last_segment(damaged: Damaged) -> None:
    """The one that would have been appended to."""
    last = KEYS[-1]
    os.truncate(damaged.files[1], damaged.places[last][1] + 1000)
    with damaged.open() as store:
        damaged.check(store, {last})
    shutil.rmtree(damaged.index)
    with damaged.open() as store:
        damaged.check(store, set())


def test_emptied_segment(damaged: Damaged) -> None:
    os.truncate(damaged.files[0], 0)
    with damaged.open() as store:
        damaged.check(store, {key for key in KEYS if damaged.places[key][0] == 1})


def test_deleted_segment(damaged: Damaged) -> None:
    damaged.files[0].unlink()
    lost = {key for key in KEYS if damaged.places[key][0] == 1}
    with damaged.open() as store:
        assert damaged.events[0] == SegmentLost("disk", 1)
        assert store.stats().counters["blocks_lost"] == len(lost)
        damaged.check(store, lost, MissReason.ABSENT)


def test_segment_deleted_while_the_store_is_open(damaged: Damaged) -> None:
    with damaged.open() as store:
        damaged.files[0].unlink()
        assert store._back is not None
        store._back.ladder.tiers[0]._files.forget(1)
        store._back.ladder.tiers[0].segments.pop(1)
        damaged.check(store, {key for key in KEYS if damaged.places[key][0] == 1})


def test_swapped_records(damaged: Damaged) -> None:
    """Both records are sound, and of the same length: only their places are wrong."""
    file = damaged.files[0]
    one, two = (damaged.places[key][1] for key in KEYS[:2])
    length = two - one
    raw = bytearray(file.read_bytes())
    raw[one : one + length], raw[two : two + length] = raw[two : two + length], raw[one : one + length]
    file.write_bytes(raw)
    with damaged.open() as store:
        damaged.check(store, set(KEYS[:2]))


def test_copied_record(damaged: Damaged) -> None:
    """A write that went astray: an old record, sound but for its place, stands at the end of a segment."""
    one, two = (damaged.places[key][1] for key in KEYS[:2])
    record = damaged.files[0].read_bytes()[one:two]
    with damaged.open() as store:
        store.delete(KEYS[0])
    with damaged.files[-1].open("ab") as file:
        file.write(record)
    with damaged.open() as store:
        assert damaged.events == [Recovered(records=0, torn_bytes=len(record), rebuilt=False)]
        damaged.check(store, {KEYS[0]}, MissReason.ABSENT)


def test_swapped_segments(damaged: Damaged) -> None:
    one, two = (file.read_bytes() for file in damaged.files)
    damaged.files[0].write_bytes(two)
    damaged.files[1].write_bytes(one)
    with damaged.open() as store:
        damaged.check(store, set(KEYS), None)


@pytest.mark.parametrize("index_is_lost", [False, True])
def test_segment_of_another_store(damaged: Damaged, tmp_path: Path, index_is_lost: bool) -> None:
    other = Damaged(tmp_path / "other")
    shutil.copy(other.files[0], damaged.files[0])
    if index_is_lost:
        shutil.rmtree(damaged.index)
    with damaged.open() as store:
        damaged.check(store, {key for key in KEYS if damaged.places[key][0] == 1}, None)


def test_additional_segment_of_another_store(damaged: Damaged, tmp_path: Path) -> None:
    other = Damaged(tmp_path / "other")
    with other.open() as store:
        fill(store, names(4, "foreign"), SIZE)
    shutil.copy(other.files[-1], damaged.files[-1].with_name("00000007.seg"))
    with damaged.open() as store:
        assert not any(store.get(key) for key in names(4, "foreign"))
        damaged.check(store, set())


@pytest.mark.parametrize("at", [0, 9, 20, 40, 63])
@pytest.mark.parametrize("index_is_lost", [False, True])
def test_flipped_bit_in_a_segment_header(damaged: Damaged, at: int, index_is_lost: bool) -> None:
    """Records prove themselves, so the header matters only where the index has to be made anew."""
    flip(damaged.files[0], at)
    if index_is_lost:
        shutil.rmtree(damaged.index)
    with damaged.open() as store:
        if index_is_lost:
            assert store.stats().counters["segments_unreadable"] >= 1
        lost = {key for key in KEYS if damaged.places[key][0] == 1} if index_is_lost else set()
        damaged.check(store, lost, MissReason.ABSENT)


# -- the index ---------------------------------------------------------------------------------------


def cut(index: Path) -> None:
    os.truncate(index / "data.mdb", 3 * 4096)


def scribble(index: Path) -> None:
    (index / "data.mdb").write_bytes(noise("scribble", 1 << 20))


def empty(index: Path) -> None:
    (index / "data.mdb").write_bytes(b"")


def zero(index: Path) -> None:
    (index / "data.mdb").write_bytes(bytes(64 * KIB))


def spoil_heads(index: Path) -> None:
    data = bytearray((index / "data.mdb").read_bytes())
    data[: 2 * 4096] = noise("heads", 2 * 4096)
    (index / "data.mdb").write_bytes(data)


@pytest.mark.parametrize("spoil", [shutil.rmtree, cut, scribble, empty, zero, spoil_heads])
def test_lost_index_is_made_anew(damaged: Damaged, spoil: Callable[[Path], None]) -> None:
    with damaged.open() as store:
        store.put(b"twin", damaged.values[KEYS[2]], meta=b"second")
        store.delete(KEYS[2])
        store.delete(KEYS[4])
        store.put(KEYS[0], damaged.values[KEYS[5]])
        store.flush()
        damaged.values[KEYS[0]] = damaged.values[KEYS[5]]
        live = store.stats().tiers[0].bytes_live
    spoil(damaged.index)
    with damaged.open() as store:
        assert damaged.events == [Recovered(records=5, torn_bytes=0, rebuilt=True)]
        assert value_of(store.get(b"twin")) == noise(KEYS[2], SIZE)
        assert store.get(b"twin").meta == b"second"  # type: ignore[union-attr]
        assert store.stats().tiers[0].bytes_live == live
        damaged.check(store, {KEYS[2], KEYS[4]}, MissReason.ABSENT)


def test_what_was_deleted_or_evicted_does_not_come_back_with_a_new_index(tmp_path: Path) -> None:
    settings = config(tmp_path, tier(bytes_max=768 * KIB, segment_bytes=80 * KIB), value_bytes_max=64 * KIB)
    with Store.open(settings, background=False) as store:
        values = fill(store, names(40), SIZE)
        for key in names(40)[30::3]:
            store.delete(key)
        store.flush()
        present = {key for key in values if store.contains(key)}
        assert 5 < len(present) < 25
    shutil.rmtree(tmp_path / "store" / "index")
    with Store.open(settings, background=False) as store:
        for key, value in values.items():
            hit = store.get(key)
            assert (value_of(hit) == value) if isinstance(hit, Hit) else key not in present
            assert bool(hit) == (key in present)
        assert store.stats().blocks == len(present)


def test_old_index_with_newer_segments(damaged: Damaged) -> None:
    """Such as one that a backup brought back: a record marked dead behind its end gives it away."""
    shutil.copytree(damaged.index, damaged.folder / "backup")
    with damaged.open() as store:
        store.put(KEYS[0], noise("newer", SIZE))
        store.delete(KEYS[1])
        store.flush()
        more = fill(store, names(8, "more"), SIZE)
        store.delete(b"more0001")
        store.flush()
    shutil.rmtree(damaged.index)
    shutil.copytree(damaged.folder / "backup", damaged.index)
    damaged.values[KEYS[0]] = noise("newer", SIZE)
    with damaged.open() as store:
        assert any(isinstance(e, Recovered) and e.rebuilt for e in damaged.events)
        for key, value in more.items():
            hit = store.get(key)
            assert (value_of(hit) == value) if isinstance(hit, Hit) else key == b"more0001"
        damaged.check(store, {KEYS[1]}, MissReason.ABSENT)


def test_old_index_that_nothing_gives_away(damaged: Damaged) -> None:
    """What was deleted since is still named, but its record says that it is dead."""
    with damaged.open() as store:
        store.put(b"small", b"too small for a hole")
    shutil.copytree(damaged.index, damaged.folder / "backup")
    with damaged.open() as store:
        store.delete(KEYS[1])
        store.delete(b"small")
        store.flush()
    shutil.rmtree(damaged.index)
    shutil.copytree(damaged.folder / "backup", damaged.index)
    with damaged.open() as store:
        assert not store.get(b"small")
        damaged.check(store, {KEYS[1]})


def test_damaged_index_entries_are_misses(damaged: Damaged) -> None:
    """A page of the index with flipped bits: entries that fail their checksum are misses, and the next opening makes
    the index anew."""
    data = damaged.index / "data.mdb"
    raw = bytearray(data.read_bytes())
    for key in KEYS[:2]:
        at = raw.find(key)
        while at >= 0:
            raw[at - 20] ^= 1
            at = raw.find(key, at + 1)
    data.write_bytes(raw)
    with damaged.open() as store:
        for key in KEYS[:2]:
            miss = store.get(key)
            assert isinstance(miss, Miss)
            assert miss.reason is MissReason.CORRUPT
            assert store.explain(key).state is BlockState.DAMAGED
        assert value_of(store.get(KEYS[2])) == damaged.values[KEYS[2]]
        store.put(KEYS[0], damaged.values[KEYS[0]])
        store.flush()
        assert value_of(store.get(KEYS[0])) == damaged.values[KEYS[0]]
    with damaged.open() as store:
        assert [event.rebuilt for event in damaged.events if isinstance(event, Recovered)] == [True]
        damaged.check(store, set())


@pytest.mark.parametrize("page", range(2, 14))
def test_an_index_with_a_damaged_page_is_made_anew(damaged: Damaged, page: int) -> None:
    """Whether LMDB meets the page while the store is opened, or in a write, or not at all."""
    data = damaged.index / "data.mdb"
    raw = bytearray(data.read_bytes())
    raw[page * 4096 + 10] ^= 0xFF  # what kind of page it is
    data.write_bytes(raw)
    with damaged.open() as store:
        store.put(b"new", noise("new", SIZE))
        with suppress(FlushError):
            store.flush()
    with damaged.open() as store:
        for key in KEYS:
            assert value_of(store.get(key)) == damaged.values[key]
        store.put(b"new", noise("new", SIZE))
        store.flush()


def test_an_index_that_may_have_ended_the_process_is_looked_at(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that was killed costs no look at the index; one after a few in a row does, and they count anew."""
    looks: list[str] = []

    def look(folder: str) -> bool:
        looks.append(folder)
        return True

    monkeypatch.setattr("kvtier.assembly.is_sound", look)
    mark = damaged.folder / "store" / running.RUNNING_FILE
    seen = []
    for _ in range(2 * running.CRASHES_MAX + 1):
        with damaged.open():
            left = mark.read_bytes()
        mark.write_bytes(left)  # as a kill leaves it
        seen.append(len(looks))
    assert seen == [0, 0, 0, 1, 1, 1, 2]
    mark.unlink()
    damaged.open().close()
    assert len(looks) == 2


def test_an_index_that_ends_each_process_that_opens_it(damaged: Damaged) -> None:
    """Before the store is open: that counts too."""
    data = damaged.index / "data.mdb"
    raw = bytearray(data.read_bytes())
    for page in range(2, len(raw) // 4096):
        raw[page * 4096 + 16 : page * 4096 + 18] = b"\xf0\xff"  # its first entry is behind the end of the file
    data.write_bytes(raw)
    openings = [subprocess.run([sys.executable, "-c", OPENING, damaged.folder], check=False) for _ in range(4)]
    assert [opening.returncode == 0 for opening in openings] == [False] * running.CRASHES_MAX + [True]
    with damaged.open() as store:
        damaged.check(store, set())


def test_index_that_cannot_be_read_is_a_miss(damaged: Damaged, monkeypatch: pytest.MonkeyPatch) -> None:
    with damaged.open() as store:

        def fail(_: LmdbIndex) -> None:
            raise OSError("index: page not found")

        with monkeypatch.context() as patch:
            patch.setattr(LmdbIndex, "read", fail)
            hit = store.get(KEYS[0])
            assert isinstance(hit, Miss)
            assert hit.reason is MissReason.UNAVAILABLE
            assert store.match(KEYS) == 0
        assert store.match(KEYS) == len(KEYS)


def test_index_that_cannot_be_committed(damaged: Damaged, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new value is lost, and the old one, which cannot be taken away, does not stand in for it."""
    with damaged.open() as store:

        def fail(_: LmdbIndex) -> None:
            raise OSError(errno.ENOSPC, "index: no space")

        with monkeypatch.context() as patch:
            patch.setattr(LmdbIndex, "write", fail)
            store.put(KEYS[0], noise("newer", SIZE))
            with pytest.raises(FlushError, match="1 blocks"):
                store.flush()
            hit = store.get(KEYS[0])
            assert isinstance(hit, Miss)
            assert hit.reason is MissReason.UNAVAILABLE
            assert value_of(store.get(KEYS[1])) == damaged.values[KEYS[1]]
        disk_tier(store).health.retry_at = 0.0
        store.put(KEYS[0], noise("newest", SIZE))
        store.flush()
        assert value_of(store.get(KEYS[0])) == noise("newest", SIZE)
