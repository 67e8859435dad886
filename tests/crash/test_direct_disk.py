"""A disk that fails, refuses or shortens direct writes in the middle of groups of long and short blocks."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtier import FlushError, Miss, Store, _platform
from kvtier.buffers import cut
from kvtier.check import verify
from kvtier.events import Event, TierResumed, TierSuspended, WriteFailed
from tests.clocks import HandClock
from tests.direct import LONG_MAX, length_of, why_not_direct
from tests.stores import MIB, config, names, noise, tier, value_of

fcntl = pytest.importorskip("fcntl")
pytestmark = pytest.mark.skipif(why_not_direct() is not None, reason=str(why_not_direct()))

Write = Callable[[int, list[memoryview], int], int]


class Disk:
    """Every direct write of this process asks ``then`` what becomes of it: an errno, or how many bytes at most."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.direct = 0
        self.then: Callable[[int], int | OSError] = lambda nbytes: nbytes
        self._write: Write = _platform.pwritev
        patch.setattr(_platform, "pwritev", self._asked)

    def fail(self, code: int) -> None:
        self.then = lambda nbytes: OSError(code, os.strerror(code))

    def heal(self) -> None:
        self.then = lambda nbytes: nbytes

    def _asked(self, fd: int, views: list[memoryview], offset: int) -> int:
        if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            return self._write(fd, views, offset)
        self.direct += 1
        answer = self.then(sum(view.nbytes for view in views))
        if isinstance(answer, OSError):
            raise answer
        return self._write(fd, cut(views, 0, answer), offset) if answer else 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


class Tried:
    """A store on such a disk, and what it should have."""

    def __init__(self, folder: Path) -> None:
        self.clock = HandClock()
        self.events: list[Event] = []
        self.values: dict[bytes, bytes] = {}
        self.lost: set[bytes] = set()
        self._folder = folder
        self._settings = config(folder, tier(bytes_max=64 * MIB, segment_bytes=4 * MIB), value_bytes_max=LONG_MAX)

    def open(self) -> Store:
        return Store.open(self._settings, clock=self.clock, background=False, listeners=[self.events.append])

    def put(self, store: Store, keys: list[bytes], version: int = 0) -> bool:
        """As one group; whether it became durable."""
        given = {key: noise((key, version), length_of((key, version))) for key in keys}
        for key, value in given.items():
            store.put(key, value)
        try:
            store.flush()
        except FlushError:
            self.lost |= given.keys()
            self.values = {key: value for key, value in self.values.items() if key not in given}
            return False
        self.values |= given
        self.lost -= given.keys()
        return True

    def check(self, store: Store) -> None:
        for key, value in self.values.items():
            assert value_of(store.get(key)) == value
        assert all(isinstance(store.get(key), Miss) for key in self.lost)

    def check_after(self) -> None:
        """Opened again, with its index and with a new one."""
        assert verify(self._settings).is_sound
        for _ in range(2):
            with self.open() as store:
                self.check(store)
            shutil.rmtree(self._folder / "store" / "index")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_suspends_the_tier_and_nothing_of_the_group_is_there(tmp_path: Path, disk: Disk, code: int) -> None:
    tried = Tried(tmp_path)
    with tried.open() as store:
        assert tried.put(store, names(8))
        disk.fail(code)
        assert not tried.put(store, [*names(3), *names(5, "new")], version=1)
        tried.check(store)
        direct = disk.direct
        assert not tried.put(store, names(2, "later"))
        assert disk.direct == direct, "it is suspended"
        assert [type(e) for e in tried.events] == [TierSuspended, WriteFailed]
        disk.heal()
        tried.clock.now += 3600
        assert tried.put(store, [*names(8), *names(2, "later")], version=2)
        assert [type(e) for e in tried.events] == [TierSuspended, WriteFailed, TierResumed]
        tried.check(store)
    tried.check_after()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_refusal_is_no_error(tmp_path: Path, disk: Disk, code: int) -> None:
    """Of a file system that has taken some direct writes."""
    tried = Tried(tmp_path)
    with tried.open() as store:
        assert tried.put(store, names(8))
        assert disk.direct
        disk.fail(code)
        assert tried.put(store, [*names(3), *names(8, "more")], version=1)
        tried.check(store)
    assert tried.events == []
    tried.check_after()


@pytest.mark.parametrize("unit", [4096, 512, None])
def test_short_writes_are_continued(tmp_path: Path, disk: Disk, unit: int | None) -> None:
    """Wherever in a page they end, and if they write nothing at all (None)."""
    rng, tried = random.Random(unit), Tried(tmp_path)
    disk.then = lambda nbytes: rng.choice([0, rng.randrange(0, nbytes, unit), nbytes]) if unit else 0
    with tried.open() as store:
        for version in range(4):
            assert tried.put(store, names(8), version)
            tried.check(store)
    assert tried.events == []
    assert disk.direct >= 4
    tried.check_after()
