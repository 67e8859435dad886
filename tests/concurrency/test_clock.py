"""Clocks that jump: neither recency nor the end of a suspension follows them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kvtier import BlockState, FlushError, Store
from kvtier.fs import OsFileSystem
from tests.clocks import HandClock
from tests.stores import KIB, config, disk_tier, fill, names, noise, tier

YEAR = 365 * 86_400.0


class FullDisk(OsFileSystem):
    """Takes no more bytes while ``is_full``."""

    is_full = False
    tries = 0

    def write_at(self, fd: int, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        self.tries += self.is_full
        if self.is_full:
            raise OSError(errno.ENOSPC, "full")
        return super().write_at(fd, buffers, offset)


def lose(store: Store, key: bytes) -> None:
    store.put(key, noise(key, KIB))
    with pytest.raises(FlushError):
        store.flush()


@pytest.mark.parametrize("jump", [-4 * YEAR, -30.0, 4 * YEAR])
def test_a_suspension_does_not_outlast_a_jump_of_the_clock(tmp_path: Path, jump: float) -> None:
    fs, clock = FullDisk(), HandClock()
    with Store.open(config(tmp_path), fs=fs, clock=clock, background=False) as store:
        fs.is_full = True
        lose(store, b"a")
        tries = fs.tries
        lose(store, b"b")
        assert fs.tries == tries  # suspended: it was not even tried
        fs.is_full = False
        clock.now += jump
        fill(store, [b"c"], KIB)
        assert store.contains(b"c")
        assert not disk_tier(store).is_suspended()


def test_a_suspension_lasts_while_the_clock_stands(tmp_path: Path) -> None:
    fs, clock = FullDisk(), HandClock()
    with Store.open(config(tmp_path), fs=fs, clock=clock, background=False) as store:
        fs.is_full = True
        for n in range(8):  # each time it waits longer, up to a minute
            lose(store, b"k%d" % n)
            assert disk_tier(store).is_suspended()
            clock.now += 59.9 if n == 7 else 60.0
        assert disk_tier(store).is_suspended()
        clock.now += 0.2
        assert not disk_tier(store).is_suspended()
        fs.is_full = False


def survivors(folder: Path, jump: Callable[[HandClock, int], None]) -> list[bytes]:
    """What is left of 40 blocks in room for fewer, half of them used again later, over three openings."""
    settings = config(folder, tier(bytes_max=1024 * KIB, segment_bytes=128 * KIB), value_bytes_max=64 * KIB)
    clock, keys = HandClock(), names(40)
    for opening in range(3):
        with Store.open(settings, clock=clock, background=False) as store:
            for n, key in enumerate(keys[opening * 13 : opening * 13 + 14]):
                jump(clock, n)
                fill(store, [key], 40 * KIB)
                store.get(keys[n % 7])
                jump(clock, -n)
    with Store.open(settings, clock=clock, background=False) as store:
        return [key for key in keys if store.contains(key)]


def test_recency_follows_no_clock(tmp_path: Path) -> None:
    def steady(clock: HandClock, _: int) -> None:
        clock.now += 1
        clock.wall += 1

    def backwards(clock: HandClock, _: int) -> None:
        clock.now -= YEAR / 100
        clock.wall -= YEAR

    def about(clock: HandClock, n: int) -> None:
        clock.now = abs(n) * 1e6
        clock.wall = n * 7 * YEAR

    expected = survivors(tmp_path / "steady", steady)
    assert names(40)[:7] == expected[:7]  # what is used stays, however old
    assert 7 < len(expected) < 40
    assert survivors(tmp_path / "backwards", backwards) == expected
    assert survivors(tmp_path / "about", about) == expected


@pytest.mark.parametrize(("wall", "said"), [(-3 * YEAR, 0), (200 * YEAR, 2**32 - 1), (12.7, 12)])
def test_a_date_that_cannot_be_is_said_as_the_nearest_that_can(tmp_path: Path, wall: float, said: int) -> None:
    clock = HandClock(wall=wall)
    for _ in range(2):  # and again, from the index
        with Store.open(config(tmp_path), clock=clock, background=False) as store:
            if store.explain(b"k").state is BlockState.UNKNOWN:
                fill(store, [b"k"], KIB)
                store.delete(b"k")
                store.flush()
            assert store.explain(b"k").state is BlockState.DELETED
            assert store.explain(b"k").when == said


def test_the_latest_departure_counts_not_the_one_with_the_latest_date(tmp_path: Path) -> None:
    clock = HandClock()
    with Store.open(config(tmp_path), clock=clock, background=False) as store:
        for wall in (90 * YEAR, 3 * YEAR):
            clock.wall = wall
            fill(store, [b"k"], KIB)
            store.delete(b"k")
            store.flush()
        assert store.explain(b"k").when == 3 * YEAR
