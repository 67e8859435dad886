"""Compaction that ends anywhere: by a death, an error, a loss of power. No block is lost, and none comes back."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kvtier import Config, Hit, KeyProvider, MissReason, Store, single_key
from kvtier.check import verify
from kvtier.events import Event, Recovered, SegmentLost
from kvtier.fs import FileSystem, OsFileSystem, PortableFileSystem
from kvtier.index.lmdb_index import LmdbIndex, WriteTxn
from kvtier.testing import FaultyFileSystem, SimulatedCrash
from tests.crash.oracle import die, reopen
from tests.crash.power import new_boot
from tests.stores import KIB, config, disk_tier, names, noise, settle, tier, value_of

FreshFolder = Callable[[], Path]

BLOCK_BYTES = 12 * KIB
KEYS = names(30)
#: What the power takes of the index.
LOST = ("nothing of the index", "its last commit", "all of it")


def settings_in(folder: Path) -> Config:
    sparse = tier("disk", segment_bytes=64 * KIB, compaction="copy", compaction_dead_ratio=0.25)
    return config(folder, sparse, value_bytes_max=32 * KIB)


def fill_and_thin_out(settings: Config, keys: KeyProvider | None = None) -> dict[bytes, bytes | None]:
    """A store that has a lot to compact: what each key may be in it. A block that others share was overwritten, and one
    of those is the only reason for its record to be there."""
    values: dict[bytes, bytes | None] = {key: noise(key, BLOCK_BYTES) for key in KEYS}
    values |= {b"twin": values[KEYS[4]], b"heir": values[KEYS[8]], KEYS[8]: noise("new", BLOCK_BYTES)}
    with reopen(settings, PortableFileSystem(), keys) as store:
        parent = None
        for key in KEYS:
            store.put(key, noise(key, BLOCK_BYTES), parent=parent)
            parent = key
        for key in (b"twin", b"heir", KEYS[8]):
            store.put(key, values[key] or b"")
            store.flush()
        store.pause_compaction()
        for key in KEYS:
            if int(key[1:]) % 4:
                assert store.delete(key)
                values[key] = None
        store.flush()
    return values


def check(settings: Config, values: dict[bytes, bytes | None], keys: KeyProvider | None = None) -> None:
    with reopen(settings, keys=keys) as store:
        for key, value in values.items():
            hit = store.get(key)
            assert (value_of(hit) if isinstance(hit, Hit) else None) == value, key
            assert isinstance(hit, Hit) or hit.reason is MissReason.ABSENT


def compact(settings: Config, fs: FileSystem, keys: KeyProvider | None = None) -> Store:
    store = reopen(settings, fs, keys)
    try:
        settle(store)
    except SimulatedCrash:
        assert isinstance(fs, FaultyFileSystem)
        die(store, fs)
        raise
    return store


@pytest.fixture
def thinned(memory: Path) -> tuple[Path, dict[bytes, bytes | None]]:
    """A folder with such a store, to be copied."""
    return memory / "thinned", fill_and_thin_out(settings_in(memory / "thinned"))


def copies(thinned: Path, fresh_folder: FreshFolder) -> Iterator[Path]:
    while True:
        yield shutil.copytree(thinned, fresh_folder(), dirs_exist_ok=True)


def calls_of_compaction(settings: Config, keys: KeyProvider | None = None) -> tuple[int, int]:
    """How many changing calls opening makes, and how many there are in all once it is compacted and closed."""
    fs = FaultyFileSystem(PortableFileSystem())
    store = reopen(settings, fs, keys)
    opened = fs.calls
    settle(store)
    store.close()
    assert store._signals.get("compaction_segments") > 3
    return opened, fs.calls


@pytest.mark.parametrize("index_is_lost", [False, True])
def test_death_in_any_call_of_a_compaction(
    thinned: tuple[Path, dict[bytes, bytes | None]], fresh_folder: FreshFolder, index_is_lost: bool
) -> None:
    source, values = thinned
    folders = copies(source, fresh_folder)
    opened, calls = calls_of_compaction(settings_in(next(folders)))
    assert calls - opened > 20
    for n in range(opened + 1, calls + 1):
        folder = next(folders)
        settings, fs = settings_in(folder), FaultyFileSystem(PortableFileSystem())
        fs.crash_at(n)
        with suppress(SimulatedCrash):
            compact(settings, fs).close()
        fs.reap()
        if index_is_lost:
            shutil.rmtree(folder / "store" / "index")
        check(settings, values)
        assert verify(settings).is_sound, n
        compact(settings, PortableFileSystem()).close()
        check(settings, values)
        assert verify(settings).is_sound, n


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_an_error_of_any_call_of_a_compaction(
    thinned: tuple[Path, dict[bytes, bytes | None]], fresh_folder: FreshFolder, code: int
) -> None:
    """The store goes on with it, and with whatever else there is."""
    source, values = thinned
    folders = copies(source, fresh_folder)
    opened, calls = calls_of_compaction(settings_in(next(folders)))
    for n in range(opened + 1, calls + 1):
        settings, fs = settings_in(next(folders)), FaultyFileSystem(PortableFileSystem())
        fs.fail_at(n, code)
        with compact(settings, fs) as store:
            fs.heal()
            disk_tier(store).health.retry_at = 0.0
            store.put(b"new", noise("new block", BLOCK_BYTES))
            store.flush()
            settle(store)
        check(settings, {**values, b"new": noise("new block", BLOCK_BYTES)})


@pytest.mark.parametrize("op", ["read_at", "open", "size"])
def test_an_error_of_reading_in_a_compaction(
    thinned: tuple[Path, dict[bytes, bytes | None]], fresh_folder: FreshFolder, op: str
) -> None:
    source, values = thinned
    folders = copies(source, fresh_folder)
    fs = FaultyFileSystem(PortableFileSystem())
    with reopen(settings_in(next(folders)), fs) as store:
        opened = fs.counts[op]
        settle(store)
    for n in range(opened + 1, fs.counts[op] + 1, 3):
        settings, failing = settings_in(next(folders)), FaultyFileSystem(PortableFileSystem())
        failing.fail_at(n, errno.EIO, op=op)
        with compact(settings, failing) as store:
            assert all(isinstance(store.get(k), Hit) == (v is not None) for k, v in values.items())
        check(settings, values)


@pytest.mark.parametrize("lost", LOST)
def test_loss_of_power_in_a_compaction(
    thinned: tuple[Path, dict[bytes, bytes | None]], fresh_folder: FreshFolder, index_before: Path, lost: str
) -> None:
    """Marks and removals may be kept where the commit before them is lost."""
    source, values = thinned
    folders = copies(source, fresh_folder)
    opened, calls = calls_of_compaction(settings_in(next(folders)))
    for seed in range(60):
        rng = random.Random(seed)
        folder = next(folders)
        index_before.unlink(missing_ok=True)
        settings, fs = settings_in(folder), FaultyFileSystem(PortableFileSystem(), power_loss=True)
        fs.crash_at(rng.randint(opened + 1, calls))
        with suppress(SimulatedCrash):
            compact(settings, fs).close()
        fs.lose_unsynced(seed, keep_probability=rng.choice([0, 0.5, 1]))
        new_boot(folder / "store")
        index = folder / "store" / "index"
        if lost == "all of it":
            shutil.rmtree(index)
        elif lost == "its last commit" and index_before.exists():
            shutil.copyfile(index_before, index / "data.mdb")
        fs = FaultyFileSystem(OsFileSystem(), power_loss=True)
        fs.crash_at(rng.randint(1, 12))
        with suppress(SimulatedCrash):
            reopen(settings, fs).close()
        fs.lose_unsynced(seed, keep_probability=0.5)
        new_boot(folder / "store")
        try:
            check(settings, values)
        except AssertionError as e:
            raise AssertionError(f"seed {seed}") from e


def test_death_in_an_encrypted_store(memory: Path, fresh_folder: FreshFolder) -> None:
    keys = single_key(bytes(range(32)))
    values = fill_and_thin_out(settings_in(memory / "thinned"), keys)
    folders = copies(memory / "thinned", fresh_folder)
    opened, calls = calls_of_compaction(settings_in(next(folders)), keys)
    for n in range(opened + 1, calls + 1, 3):
        settings, fs = settings_in(next(folders)), FaultyFileSystem(PortableFileSystem())
        fs.crash_at(n)
        with suppress(SimulatedCrash):
            compact(settings, fs, keys).close()
        fs.reap()
        check(settings, values, keys)
        compact(settings, PortableFileSystem(), keys).close()
        check(settings, values, keys)


# -- the rows of the table in docs/durability.md -------------------------------------------------------


class Compacting:
    """A store that has much to compact, on a file system on which it can die."""

    def __init__(self, folder: Path, values: dict[bytes, bytes | None]) -> None:
        self.folder, self.values = folder, values
        self.settings = settings_in(folder)
        self.fs = FaultyFileSystem(PortableFileSystem())
        self.store = reopen(self.settings, self.fs)

    def dies(self) -> None:
        with pytest.raises(SimulatedCrash):
            settle(self.store)
        die(self.store, self.fs)

    def dies_at_commit(self, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
        """At the first commit of the compaction, which is that of copies; or right after it."""
        write = LmdbIndex.write

        @contextmanager
        def last_one(index: LmdbIndex) -> Iterator[WriteTxn]:
            monkeypatch.undo()
            if after:
                with write(index) as txn:
                    yield txn
            self.fs.crash()
            raise SimulatedCrash

        monkeypatch.setattr(LmdbIndex, "write", last_one)
        self.dies()

    def index_back(self, before: Path) -> None:
        """The power takes the last commit, and nothing else."""
        die(self.store, self.fs)
        shutil.copyfile(before, self.folder / "store" / "index" / "data.mdb")

    def lose_index(self) -> None:
        shutil.rmtree(self.folder / "store" / "index")

    def check(self) -> list[Event]:
        """Everything is there, twice; what the first opening told."""
        events: list[Event] = []
        with Store.open(self.settings, background=False, listeners=[events.append]):
            pass
        check(self.settings, self.values)
        assert verify(self.settings).is_sound
        return events


@pytest.fixture
def compacting(thinned: tuple[Path, dict[bytes, bytes | None]]) -> Compacting:
    return Compacting(*thinned)


def test_gap_copies_not_committed(compacting: Compacting, monkeypatch: pytest.MonkeyPatch) -> None:
    compacting.dies_at_commit(monkeypatch, after=False)
    (recovered,) = [e for e in compacting.check() if isinstance(e, Recovered)]
    assert recovered.records > 3
    assert not recovered.rebuilt


@pytest.mark.parametrize("index_is_lost", [False, True])
def test_gap_copies_not_marked(compacting: Compacting, monkeypatch: pytest.MonkeyPatch, index_is_lost: bool) -> None:
    compacting.dies_at_commit(monkeypatch, after=True)
    if index_is_lost:
        compacting.lose_index()
    compacting.check()


def test_gap_copied_power(compacting: Compacting, index_before: Path) -> None:
    """The copies and the marks on what they are copies of are there, the commit between them is not."""
    worker = compacting.store._back._worker  # type: ignore[union-attr]
    while not compacting.store._signals.get("compaction_bytes_copied"):
        assert worker.step()
    compacting.index_back(index_before)
    (recovered,) = [e for e in compacting.check() if isinstance(e, Recovered)]
    assert recovered.records > 3


def test_gap_emptied_segment_not_removed(compacting: Compacting) -> None:
    compacting.fs.crash_at(1, op="unlink")
    compacting.dies()
    emptied = Path(compacting.fs.trace[-1].path)
    assert emptied.exists()
    compacting.check()
    assert not emptied.exists()


def test_gap_emptied_segment_removed_power(compacting: Compacting, index_before: Path) -> None:
    """Nothing is missed in a segment that was removed as empty, though the index still names it."""
    worker = compacting.store._back._worker  # type: ignore[union-attr]
    while not compacting.store._signals.get("compaction_segments"):
        assert worker.step()
    compacting.index_back(index_before)
    assert not any(isinstance(e, SegmentLost) for e in compacting.check())
