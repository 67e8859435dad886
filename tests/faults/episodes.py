"""Troubles of a disk that come and go while a store is open. Each function runs in a process with a mount namespace of
its own, and raises if the store did anything but pass them over."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kvtier import FlushError, Miss, MissReason, Store
from kvtier.events import Event, SegmentLost, TierGrown, TierResumed, TierShrunk, TierSuspended, WriteFailed
from kvtier.segment import reader
from tests.clocks import HandClock
from tests.direct import counted, length_of
from tests.stores import KIB, MIB, config, noise, settle, tier, value_of

SIZE = 200 * KIB
_LONG_S = 3600.0


class Lines(logging.Handler):
    """The lines that a program with the usual settings would see."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Tried:
    """A store with one tier in a folder of its own, and what is known to be in it."""

    def __init__(
        self,
        folder: Path,
        tier_folder: Path,
        *,
        segment_bytes: int = MIB,
        bytes_max: int = 64 * MIB,
        free_bytes_min: int = 0,
        length_of: Callable[[bytes], int] = lambda key: SIZE,
    ) -> None:
        self.clock = HandClock()
        self.events: list[Event] = []
        self.values: dict[bytes, bytes] = {}
        self._count = 0
        self._settings = config(
            folder,
            tier(path=tier_folder, bytes_max=bytes_max, segment_bytes=segment_bytes, free_bytes_min=free_bytes_min),
            queue=16 * MIB,
            value_bytes_max=max(512 * KIB, segment_bytes // 2),
        )
        self._length_of = length_of
        self.lines = Lines()
        logging.getLogger("kvtier").addHandler(self.lines)

    @contextmanager
    def open(self) -> Iterator[Store]:
        with Store.open(self._settings, clock=self.clock, background=False, listeners=[self.events.append]) as store:
            yield store

    def put(self, store: Store) -> bool:
        """Put a new block and flush; whether it is durable now. No other error comes out; a lost block is a miss."""
        self._count += 1
        key = b"block %d" % self._count
        value = noise(key, self._length_of(key))
        store.put(key, value)
        try:
            store.flush()
        except FlushError:
            assert isinstance(store.get(key), Miss)
            return False
        self.values[key] = value
        return True

    def check(self, store: Store) -> None:
        """All that was acknowledged is there."""
        for key, value in self.values.items():
            assert value_of(store.get(key)) == value

    def check_out_of_reach(self, store: Store) -> None:
        """What is not in a file that is open is out of reach, and not taken for lost or damaged."""
        misses = [f for f in (*map(store.get, self.values), *store.get_many(list(self.values))) if isinstance(f, Miss)]
        assert misses
        assert {miss.reason for miss in misses} == {MissReason.UNAVAILABLE}

    def check_episode(self, store: Store) -> None:
        """While the trouble lasts it is told once, however often the tier is tried again; it ends by itself later."""
        for _ in range(5):
            assert not self.put(store)
            self.clock.now += _LONG_S
        assert [type(e) for e in self.events] == [TierSuspended, WriteFailed]
        assert len(self.lines.lines) == 1, self.lines.lines

    def check_end(self, store: Store) -> None:
        """The trouble is over: the store finds out by itself, and says so once."""
        self.clock.now += _LONG_S
        assert self.put(store)
        assert self.put(store)
        assert [type(e) for e in self.events] == [TierSuspended, WriteFailed, TierResumed]
        assert len(self.lines.lines) == 1, self.lines.lines
        self.check(store)

    def check_after(self) -> None:
        """Opened again, the store still has all of it."""
        with self.open() as store:
            self.check(store)
        assert not [e for e in self.events if isinstance(e, SegmentLost)]


def mount(folder: Path, *options: str) -> Path:
    folder.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", ",".join(["size=16m", *options]), "none", str(folder))
    return folder


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def fill_up(tried: Tried, store: Store) -> None:
    """Until nothing more is taken in: a commit that gives something up can find the index pages for another put."""
    lost = 0
    for _ in range(100):
        if tried.put(store):
            lost = 0
            tried.events.clear()
            tried.lines.lines.clear()
        else:
            lost += 1
            tried.clock.now += _LONG_S
        if lost == 3:
            return
    raise AssertionError("nothing was ever lost")


# -- the episodes -----------------------------------------------------------------------------------


def full_tier(folder: Path) -> None:
    small = mount(folder / "small", "size=4m")
    tried = Tried(folder, small / "tier")
    with tried.open() as store:
        fill_up(tried, store)
        tried.check(store)
        tried.clock.now += _LONG_S
        tried.check_episode(store)
        tried.check(store)
        run("mount", "-o", "remount,size=16m", str(small))
        tried.check_end(store)
    tried.check_after()


def full_tier_of_long_blocks(folder: Path) -> None:
    """On a file system that has direct writes, and that others have filled with one third."""
    image, disk = folder / "image", folder / "disk"
    image.write_bytes(bytes(48 * MIB))
    run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    disk.mkdir()
    mount_image(image, disk)
    fill_disk(disk / "others", 16 * MIB)
    tried = Tried(folder, disk / "tier", segment_bytes=4 * MIB, length_of=length_of)
    with tried.open() as store, counted() as found:
        fill_up(tried, store)
        tried.check(store)
        tried.clock.now += _LONG_S
        tried.check_episode(store)
        tried.check(store)
        (disk / "others").unlink()
        tried.check_end(store)
    assert found["direct_writes"] > 5
    tried.check_after()


def full_index(folder: Path) -> None:
    """The index's disk is filled by somebody else."""
    small = mount(folder / "small", "size=4m")
    large = mount(folder / "large")
    tried = Tried(small, large / "tier")
    with tried.open() as store:
        for _ in range(5):
            assert tried.put(store)
        fill_disk(small / "filling")
        fill_up(tried, store)
        tried.check(store)
        tried.clock.now += _LONG_S
        tried.check_episode(store)
        (small / "filling").unlink()
        tried.check_end(store)
    tried.check_after()


def fill_disk(file: Path, bytes_max: int = 1 << 40) -> None:
    with file.open("wb", buffering=0) as f:
        try:
            while f.tell() < bytes_max:
                f.write(bytes(4096))
        except OSError:
            pass


def squeezed_tier(folder: Path) -> None:
    """Another program fills the tier's disk, and clears it again."""
    disk, floor = mount(folder / "disk"), 2 * MIB
    tried = Tried(folder, disk / "tier", bytes_max=12 * MIB, free_bytes_min=floor)
    with tried.open() as store:
        for _ in range(50):
            assert tried.put(store)
        assert tried.events == []
        with (disk / "other").open("wb", buffering=0) as other:
            for _ in range(10):
                other.write(bytes(MIB))
                shrink(store)
                assert free(disk) >= floor
                assert tried.put(store)
                assert free(disk) >= floor
        stats = store.stats().tiers[0]
        assert stats.bytes_used <= stats.bytes_max_effective < stats.bytes_max
        assert abs(free(disk) - (stats.free_bytes or 0)) < MIB
        assert store.stats().blocks > 5
        (disk / "other").unlink()
        assert tried.put(store)
        assert store.stats().tiers[0].bytes_max_effective < stats.bytes_max
        tried.clock.now += _LONG_S
        assert tried.put(store)
        assert store.stats().tiers[0].bytes_max_effective == stats.bytes_max
        assert [type(e) for e in tried.events] == [TierShrunk, TierGrown]
        assert len(tried.lines.lines) == 1, tried.lines.lines
        tried.values = {key: value for key, value in tried.values.items() if store.contains(key)}
        for _ in range(40):
            assert tried.put(store)
        assert store.stats().blocks > 40
        assert store.stats().queue.failed == 0


def shrink(store: Store) -> None:
    """Do what is done in the background once a second."""
    while store._headroom.look():
        settle(store)
    settle(store)
    while store._headroom.look():
        settle(store)


def free(disk: Path) -> int:
    return shutil.disk_usage(disk).free


def read_only(folder: Path) -> None:
    """A remount is refused while a file is open for writing: the index is made anew, which seals every segment."""
    disk = mount(folder / "disk")
    tried = Tried(folder, disk / "tier")
    with tried.open() as store:
        for _ in range(3):
            assert tried.put(store)
    run("rm", "-r", str(folder / "store" / "index"))
    with tried.open() as store:
        tried.events.clear()
        run("mount", "-o", "remount,ro", str(disk))
        tried.check_episode(store)
        tried.check(store)
        run("mount", "-o", "remount,rw", str(disk))
        tried.check_end(store)
    tried.check_after()


def read_only_index(folder: Path) -> None:
    """The index's disk has an error, upon which Linux makes it read-only until it is mounted anew. (A remount by hand
    is refused as long as the index is open.)"""
    image = folder / "image"
    image.write_bytes(bytes(16 * MIB))
    run("mkfs.ext4", "-q", "-F", str(image))
    tried = Tried(folder, folder / "tier")
    with tried.open() as store:
        assert tried.put(store)
    index = folder / "store" / "index"
    mount_image(image, index)
    with tried.open() as store:  # the index is made anew there
        assert tried.put(store)
        tried.events.clear()
        number = os.stat(index).st_dev
        device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
        (Path("/sys/fs/ext4") / device.name / "trigger_fs_error").write_text("a test")
        tried.check_episode(store)
        tried.check(store)
    run("umount", str(index))
    mount_image(image, index)
    tried.check_after()


def mount_image(image: Path, folder: Path) -> None:
    run("mount", "-o", "loop,errors=remount-ro", str(image), str(folder))
    folder.chmod(0o700)


def _gone(folder: Path, home: Path, leave: Callable[[], None], come_back: Callable[[], None]) -> None:
    tried = Tried(folder, home)
    with tried.open() as store:
        for _ in range(6):
            assert tried.put(store)
    reader._OPEN_FILES_MAX = 0  # so that hardly anything is read through descriptors from before
    with tried.open() as store:
        leave()
        tried.check_out_of_reach(store)
        fill_up(tried, store)  # the rest of a segment that is open for writing, wherever that is now
        tried.clock.now += _LONG_S
        tried.check_episode(store)
        come_back()
        tried.check_end(store)
    tried.check_after()


def renamed_away(folder: Path) -> None:
    home, away = folder / "tier", folder / "elsewhere"
    _gone(folder, home, lambda: os.rename(home, away), lambda: os.rename(away, home))


def unmounted(folder: Path) -> None:
    """Its empty mount point stays, which must not be taken for the tier."""
    disk, spare = mount(folder / "disk", "mode=0700"), folder / "spare"
    spare.mkdir()
    run("mount", "--bind", str(disk), str(spare))
    _gone(
        folder,
        disk,
        lambda: run("umount", "--lazy", str(disk)),
        lambda: run("mount", "--bind", str(spare), str(disk)),
    )
