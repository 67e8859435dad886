"""One test for each row of the table in ``docs/durability.md``: what a death in that gap leaves.

The process is killed in the gap; in the tests named ``..._power`` the machine loses all that was not synced, too.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kvtier import FlushError, Miss, MissReason, Store
from kvtier.check import rebuild_index, repair, verify
from kvtier.events import Event, Recovered
from kvtier.front import Front
from kvtier.fs import OsFileSystem
from kvtier.index.lmdb_index import LmdbIndex, WriteTxn
from kvtier.recovery import Recovery
from kvtier.segment.format import SEGMENT_HEADER_BYTES
from kvtier.testing import Call, FaultyFileSystem, SimulatedCrash
from tests.crash.oracle import die, reopen
from tests.stores import KIB, config, disk_tier, flip, noise, segments, settle, tier, value_of

ROOT = Path(__file__).parents[2]
OLD, NEW = noise("old", 20 * KIB), noise("new", 20 * KIB)


class World:
    """A store that will die in a chosen gap, and what is left of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fs = FaultyFileSystem(OsFileSystem(), power_loss=True)
        self.settings = config(folder, tier("top"), tier("low"))
        self.store: Store | None = None
        self.events: list[Event] = []

    def open(self) -> Store:
        self.store = reopen(self.settings, self.fs)
        return self.store

    def holding(self, key: bytes, value: bytes) -> Store:
        """Open, with one durable block."""
        store = self.open()
        store.put(key, value)
        store.flush()
        return store

    def dies_before(self, op: str, action: Callable[[], object], *, nbytes: int | None = None) -> None:
        """The action is killed at the first such call to the file system."""

        def watch(call: Call) -> None:
            if call.op == op and nbytes in (None, call.nbytes):
                self.fs.crash()

        self.fs.on_call = watch
        self.dies_in(action)

    def dies_in(self, action: Callable[[], object]) -> None:
        with pytest.raises(SimulatedCrash):
            action()
        die(self.store, self.fs)
        self.store, self.fs.on_call = None, None

    def lose_power(self) -> list[str]:
        """Everything that was not synced is gone; returns what that was."""
        return self.fs.lose_unsynced(seed=0, keep_probability=0)

    def lose_index(self) -> None:
        shutil.rmtree(self.folder / "store" / "index")

    @contextmanager
    def again(self) -> Iterator[Store]:
        with Store.open(self.settings, background=False, listeners=[self.events.append]) as store:
            yield store

    def recovered(self) -> Recovered | None:
        return next((e for e in self.events if isinstance(e, Recovered)), None)

    def says(self, key: bytes) -> bytes | None:
        """The value that a reopened store has."""
        with self.again() as store:
            hit = store.get(key)
            if isinstance(hit, Miss):
                assert hit.reason is MissReason.ABSENT
                return None
            return value_of(hit)


@pytest.fixture
def world(memory: Path) -> World:
    return World(memory)


@pytest.fixture
def dying_after_commit(monkeypatch: pytest.MonkeyPatch) -> Callable[[World], None]:
    """Arms a world: it dies right after the next commit of its index."""
    write = LmdbIndex.write

    def arm(world: World) -> None:
        @contextmanager
        def last_one(index: LmdbIndex) -> Iterator[WriteTxn]:
            with write(index) as txn:
                yield txn
            monkeypatch.undo()
            world.fs.crash()
            raise SimulatedCrash

        monkeypatch.setattr(LmdbIndex, "write", last_one)

    return arm


@pytest.fixture
def dying_before_commit(monkeypatch: pytest.MonkeyPatch) -> Callable[[World], None]:
    """Arms a world: it dies when the next commit of its index is due."""

    def arm(world: World) -> None:
        def never(index: LmdbIndex) -> WriteTxn:
            monkeypatch.undo()
            world.fs.crash()
            raise SimulatedCrash

        monkeypatch.setattr(LmdbIndex, "write", never)

    return arm


def overwrite(store: Store) -> Callable[[], None]:
    def action() -> None:
        store.put(b"k", NEW)
        store.flush()

    return action


