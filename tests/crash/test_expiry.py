"""When blocks expire, after crashes: to the second while the index knows it, to the day if only records do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvtier import Store
from kvtier.fs import PortableFileSystem
from kvtier.index.lmdb_index import LmdbIndex, WriteTxn
from kvtier.index.schema import FORM
from kvtier.recovery import Recovery
from kvtier.testing import FaultyFileSystem, SimulatedCrash
from tests.clocks import HandClock
from tests.crash.oracle import die, reopen
from tests.store.test_expiry import DAY_S
from tests.stores import KIB, config, noise, settle, tier, value_of

HOUR = 3600
NOON = 1_000_000_000.0 // DAY_S * DAY_S + DAY_S / 2


class Mortal:
    """A store with blocks that live for an hour from noon on; it dies when told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = HandClock(NOON)
        self.fs = FaultyFileSystem(PortableFileSystem(), power_loss=True)
        sparse = tier("top", segment_bytes=64 * KIB, compaction="copy", compaction_dead_ratio=0.25)
        self.settings = config(folder, sparse, tier("low"), value_bytes_max=32 * KIB)
        self.store = reopen(self.settings, self.fs, clock=self.clock)

    def fill(self) -> None:
        """A segment of which most is dead, and a new one."""
        self.store.pause_compaction()
        for i in range(8):
            self.store.put(b"dead%d" % i, noise(i, 7000))
        self.store.put(b"k", b"value", ttl=HOUR)
        self.store.flush()
        for i in range(8):
            self.store.delete(b"dead%d" % i)
        self.store.put(b"other", noise("other", 20 * KIB))
        self.store.flush()

    def move(self) -> None:
        assert self.store._back is not None
        ladder = self.store._back.ladder
        ladder._move([self.store._wanted(b"k", b"").block_id], ladder.tiers[0], ladder.tiers[1])

    def compact(self) -> None:
        self.store.resume_compaction()
        settle(self.store)

    def dies_in(self, action: Callable[[], object]) -> None:
        with pytest.raises(SimulatedCrash):
            action()
        die(self.store, self.fs)

    def again(self) -> Store:
        return reopen(self.settings, clock=self.clock)

    def lives_for(self) -> float:
        """How long the block is still there, in seconds."""
        with self.again() as store:
            assert value_of(store.get(b"k")) == b"value"
            assert store._back is not None
            with store._back.parts.index.read() as view:
                entry = view.block(store._wanted(b"k", b"").block_id)
            assert entry is not None
            return entry.expires_at - store._front.time.now()


@pytest.fixture
def mortal(memory: Path) -> Mortal:
    return Mortal(memory)


@pytest.fixture
def dies_before_commit(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mortal], None]:
    def arm(mortal: Mortal) -> None:
        @contextmanager
        def never(index: LmdbIndex) -> Iterator[WriteTxn]:
            monkeypatch.undo()
            mortal.fs.crash()
            raise SimulatedCrash
            yield

        monkeypatch.setattr(LmdbIndex, "write", never)

    return arm


@pytest.mark.parametrize("how", ["move", "compact"])
def test_a_copy_that_no_commit_covers_expires_when_its_block_does(
    mortal: Mortal, dies_before_commit: Callable[[Mortal], None], how: str
) -> None:
    """The index knows to the second what the record of the copy knows to the day."""
    mortal.fill()
    dies_before_commit(mortal)
    mortal.dies_in(getattr(mortal, how))
    assert mortal.lives_for() == HOUR
    mortal.clock.advance(HOUR)
    with mortal.again() as store:
        assert not store.get(b"k")


def test_a_renewal_survives_a_kill_while_its_block_is_copied(
    mortal: Mortal, dies_before_commit: Callable[[Mortal], None]
) -> None:
    mortal.fill()
    mortal.store.put(b"k", b"value", ttl=2 * HOUR)
    mortal.store.flush()
    dies_before_commit(mortal)
    mortal.dies_in(mortal.compact)
    assert mortal.lives_for() == 2 * HOUR


def test_what_no_commit_covers_expires_by_the_end_of_its_day(
    mortal: Mortal, dies_before_commit: Callable[[Mortal], None]
) -> None:
    mortal.store.put(b"k", b"value", ttl=HOUR)
    dies_before_commit(mortal)
    mortal.dies_in(mortal.store.flush)
    assert mortal.lives_for() == DAY_S / 2


@pytest.mark.parametrize("wall", [-1e8, 1e8])
def test_the_time_survives_a_death_while_the_index_is_made_anew(
    mortal: Mortal, monkeypatch: pytest.MonkeyPatch, wall: float
) -> None:
    """The index is found to be behind its segments; the wall clock is wrong meanwhile, which may cost seven days
    at each of two openings."""
    mortal.store.put(b"k", b"value", ttl=20 * DAY_S)
    mortal.store.flush()
    assert mortal.store._back is not None
    with mortal.store._back.parts.index.write() as txn:
        txn.set_counter(FORM.complete, 0)
    die(mortal.store, mortal.fs)

    def dies(*_: object) -> None:
        raise SimulatedCrash

    mortal.clock.wall += wall
    monkeypatch.setattr(Recovery, "_rebuild_tier", dies)
    with pytest.raises(SimulatedCrash):
        mortal.again()
    monkeypatch.undo()
    assert 6 * DAY_S <= mortal.lives_for() <= 20.5 * DAY_S


def test_an_index_made_anew_never_lets_a_block_expire_early(mortal: Mortal) -> None:
    mortal.fill()
    mortal.store.close()
    shutil.rmtree(mortal.folder / "store" / "index")
    assert mortal.lives_for() == DAY_S / 2
    mortal.clock.advance(DAY_S / 2)
    with mortal.again() as store:
        assert not store.get(b"k")
