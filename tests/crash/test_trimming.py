"""The index is copied without its free pages when a store is closed: what a death, an error or a reader meets then.

Rows of the table in ``docs/durability.md``, as in ``test_gaps.py``.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtier import BlockState, Config, Store
from kvtier.events import Event, Recovered
from kvtier.fs import OsFileSystem
from kvtier.index.data_file import DATA_FILE
from kvtier.index.following import FollowingIndex
from kvtier.index.lmdb_index import LmdbIndex
from kvtier.testing import Call, FaultyFileSystem, SimulatedCrash
from kvtier.trimming import is_worthwhile
from tests.crash.oracle import die, reopen
from tests.stores import KIB, MIB, config, names, noise, value_of

KEYS = names(1200)
SIZE = 64


class Bulky:
    """A store whose index has about as many free pages as others: each commit writes nearly all of them anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "store"
        self.settings: Config = config(folder)
        self.fs = FaultyFileSystem(OsFileSystem(), power_loss=True)
        self.store = reopen(self.settings, self.fs)
        for n in range(4):
            for key in KEYS[n::4]:
                self.store.put(key, noise(key, SIZE))
            self.store.flush()
        self.store.put(b"left", b"x")
        self.store.flush()
        self.store.delete(b"left")
        self.store.flush()
        self.bytes_before = self.index_bytes()

    def index_bytes(self) -> int:
        return (self.folder / "index" / DATA_FILE).stat().st_size

    def is_trimmed(self) -> bool:
        return self.index_bytes() < 0.7 * self.bytes_before

    def check(self) -> None:
        """All is there, known by the index as it was left; and nothing is left over."""
        events: list[Event] = []
        with Store.open(self.settings, background=False, listeners=[events.append]) as store:
            assert not any(isinstance(e, Recovered) and e.rebuilt for e in events)
            for key in KEYS:
                assert value_of(store.get(key)) == noise(key, SIZE)
            assert store.explain(b"left").state is BlockState.DELETED
            assert [n.blocks for n in store.stats().namespaces] == [len(KEYS)]
            assert sorted(self.folder.glob("index*")) == [self.folder / "index"]


@pytest.fixture
def bulky(memory: Path) -> Bulky:
    return Bulky(memory)


def test_what_is_closed_has_no_free_pages_and_all_that_it_had(bulky: Bulky) -> None:
    bulky.store.close()
    assert bulky.is_trimmed()
    assert (bulky.folder / "index" / DATA_FILE).stat().st_mode & 0o077 == 0
    assert sorted(bulky.folder.glob("index*")) == [bulky.folder / "index"]
    bulky.check()


def test_an_index_without_many_free_pages_is_left_alone(bulky: Bulky) -> None:
    bulky.store.close()
    before = os.stat(bulky.folder / "index" / DATA_FILE).st_ino
    with Store.open(bulky.settings):
        pass
    assert os.stat(bulky.folder / "index" / DATA_FILE).st_ino == before


@pytest.mark.parametrize(
    ("total", "free", "expected"),
    [
        (MIB, 128 * KIB, True),
        (MIB, 128 * KIB - 1, False),
        (32 * MIB, 2 * MIB, True),
        (32 * MIB, 2 * MIB - 1, False),
        (64 * MIB + 4 * MIB, 4 * MIB + 256 * KIB, True),
        (1024 * MIB, 512 * MIB, False),  # as much again would be written
        (1024 * MIB, 513 * MIB, True),
        (0, 0, False),
    ],
)
def test_a_copy_is_worth_what_it_costs(total: int, free: int, expected: bool) -> None:
    assert is_worthwhile(total, free) == expected


# -- deaths ------------------------------------------------------------------------------------------


def before(op: str, n: int) -> Callable[[Bulky], bool]:
    """Closing dies at the ``n``-th such call that has to do with the index's folders; whether it came to that."""

    def closing(bulky: Bulky) -> bool:
        calls = 0

        def watch(call: Call) -> None:
            nonlocal calls
            calls += call.op == op and os.path.basename(call.path).startswith(("index", "store"))
            if calls == n:
                bulky.fs.crash()

        bulky.fs.on_call = watch
        try:
            bulky.store.close()
        except SimulatedCrash:
            bulky.fs.on_call = None
            die(bulky.store, bulky.fs)
            return True
        return False

    return closing


