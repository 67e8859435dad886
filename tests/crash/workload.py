"""The canonical workload: every kind of change that a store makes to its disk, in some 200 calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kvtier import FlushError, Hit, KvtierError, Store
from kvtier.fs import FileSystem
from tests.crash.oracle import Oracle, tell_of_losses
from tests.crash.scale import Scale
from tests.stores import names, settle, value_of

CHAIN_A, CHAIN_B, SMALL = names(8, "a"), names(24, "b"), names(6, "s")


class QuickClock:
    """Time flies: a tier that was suspended after an error is tried again at once."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 1000
        return self.now

    def time(self) -> float:
        return self.now


class DiskStayedBad(Exception):
    """The store could not be opened again; the workload ends here."""


class Workload:
    """Runs on a file system that may fail or die under it; the oracle is told what was acknowledged."""

    def __init__(self, scale: Scale, folder: Path, fs: FileSystem, **policies: object) -> None:
        """``policies``: of both tiers."""
        self.settings = scale.settings(folder, **policies)
        self.block = scale.block
        self.fs = fs
        self.oracle = Oracle()
        self.store: Store | None = None
        self.counters: Counter[str] = Counter()
        self._names: dict[int, bytes] = {}

    def run(self) -> None:
        try:
            self.open()
            self.chain_with_duplicates()
            self.overwrite_and_delete()
            self.fill_until_blocks_move_down()
            self.read_what_moved_down()
            self.close()
            self.open()
            self.small_blocks()
            self.delete_a_chain()
            self.close()
        except DiskStayedBad:
            self.oracle.failed()

    # -- steps --------------------------------------------------------------------------------------

    def chain_with_duplicates(self) -> None:
        self.put_chain(CHAIN_A)
        self.put(b"copy0", self.block(CHAIN_A[0]))
        self.put(b"copy3", self.block(CHAIN_A[3]))
        self.flush()

    def overwrite_and_delete(self) -> None:
        """Also what shares its content with what comes or goes in the same group."""
        self.put(CHAIN_A[0], self.block("a0 again"))
        self.put(CHAIN_A[1], self.block("a1 again"))
        self.put(b"heir", self.block(CHAIN_A[1]))
        self.delete(CHAIN_A[7])
        self.put(b"heir too", self.block(CHAIN_A[7]))
        self.flush()
        self.put(CHAIN_A[1], self.block("a1 again"), meta=b"other meta")
        self.delete(b"copy3")
        self.flush()

    def fill_until_blocks_move_down(self) -> None:
        for at in range(0, len(CHAIN_B), 8):
            self.put_chain(CHAIN_B[at : at + 8])
            self.flush()

    def read_what_moved_down(self) -> None:
        assert self.store is not None
        for key in (*CHAIN_A[:3], b"heir", CHAIN_B[3]):
            self.store.get(key)
        settle(self.store)

    def small_blocks(self) -> None:
        for key in SMALL:
            self.put(key, self.block(key)[:100])
        self.put(SMALL[0], b"")
        self.flush()

    def delete_a_chain(self) -> None:
        for key in CHAIN_B[:8]:
            self.delete(key)
        self.flush()

    # -- calls --------------------------------------------------------------------------------------

    def open(self) -> None:
        """If the disk fails, once more."""
        try:
            self._open()
        except (OSError, KvtierError):
            try:
                self._open()
            except (OSError, KvtierError) as e:
                raise DiskStayedBad from e

    def _open(self) -> None:
        self.store = Store.open(self.settings, fs=self.fs, clock=QuickClock(), background=False)
        tell_of_losses(self.store, lambda block_id: self.oracle.dropped([self._names[block_id]]))

    def close(self) -> None:
        """If the disk fails, the store is closed nevertheless."""
        assert self.store is not None
        counts = self.store._signals.counts()
        try:
            self.store.close()
        except OSError:
            self.counters["failed closes"] += 1
        self.counters.update(counts)
        self.store = None

    def put_chain(self, keys: Sequence[bytes]) -> None:
        for parent, key in zip([None, *keys], keys, strict=False):
            self.put(key, self.block(key), parent=parent)

    def put(self, key: bytes, data: bytes, *, meta: bytes = b"", parent: bytes | None = None) -> None:
        assert self.store is not None
        self._names[self.store._identity.block_id(b"", key)] = key
        self.oracle.set(key, data)
        self.store.put(key, data, meta=meta, parent=parent)

    def delete(self, key: bytes) -> None:
        assert self.store is not None
        if self.store.delete(key):
            self.oracle.set(key, None)

    def flush(self) -> None:
        assert self.store is not None
        try:
            self.store.flush()
        except FlushError:
            for key, value in self.oracle.waiting.items():  # the older value must not stand in for the lost one
                hit = self.store.get(key)
                assert not isinstance(hit, Hit) or value_of(hit) == value
            self.oracle.failed()
        else:
            self.oracle.flushed()
