"""What a simulated life needs of its world: time, jobs, identities, and what others leave of disk and memory. All of it
follows from a seed and from nothing else."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from kvtier import Store
from kvtier.fs import FileSystem
from kvtier.identity import SECRET_BYTES, Identity
from kvtier.memory import Memory
from kvtier.testing import Call
from tests.stores import MIB, occupied

T = TypeVar("T")


class SimulatedClock:
    """Stands still until it is moved; the wall clock may jump either way."""

    def __init__(self) -> None:
        self._elapsed = 0.0
        self._wall = 1_800_000_000.0

    def monotonic(self) -> float:
        return self._elapsed

    def time(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        self._elapsed += seconds
        self._wall += seconds

    def jump(self, seconds: float) -> None:
        self._wall += seconds


class SharedDisk:
    """A disk that is used by others too, and holds the tiers of a store; ``below_floor``: how often something of theirs
    became durable that has taken from the floor."""

    BYTES, FLOOR = 4 * MIB, MIB

    def __init__(self, *tiers: Path) -> None:
        self._tiers = tiers
        self.others = 0
        self.below_floor = 0

    @property
    def free(self) -> int:
        return max(0, self.BYTES - self.others - sum(map(occupied, self._tiers)))

    def holds(self, fs: FileSystem) -> FileSystem:
        """The file system, from now on on this disk."""
        setattr(fs, "disk_free", lambda path: self.free)  # noqa: B010
        return fs

    def watch(self, call: Call) -> None:
        """To be told of each call to a store: what has been appended is there once it is synced."""
        if call.op == "sync_data" and call.path.endswith(".seg") and self.free < self.FLOOR:
            self.below_floor += 1


class SharedMemory:
    """A machine of 1 GiB; others leave so much above the floor that RAM has by default."""

    BYTES = 1024 * MIB

    def __init__(self) -> None:
        self.left = 16 * MIB

    def __call__(self) -> Memory:
        return Memory(self.BYTES, self.BYTES // 20 + self.left)


class OneThread(ThreadPoolExecutor):
    """An executor that can be waited for: with one thread, and waited for after every step, all orders are fixed."""

    def __init__(self) -> None:
        super().__init__(1)
        self._count = 0
        self._changed = threading.Condition()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        with self._changed:
            self._count += 1
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: Future[Any]) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait(self) -> None:
        """Until no job is left, nor one that a job has submitted."""
        with self._changed:
            self._changed.wait_for(lambda: not self._count)


def with_one_reader(store: Store) -> OneThread:
    """The store's reading threads become one that can be waited for."""
    assert store._back is not None
    prefetcher = store._back._prefetcher
    prefetcher._pool.shutdown()
    prefetcher._pool = pool = OneThread()
    return pool


@contextmanager
def identities_from(rng: random.Random) -> Iterator[None]:
    """Inside, the ids and secrets of new stores come from ``rng``: block ids, and with them all orders, do too."""
    new = Identity.__dict__["new"]

    def seeded(cls: type[Identity], engine: str) -> Identity:
        return cls(rng.randbytes(16), rng.randbytes(SECRET_BYTES), engine)

    setattr(Identity, "new", classmethod(seeded))  # noqa: B010
    try:
        yield
    finally:
        setattr(Identity, "new", new)  # noqa: B010