@pytest.mark.parametrize("is_power", [False, True], ids=["killed", "power"])
@pytest.mark.parametrize(
    ("op", "n", "has_trimmed"),
    [
        ("make_dir", 1, False),  # before the copy
        ("sync_dir", 1, False),  # the copy's names are not durable
        ("rename", 1, False),  # the copy is complete
        ("rename", 2, False),  # no index is where it belongs
        ("sync_dir", 2, True),  # the copy is in its place; with a loss of power, by chance
    ],
)
def test_gap_index_not_trimmed(bulky: Bulky, op: str, n: int, has_trimmed: bool, is_power: bool) -> None:
    assert before(op, n)(bulky)
    if is_power:
        bulky.fs.lose_unsynced(seed=n, keep_probability=0.5)
    else:
        assert (bulky.folder / "index").exists() == ((op, n) != ("rename", 2))
        assert has_trimmed == ((bulky.folder / "index").exists() and bulky.is_trimmed())
    bulky.check()


def test_gap_index_folder_left(bulky: Bulky, monkeypatch: pytest.MonkeyPatch) -> None:
    """A death after the copy has taken its place, before the old index is removed."""

    def dies(*_: object, **__: object) -> None:
        raise SimulatedCrash

    with monkeypatch.context() as patch:
        patch.setattr("kvtier.trimming.shutil.rmtree", dies)
        with pytest.raises(SimulatedCrash):
            bulky.store.close()
    die(bulky.store, bulky.fs)
    assert bulky.is_trimmed()
    assert (bulky.folder / "index.old").exists()
    bulky.check()


def test_gap_index_settling(bulky: Bulky) -> None:
    """A death between the renames, and another in the opening that gives the index its name back."""
    assert before("rename", 2)(bulky)
    for op in ("rename", "sync_dir"):
        fs = FaultyFileSystem(OsFileSystem())
        fs.crash_at(1, op=op)
        with pytest.raises(SimulatedCrash):
            Store.open(bulky.settings, fs=fs)
        die(None, fs)
    bulky.check()


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "n"), [("make_dir", 1), ("sync_dir", 1), ("rename", 1), ("rename", 2), ("sync_dir", 2)])
def test_an_error_leaves_the_index_as_it_was(bulky: Bulky, op: str, n: int) -> None:
    bulky.fs.fail_at(bulky.fs.counts[op] + n, errno.EIO, op=op)
    bulky.store.close()
    assert (bulky.folder / "index" / DATA_FILE).exists()
    assert bulky.is_trimmed() == ((op, n) == ("sync_dir", 2))
    bulky.check()


def test_a_disk_that_is_full_leaves_the_index_as_it_was(bulky: Bulky, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(LmdbIndex, "copy_to", fails)
        bulky.store.close()
    assert not bulky.is_trimmed()
    assert sorted(bulky.folder.glob("index*")) == [bulky.folder / "index"]
    bulky.check()


# -- readers -----------------------------------------------------------------------------------------


def swapped_in(folder: Path, name: str) -> None:
    os.rename(folder / "index", folder / "away")
    os.rename(folder / name, folder / "index")
    shutil.rmtree(folder / "away")


def made(folder: Path, numbers: int) -> None:
    index = LmdbIndex(str(folder), map_bytes=MIB, read_only=False)
    with index.write() as txn:
        txn.set_counter("numbers", numbers)
        txn.set_complete()
    index.close()


def test_a_reader_follows_to_the_copy(tmp_path: Path) -> None:
    for name, numbers in (("index", 1), ("new", 2)):
        made(tmp_path / name, numbers)
    reader = FollowingIndex(str(tmp_path / "index"), map_bytes=MIB, lock=True)
    with reader.read() as view:
        assert view.counter("numbers") == 1
        swapped_in(tmp_path, "new")
        assert view.counter("numbers") == 1  # of one moment
    with reader.read() as view:
        assert view.counter("numbers") == 2
    reader.close()


def test_a_reader_takes_lock_and_file_of_one_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A swap while it opens them: with the lock of one and the file of the other, a writer would not see it."""
    for name, numbers in (("index", 1), ("new", 2)):
        made(tmp_path / name, numbers)
    plain_open, opened = LmdbIndex._open, []

    def slow(index: LmdbIndex, lock: bool) -> None:
        plain_open(index, lock)
        opened.append(os.stat(tmp_path / "index" / DATA_FILE).st_ino)
        if len(opened) == 1:
            swapped_in(tmp_path, "new")

    monkeypatch.setattr(LmdbIndex, "_open", slow)
    reader = FollowingIndex(str(tmp_path / "index"), map_bytes=MIB, lock=True)
    assert len(set(opened)) == 2
    with reader.read() as view:
        assert view.counter("numbers") == 2
    reader.close()
