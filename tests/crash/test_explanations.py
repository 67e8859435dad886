"""After a crash, what the store says of a block agrees with whether it is there."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kvtier import BlockState, Store
from kvtier.fs import OsFileSystem
from kvtier.index.lmdb_index import LmdbIndex, WriteTxn
from kvtier.testing import FaultyFileSystem, SimulatedCrash
from tests.crash.oracle import die, reopen
from tests.crash.scale import SHORT
from tests.crash.workload import Workload
from tests.stores import config, disk_tier, fill

FreshFolder = Callable[[], Path]
EVERY = 2


class WatchedWorkload(Workload):
    """Keeps account of the blocks that were in the index at some flush."""

    def __init__(self, folder: Path) -> None:
        self.faulty = FaultyFileSystem(OsFileSystem(), power_loss=True)
        super().__init__(SHORT["blocks are evicted"], folder, self.faulty)
        self.was_stored: set[bytes] = set()

    def flush(self) -> None:
        super().flush()
        assert self.store is not None
        self.was_stored |= {key for key in self.oracle.may_be if self.store.contains(key)}

    def run_until(self, call: int) -> None:
        """Run, and die in this call (0: at the end)."""
        self.faulty.crash_at(call)
        with suppress(SimulatedCrash):
            self.run()
        die(self.store, self.faulty)


def check(store: Store, workload: WatchedWorkload) -> Counter[BlockState]:
    """Whatever was stored once is there or explained; returns the states."""
    found: Counter[BlockState] = Counter()
    for key in workload.was_stored:
        state = store.explain(key).state
        assert store.contains(key) == (state is BlockState.STORED), (key, state)
        found[state] += 1
    return found


def test_death_in_any_call(fresh_folder: FreshFolder) -> None:
    whole = WatchedWorkload(fresh_folder())
    whole.run_until(0)
    seen: Counter[BlockState] = Counter()
    for call in range(1, len(whole.faulty.trace) + 1, EVERY):
        workload = WatchedWorkload(fresh_folder())
        workload.run_until(call)
        with reopen(workload.settings) as store:
            seen += check(store, workload)
    assert set(seen) == {BlockState.STORED, BlockState.EVICTED, BlockState.DELETED}


def test_power_loss_and_the_last_commit_with_it(fresh_folder: FreshFolder, index_before: Path) -> None:
    """The departures of that commit are gone with it, as the blocks are back (or found damaged, or lost)."""
    whole = WatchedWorkload(fresh_folder())
    whole.run_until(0)
    seen: Counter[BlockState] = Counter()
    for seed in range(30):
        workload = WatchedWorkload(fresh_folder())
        workload.run_until(random.Random(seed).randint(1, len(whole.faulty.trace)))
        workload.faulty.lose_unsynced(seed, keep_probability=0.5)
        shutil.copyfile(index_before, Path(str(workload.settings.store.path)) / "index" / "data.mdb")
        with reopen(workload.settings) as store:
            found = check(store, workload)
            assert store._back is not None
            assert BlockState.UNKNOWN not in found or store._back.parts.report.rebuilt
            seen += found
    assert seen[BlockState.EVICTED] > 0
    assert seen[BlockState.DELETED] > 0


@pytest.mark.parametrize(
    ("moment", "state"), [("before", BlockState.STORED), ("after", BlockState.EVICTED)], ids=["before", "after"]
)
def test_death_beside_the_commit_of_an_eviction(
    memory: Path, monkeypatch: pytest.MonkeyPatch, moment: str, state: BlockState
) -> None:
    """All that the commit says is there, or nothing of it."""
    fs, write = FaultyFileSystem(OsFileSystem()), LmdbIndex.write

    @contextmanager
    def last_one(index: LmdbIndex) -> Iterator[WriteTxn]:
        with write(index) as txn:
            yield txn
            if moment == "before":
                raise SimulatedCrash
        raise SimulatedCrash

    store = reopen(config(memory), fs)
    fill(store, [b"k", b"other"], 100)
    assert store._back is not None
    victims = [store._identity.block_id(b"", b"k")]
    monkeypatch.setattr(LmdbIndex, "write", last_one)
    with pytest.raises(SimulatedCrash):
        store._back.ladder._evict(disk_tier(store), victims)
    die(store, fs)
    monkeypatch.undo()
    with reopen(config(memory)) as store:
        assert store.explain(b"k").state is state
        assert store.contains(b"k") == (state is BlockState.STORED)
        assert store.explain(b"other").state is BlockState.STORED