def move_down(store: Store, *keys: bytes) -> None:
    assert store._back is not None
    ladder = store._back.ladder
    ladder._evict(ladder.tiers[0], [store._identity.block_id(b"", key) for key in keys])


def delete(store: Store) -> Callable[[], None]:
    def action() -> None:
        store.delete(b"k")
        store.flush()

    return action


# -- writing -----------------------------------------------------------------------------------------


def test_gap_file_created(world: World) -> None:
    store = world.open()
    world.dies_before("write_at", overwrite(store))
    assert [f.stat().st_size for f in segments(world.folder, "top")] == [0]
    assert world.says(b"k") is None
    assert segments(world.folder, "top") == []


def test_gap_header_torn(world: World) -> None:
    """What is written next must not stand behind half a header, where an index made anew would not look."""
    store = world.open()
    world.fs.crash_at(world.fs.counts["write_at"] + 1, op="write_at", written=SEGMENT_HEADER_BYTES * 2 // 3)
    world.dies_in(overwrite(store))
    assert [f.stat().st_size for f in segments(world.folder, "top")] == [SEGMENT_HEADER_BYTES * 2 // 3]
    with world.again() as store:
        assert segments(world.folder, "top") == []
        overwrite(store)()
    world.lose_index()
    assert world.says(b"k") == NEW


def test_gap_written_not_synced(world: World) -> None:
    """A kill loses nothing that was written."""
    store = world.holding(b"k", OLD)
    world.dies_before("sync_data", overwrite(store))
    assert world.says(b"k") == NEW
    assert world.recovered() == Recovered(records=1, torn_bytes=0, rebuilt=False)


def test_gap_written_not_synced_later_power(world: World) -> None:
    """What recovery took in is made durable before the index names it."""
    store = world.open()
    world.dies_before("sync_data", overwrite(store))
    fs, (file,) = FaultyFileSystem(OsFileSystem()), segments(world.folder, "top")
    reopen(world.settings, fs).close()
    calls = [call.op for call in fs.trace if call.path in (str(file), str(file.parent))]
    assert calls == ["sync_data", "sync_dir"]


def test_gap_written_not_synced_index_lost_later_power(world: World) -> None:
    """An index made anew gives the older value up only once the newer one is durable."""
    store = world.holding(b"k", OLD)
    world.dies_before("sync_data", overwrite(store))
    world.lose_index()
    fs, (file,) = FaultyFileSystem(OsFileSystem()), segments(world.folder, "top")
    reopen(world.settings, fs).close()
    calls = [call.op for call in fs.trace if call.path in (str(file), str(file.parent))]
    assert calls[:3] == ["sync_data", "sync_dir", "write_at"]
    assert world.says(b"k") == NEW


def test_gap_written_not_synced_index_lost_and_cannot_be(world: World) -> None:
    """No index is made of what may not be on the disk; nor without it, since it was promised for the most part."""
    store = world.holding(b"k", OLD)
    world.dies_before("sync_data", overwrite(store))
    world.lose_index()
    fs, (file,) = FaultyFileSystem(OsFileSystem()), segments(world.folder, "top")

    def watch(call: Call) -> None:
        if (call.op, call.path) == ("sync_data", str(file)):
            raise OSError(errno.EIO, "Input/output error", call.path)

    fs.on_call = watch
    with pytest.raises(OSError, match="Input/output error"):
        reopen(world.settings, fs)
    assert "write_at" not in [call.op for call in fs.trace if call.path == str(file)]
    assert world.says(b"k") == NEW


def test_an_index_is_made_of_segments_that_cannot_be_written(world: World) -> None:
    """A file system that was made read-only wrote first what it held."""
    world.holding(b"k", NEW).close()
    world.lose_index()
    (file,) = segments(world.folder, "top")

    class ReadOnly(OsFileSystem):
        def open(self, path: str, *, create: bool = False, write: bool = False) -> int:
            if path == str(file) and write:
                raise OSError(errno.EROFS, "Read-only file system", path)
            return super().open(path, create=create, write=write)

    with reopen(world.settings, ReadOnly()) as store:
        assert value_of(store.get(b"k")) == NEW


def test_gap_written_not_synced_power(world: World) -> None:
    store = world.holding(b"k", OLD)
    world.dies_before("sync_data", overwrite(store))
    assert world.lose_power()
    assert world.says(b"k") == OLD


def test_gap_earlier_page_lost_power(world: World) -> None:
    """What was written is a prefix: behind a record that was lost, even a sound one is not taken in."""
    store = world.holding(b"k", OLD)
    store.put(b"before", NEW[1:])
    store.put(b"k", NEW)
    store.put(b"behind", NEW[2:])
    world.dies_before("sync_data", store.flush)
    file = segments(world.folder, "top")[0]
    flip(file, file.read_bytes().find(NEW[:64]))
    assert world.says(b"before") == NEW[1:]
    assert world.says(b"k") == OLD
    assert world.says(b"behind") is None


def test_gap_torn(world: World) -> None:
    store = world.holding(b"k", OLD)
    world.fs.crash_at(world.fs.counts["write_at"] + 1, op="write_at", written=len(NEW) // 2)
    world.dies_in(overwrite(store))
    assert world.says(b"k") == OLD
    recovered = world.recovered()
    assert recovered == Recovered(records=0, torn_bytes=len(NEW) // 2, rebuilt=False)
    with world.again() as store:
        overwrite(store)()
    assert world.says(b"k") == NEW


def test_gap_name_not_synced_power(world: World) -> None:
    store = world.open()
    world.dies_before("sync_dir", overwrite(store))
    assert world.lose_power()
    assert segments(world.folder, "top") == []
    assert world.says(b"k") is None


def test_gap_synced_not_committed(world: World, dying_before_commit: Callable[[World], None]) -> None:
    store = world.holding(b"k", OLD)
    dying_before_commit(world)
    world.dies_in(overwrite(store))
    assert world.lose_power() == []
    assert world.says(b"k") == NEW
    assert world.recovered() == Recovered(records=1, torn_bytes=0, rebuilt=False)


def test_gap_committed_not_acknowledged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.open()

    def die_instead(*_: object) -> None:
        world.fs.crash()
        raise SimulatedCrash

    monkeypatch.setattr(Front, "finish", die_instead)
    world.dies_in(overwrite(store))
    monkeypatch.undo()
    assert world.says(b"k") == NEW
    assert world.recovered() is None


def test_gap_acknowledged_power(world: World) -> None:
    """The last commit may not be on the disk: what it wrote is found again, what it deleted may be back."""
    store = world.holding(b"k", OLD)
    store.put(b"gone", OLD[1:])
    store.flush()
    index = world.folder / "store" / "index" / "data.mdb"
    before = index.read_bytes()
    store.put(b"k", NEW)
    store.delete(b"gone")
    store.flush()
    die(store, world.fs)
    world.lose_power()
    index.write_bytes(before)
    assert world.says(b"k") == NEW
    assert world.says(b"gone") == OLD[1:]


# -- deleting, overwriting, evicting -----------------------------------------------------------------


def test_gap_deletion_not_committed(world: World, dying_before_commit: Callable[[World], None]) -> None:
    store = world.holding(b"k", OLD)
    dying_before_commit(world)
    world.dies_in(delete(store))
    assert world.says(b"k") == OLD


def test_gap_deletion_not_marked(world: World) -> None:
    store = world.holding(b"k", OLD)
    store.put(b"other", OLD[1:])
    store.flush()
    world.dies_before("write_at", delete(store), nbytes=1)
    assert world.says(b"k") is None
    world.lose_index()
    assert world.says(b"k") == OLD
    assert world.says(b"other") == OLD[1:]


def test_gap_deletion_not_punched(world: World) -> None:
    store = world.holding(b"k", OLD)
    store.put(b"other", OLD[1:])
    store.flush()
    world.dies_before("punch", delete(store))
    world.lose_index()
    assert world.says(b"k") is None
    assert world.says(b"other") == OLD[1:]


def test_gap_overwritten_not_marked(world: World) -> None:
    """Both records look alive; the later put counts, whenever the earlier one was."""
    store = world.open()
    for value in (NEW[1:], OLD[1:], OLD):
        store.put(b"k", value)
        store.flush()
    store.close()
    store = world.open()
    world.dies_before("write_at", overwrite(store), nbytes=1)
    world.lose_index()
    assert world.says(b"k") == NEW


def test_gap_payload_of_others_not_marked(world: World) -> None:
    """The record of an overwritten block holds the bytes that another block shares."""
    store = world.holding(b"k", OLD)
    store.put(b"twin", OLD)
    store.flush()
    world.dies_before("write_at", overwrite(store), nbytes=1)
    assert world.says(b"k") == NEW
    world.lose_index()
    assert world.says(b"k") == NEW
    assert world.says(b"twin") == OLD


def test_gap_payload_of_others_not_marked_below(world: World) -> None:
    """The same, in the lower tier: the newer record is in the upper one."""
    store = world.holding(b"k", OLD)
    store.put(b"twin", OLD)
    store.flush()
    move_down(store, b"twin", b"k")  # the last goes first, so its record holds the payload
    world.dies_before("write_at", overwrite(store), nbytes=1)
    world.lose_index()
    assert world.says(b"k") == NEW
    assert world.says(b"twin") == OLD


def test_gap_segment_not_removed(world: World) -> None:
    store = world.holding(b"k", OLD)
    store.close()
    with world.again() as store:
        store.put(b"last", noise("fills the segment", 512 * KIB))
        store.put(b"more", noise("begins the next one", 512 * KIB))
        store.flush()
    first = segments(world.folder, "top")[0]
    store = world.open()
    store.delete(b"last")
    world.dies_before("unlink", delete(store))
    assert first.exists()
    assert world.says(b"k") is None
    assert not first.exists()


# -- moving ------------------------------------------------------------------------------------------


def demoted(world: World) -> Callable[[], None]:
    """A store that is about to move its one block down, and the way to make it do so."""
    store = world.holding(b"k", OLD)
    return lambda: move_down(store, b"k")


def where(world: World) -> str:
    with world.again() as store:
        info = store.info(b"k")
        assert info is not None
        assert value_of(store.get(b"k")) == OLD
        return info.tier


def test_gap_copy_not_committed(world: World, dying_before_commit: Callable[[World], None]) -> None:
    move = demoted(world)
    dying_before_commit(world)
    world.dies_in(move)
    assert where(world) == "low"


def test_gap_move_not_marked(world: World, dying_after_commit: Callable[[World], None]) -> None:
    move = demoted(world)
    dying_after_commit(world)
    world.dies_in(move)
    assert where(world) == "low"
    world.lose_index()
    assert where(world) in ("top", "low")


def test_gap_moved_power(world: World) -> None:
    """The commit that moved the block is lost, but not the mark on the record that it left."""
    move = demoted(world)
    index = world.folder / "store" / "index" / "data.mdb"
    before = index.read_bytes()
    move()
    assert world.store is not None
    die(world.store, world.fs)
    index.write_bytes(before)
    assert where(world) == "low"


@pytest.mark.parametrize("in_a_new_segment", [False, True])
@pytest.mark.parametrize("dies_in_recovery", [False, True])
def test_gap_moves_both_ways_power(world: World, dies_in_recovery: bool, in_a_new_segment: bool) -> None:
    """The power takes the commit that moved one block down, and another one is just on its way up from the same
    segment: as far as the index knows, that segment then holds nothing, before its tail is taken in. Of a new
    segment the index knows nothing at all."""
    store = world.holding(b"up", NEW)
    move_down(store, b"up")
    store.put(b"k", OLD)
    store.flush()
    index = world.folder / "store" / "index" / "data.mdb"
    before = index.read_bytes()
    assert store._back is not None
    ladder = store._back.ladder
    top, low = ladder.tiers
    if in_a_new_segment:
        low.seal()
    move_down(store, b"k")
    drafts, _ = ladder._copier.copies([store._wanted(b"up", b"").block_id], low, top, may_lose=True)
    ladder._append(top, [draft for _, draft in drafts])
    die(store, world.fs)
    index.write_bytes(before)
    if dies_in_recovery:
        for point in range(1, 20):
            fs = FaultyFileSystem(OsFileSystem())
            fs.crash_at(point)
            with suppress(SimulatedCrash):
                reopen(world.settings, fs).close()
            fs.reap()
    assert where(world) == "low"
    assert world.says(b"up") == NEW


# -- opening -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["make_dir", "create", "write_at", "sync_data", "rename", "sync_dir"])
def test_gap_first_opening(world: World, op: str) -> None:
    world.dies_before(op, world.open)
    with world.again() as store:
        overwrite(store)()
    assert world.says(b"k") == NEW


def test_a_store_that_another_process_makes_meanwhile_is_opened(world: World) -> None:
    def make_it(call: Call) -> None:
        if call.op == "lock":
            world.fs.on_call = None
            with world.again() as store:
                overwrite(store)()

    world.fs.on_call = make_it
    store = world.open()
    assert value_of(store.get(b"k")) == NEW
    store.close()


def test_gap_tail_not_cut(world: World) -> None:
    store = world.holding(b"k", OLD)
    world.fs.crash_at(world.fs.counts["write_at"] + 1, op="write_at", written=len(NEW) // 2)
    world.dies_in(overwrite(store))
    world.fs = FaultyFileSystem(OsFileSystem())
    world.dies_before("truncate", world.open)
    assert world.says(b"k") == OLD


def test_gap_index_half_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A death while the index is made anew: the next opening begins from nothing again."""
    store = world.open()
    for n in range(6):
        store.put(b"%d" % n, noise(n, 20 * KIB))
    store.put(b"twin", noise(5, 20 * KIB))
    store.flush()
    store.close()
    world.lose_index()
    adopt, calls = Recovery._adopt, iter(range(10))

    def only_once(*args: object) -> None:
        if next(calls):
            world.fs.crash()
            raise SimulatedCrash
        adopt(*args)  # type: ignore[arg-type]

    world.store = None
    with monkeypatch.context() as patch:
        patch.setattr("kvtier.recovery._BATCH", 2)
        patch.setattr(Recovery, "_adopt", only_once)
        world.dies_in(world.open)
    for n in range(6):
        assert world.says(b"%d" % n) == noise(n, 20 * KIB)
    assert world.says(b"twin") == noise(5, 20 * KIB)


# -- putting in order --------------------------------------------------------------------------------


def holding_some(world: World) -> dict[bytes, bytes]:
    """The world holds these blocks, two of which share a payload, and is closed."""
    values = {b"%d" % n: noise(n % 4, 20 * KIB) for n in range(5)}
    with world.again() as store:
        for key, value in values.items():
            store.put(key, value)
        store.flush()
        move_down(store, b"1", b"2")
    return values


def deaths(world: World, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> Iterator[int]:
    """Kill the action at its first call to the file system, its second, ..., until it is not reached."""
    for point in range(1, 1000):
        fs = FaultyFileSystem(OsFileSystem())
        fs.crash_at(point)
        with monkeypatch.context() as patch:
            patch.setitem(repair.__globals__, "default_file_system", lambda fs=fs: fs)
            patch.setattr("kvtier.recovery._BATCH", 2)
            try:
                action()
            except SimulatedCrash:
                die(None, fs)
            else:
                return
        yield point


def test_gap_rebuild_index(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    values = holding_some(world)
    rebuilt = 0
    for point in deaths(world, monkeypatch, lambda: rebuild_index(world.settings)):
        world.events.clear()
        assert {key: world.says(key) for key in values} == values, point
        recovered = world.recovered()
        rebuilt += recovered is not None and recovered.rebuilt
    assert rebuilt > 3
    assert verify(world.settings).is_sound


def test_gap_repair(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One payload is damaged, and so is a segment's header. What is sound is there after each death; what is damaged is
    a miss; and another repair comes to the end."""
    values = holding_some(world)
    top, low = (segments(world.folder, name)[0] for name in ("top", "low"))
    flip(top, top.read_bytes().find(values[b"3"]))
    flip(low, 0)
    damaged = shutil.copytree(world.folder / "store", world.folder / "damaged")
    points = 0
    for point in deaths(world, monkeypatch, lambda: repair(world.settings)):
        with world.again() as store:
            for key in sorted(values.keys() - {b"3"}):
                assert value_of(store.get(key)) == values[key], (point, key)
            assert isinstance(store.get(b"3"), Miss), point
        assert repair(world.settings).left.is_sound, point
        shutil.rmtree(world.folder / "store")
        shutil.copytree(damaged, world.folder / "store")
        points += 1
    assert points > 15
    with world.again() as store:
        assert store.match([b"0", b"1", b"2", b"4"]) == 4


# -- errors ------------------------------------------------------------------------------------------


def test_gap_failed_write_not_sealed(world: World) -> None:
    """A write failed, and its segment could not even be cut: it must not come back after what followed it."""
    store = world.holding(b"other", OLD)
    world.fs.fail_at(world.fs.counts["sync_data"] + 1, errno.EIO, op="sync_data")
    world.fs.fail_at(world.fs.counts["truncate"] + 1, errno.EIO, op="truncate")
    store.put(b"k", NEW)
    with pytest.raises(FlushError, match="1 blocks"):
        store.flush()
    disk_tier(store).health.retry_at = 0.0
    store.put(b"k", NEW[1:])
    store.flush()
    delete(store)()
    die(store, world.fs)
    assert world.says(b"k") is None
    assert world.says(b"other") == OLD


def test_gap_failed_write_cut(world: World) -> None:
    """A write failed, and the process died before any other commit: nothing of it is there, index or not."""
    store = world.holding(b"k", OLD)
    store.put(b"other", OLD[1:])
    store.flush()
    world.fs.fail_at(world.fs.counts["sync_data"] + 1, errno.EIO, op="sync_data")
    store.put(b"k", NEW)
    with pytest.raises(FlushError, match="1 blocks"):
        store.flush()
    settle(store)
    die(store, world.fs)
    world.lose_index()
    assert world.says(b"k") is None
    assert world.says(b"other") == OLD[1:]


def test_gap_failed_commit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is durable, but the index could not be committed: nothing of it is there, index or not."""
    store = world.holding(b"k", OLD)
    store.put(b"other", OLD[1:])
    store.flush()
    store.put(b"k", NEW)

    def fail(_: LmdbIndex) -> None:
        monkeypatch.undo()
        raise OSError(errno.ENOSPC, "index: no space")

    monkeypatch.setattr(LmdbIndex, "write", fail)
    with pytest.raises(FlushError, match="1 blocks"):
        store.flush()
    settle(store)
    die(store, world.fs)
    world.lose_index()
    assert world.says(b"k") is None
    assert world.says(b"other") == OLD[1:]


def test_gap_failed_sync_power(world: World) -> None:
    """A failed sync is not tried again: the block is written anew, elsewhere."""
    store = world.holding(b"k", OLD)
    world.fs.fail_at(world.fs.counts["sync_data"] + 1, errno.EIO, op="sync_data")
    store.put(b"k", NEW)
    with pytest.raises(FlushError, match="1 blocks"):
        store.flush()
    disk_tier(store).health.retry_at = 0.0
    overwrite(store)()
    die(store, world.fs)
    world.lose_power()
    assert world.says(b"k") == NEW


# -- the table ---------------------------------------------------------------------------------------


def test_the_document_names_every_gap_and_every_test_that_it_names_exists() -> None:
    document = (ROOT / "docs" / "durability.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", document))
    here = {name for name in globals() if name.startswith("test_gap_")}
    assert here <= named
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in named if f"def {name}(" not in written} == set()
