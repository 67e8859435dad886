"""Random lives of a store against a model: what each key means now, and what a crash may leave of it. A life follows
from what is drawn for it and from nothing else, as in :mod:`tests.torture.simulation`.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvtier import FlushError, Hint, Hit, HitInto, Key, Miss, Store
from kvtier.compacting import compact
from kvtier.fs import FileSystem, OsFileSystem, PortableFileSystem
from kvtier.testing import FaultyFileSystem, SimulatedCrash
from tests.crash.oracle import die
from tests.stores import KIB, MIB, config, names, noise, settle, tier
from tests.torture.model import Model
from tests.torture.simulated import SharedDisk, SharedMemory, SimulatedClock, identities_from, with_one_reader
from tests.torture.stage import MEMORY
from tests.torture.watch import watch

KEYS = names(14)
SIZES = [0, 1, 60, 4000, 4096, 9000, 20 * KIB, 24 * KIB]
TOP_BYTES, LOW_BYTES = 576 * KIB, 256 * KIB

HOUR, DAY = 3600.0, 86_400.0

keys = st.sampled_from(KEYS)
times = st.sampled_from([0, 0, 0, 60, HOUR, 3 * DAY])
admissions = st.sampled_from(["always", "always", "second-touch", "min-chain", "write-budget"])
chains = st.lists(keys, max_size=8)


class KeyRing:
    """A key provider whose newest key counts; older ones are still there."""

    def __init__(self) -> None:
        self.newest = 0

    def add(self) -> None:
        self.newest += 1

    def __call__(self, namespace: bytes | None, key_id: str | None) -> Key:
        chosen = key_id or str(self.newest)
        return Key(chosen, noise(("key", namespace, chosen), 32))


class StoreMachine(RuleBasedStateMachine):
    """The model knows what each key means in this session; its oracle, what it may mean in the next, and what the store
    may have given up or refused. ``factor``: how much longer all is than usual; from 33 on, the longest blocks are
    written directly."""

    factor = 1

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="kvtier-machine-", dir=MEMORY if MEMORY.is_dir() else None))
        self.ends = ExitStack()
        self.clock = SimulatedClock()
        self.model = Model(self.clock)
        self.oracle = self.model.oracle
        self.disk = SharedDisk(self.folder / "store" / "top", self.folder / "store" / "low")
        self.store: Store | None = None
        self.failures = 0
        self.marks_are_missing = False

    @initialize(
        ram=st.sampled_from(
            [{"bytes_max": 0}, {"bytes_max": 64 * KIB}, {"bytes_max": 64 * KIB, "write": "back"}],
        ),
        codec=st.sampled_from(["none", "zstd"]),
        kind=st.sampled_from(["ssd", "hdd"]),
        punches=st.booleans(),
        encrypted=st.booleans(),
        copies=st.booleans(),
        admission=st.tuples(admissions, admissions),
        promotion=st.sampled_from(["always", "second-hit"]),
        has_floor=st.booleans() if MEMORY.is_dir() else st.just(False),  # elsewhere, what a file occupies shows up late
        identity=st.integers(0, 1 << 32),
        quota=st.sampled_from([None, None, 200 * KIB]),
    )
    def begin(
        self,
        ram: dict[str, Any],
        codec: str,
        kind: str,
        punches: bool,
        encrypted: bool,
        copies: bool,
        admission: tuple[str, str],
        promotion: str,
        has_floor: bool,
        identity: int,
        quota: int | None,
    ) -> None:
        """Where holes cannot be punched, segments are evicted whole, or compacted, instead."""
        self.ends.enter_context(identities_from(random.Random(identity)))
        is_long = self.factor > 1
        self.punches, self.has_floor = punches or is_long, has_floor and not is_long
        self.keys = KeyRing() if encrypted else None
        common = {
            "segment_bytes": self.factor * 64 * KIB,
            "page_cache": is_long and identity % 4 == 0,
            "compaction": "copy" if copies else "reclaim",
            "compaction_dead_ratio": 0.1,
            "free_bytes_min": SharedDisk.FLOOR if self.has_floor else 0,
        }
        top, low = (
            {**common, "admission": a, "write_bytes_per_day": self.factor * 200 * KIB if a == "write-budget" else None}
            for a in admission
        )
        self.settings = config(
            self.folder,
            tier("top", bytes_max=self.top_bytes(copies), **top),
            tier("low", kind=kind, bytes_max=self.factor * LOW_BYTES, codec=codec, promotion=promotion, **low),
            ram={**ram, "bytes_max": self.factor * ram["bytes_max"]},
            value_bytes_max=self.factor * 24 * KIB,
            queue=self.factor * 96 * KIB,
            quota=quota and self.factor * quota,
        )
        self.open()

    def top_bytes(self, copies: bool) -> int:
        """Copies are made where there is room. What the index takes does not grow with the blocks."""
        if self.factor > 1:
            return self.factor * (512 if copies else 240) * KIB
        return MIB if copies else TOP_BYTES

    def open(self) -> Store:
        self.fs = self.faulty()
        self.store = self.opened(self.fs)
        self.fs.on_call = self.disk.watch if self.has_floor else None
        self.failures = 0
        return self.store

    def opened(self, fs: FileSystem) -> Store:
        store = Store.open(
            self.settings, fs=fs, keys=self.keys, clock=self.clock, memory=SharedMemory(), background=False
        )
        self.reader = with_one_reader(store)
        watch(store, KEYS, self.model)
        return store

    def faulty(self) -> FaultyFileSystem:
        return FaultyFileSystem(self.disk.holds(OsFileSystem() if self.punches else PortableFileSystem()))

    @property
    def live(self) -> Store:
        assert self.store is not None
        return self.store

    # -- changes ------------------------------------------------------------------------------------

    @rule(key=keys, content=st.integers(0, 5), size=st.sampled_from(SIZES), parent=st.none() | st.just(0), ttl=times)
    def put(self, key: bytes, content: int, size: int, parent: int | None, ttl: float = 0) -> None:
        """Few contents, so that many blocks share one. The parent, if any, is the key before: chains, no rings."""
        size *= self.factor
        self.put_value(key, noise(content, size - (size // 99 if self.factor > 1 else 0)), parent, ttl)

    @rule(key=keys, parent=st.none() | st.just(0), ttl=times)
    def renew(self, key: bytes, parent: int | None, ttl: float) -> None:
        """The same once more."""
        if (value := self.model.current(key)) is not None:
            self.put_value(key, value, parent, ttl)

    def put_value(self, key: bytes, value: bytes, parent: int | None, ttl: float) -> None:
        at = KEYS.index(key)
        self.model.set(key, value, self.model.time.after(ttl))
        self.live.put(key, value, parent=KEYS[at - 1] if at and parent is not None else None, ttl=ttl)

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        was_there = self.live.contains(key)
        assert self.live.delete(key) == was_there
        if was_there:
            self.model.set(key, None)
        assert not self.live.contains(key)

    @rule(salt=st.integers(0, 3), ttl=times)
    def press(self, salt: int, ttl: float) -> None:
        """A new value for every key: more than both tiers hold."""
        for key in KEYS:
            self.put(key, 100 + salt * 100 + KEYS.index(key), 20 * KIB, 0, ttl)

    @rule()
    def flush(self) -> None:
        """Others may have filled the disk: then something is lost, which is said."""
        try:
            self.live.flush()
        except FlushError:
            assert self.has_floor
            self.model.write_failed()
            self.oracle.failed()
        else:
            self.oracle.flushed()

    @rule()
    def idle(self) -> None:
        """The worker does all there is to do: moves up what was read, too."""
        settle(self.live)

    @precondition(lambda self: self.keys is not None)
    @rule()
    def rotate_keys(self) -> None:
        """A tier may be too full for its blocks to be written anew: then they keep their older keys."""
        assert self.keys is not None
        self.flush()
        self.note_failures()
        self.keys.add()
        with suppress(FlushError):  # so small a tier may have no room
            self.live.rotate_keys()

    @rule()
    def forget_keys(self) -> None:
        self.live.forget_keys()

    # -- the world ----------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 61, HOUR, 3 * DAY]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-4000 * DAY, -DAY, DAY, 4000 * DAY]))
    def wall_clock_is_set(self, seconds: float) -> None:
        self.clock.jump(seconds)

    @precondition(lambda self: self.has_floor)
    @rule(room=st.sampled_from([3 * MIB, 3 * MIB, 800 * KIB, 500 * KIB, 0]))
    def others_write(self, room: int) -> None:
        """They leave so much above the floor."""
        self.disk.others = SharedDisk.BYTES - SharedDisk.FLOOR - room
        self.live._headroom.look()

    @rule(pause=st.booleans())
    def compaction(self, pause: bool) -> None:
        self.live.pause_compaction() if pause else self.live.resume_compaction()

    @rule(chain=chains, ended=st.booleans(), priority=st.integers(0, 2))
    def hint(self, chain: list[bytes], ended: bool, priority: int) -> None:
        self.live.hint(chain, Hint(ended=ended, priority=priority))

    # -- reads --------------------------------------------------------------------------------------

    def check(self, key: bytes, outcome: Hit | Miss) -> None:
        self.model.check(key, outcome, self.model.now(key))

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        self.check(key, self.live.get(key))

    @rule(key=keys)
    def get_into(self, key: bytes) -> None:
        since, info = self.model.now(key), self.live.info(key)
        if info is None:
            self.model.check_absent(key, since)
        else:
            target = bytearray(info.nbytes)
            assert isinstance(self.live.get_into(key, target), HitInto)
            self.model.check_bytes(key, bytes(target), since)

    @rule(chain=chains)
    def get_many(self, chain: list[bytes]) -> None:
        for key, outcome in zip(chain, self.live.get_many(chain), strict=True):
            assert outcome.key == key
            self.check(key, outcome)

    @rule(chain=chains)
    def match(self, chain: list[bytes]) -> None:
        count = self.live.match(chain)
        assert all(self.live.contains(key) for key in chain[:count])
        assert count == len(chain) or isinstance(self.live.get(chain[count]), Miss)
        for key in chain[:count]:
            value = self.model.current(key)
            assert value is not None
            self.model.check_bytes(key, value, self.model.now(key))

    # -- ends ---------------------------------------------------------------------------------------

    @rule(by_hand=st.booleans())
    def close_and_open(self, by_hand: bool) -> None:
        """``by_hand``: compact it in between."""
        self.close()
        if by_hand:
            compact(self.settings, fs=self.faulty(), clock=self.clock, keys=self.keys)
            self.model.time.may_have_opened()
        self.come_back()

    def close(self) -> None:
        self.live.close()
        (self.oracle.failed if self.note_failures() else self.oracle.flushed)()

    @rule(index_is_lost=st.booleans())
    def crash(self, index_is_lost: bool) -> None:
        """Between two calls: so every mark is written, and a new index finds exactly what the old one knew (unless
        an earlier crash took a mark)."""
        self.die(index_is_lost)
        self.come_back(stale=index_is_lost and self.marks_are_missing)

    @precondition(lambda self: self.oracle.waiting)
    @rule(calls=st.integers(1, 12), idle=st.booleans())
    def crash_while_writing(self, calls: int, idle: bool) -> None:
        """``idle``: at the worker's own pace, while blocks move up, too."""
        self.fs.crash_at(self.fs.calls + calls)
        try:
            self.idle() if idle else self.flush()
        except SimulatedCrash:
            pass
        else:
            self.fs.heal()
            return
        self.die(index_is_lost=False)
        self.marks_are_missing = True
        self.come_back()

    @rule(calls=st.lists(st.integers(1, 12), min_size=1, max_size=3), index_is_lost=st.booleans())
    def crash_while_opening(self, calls: list[int], index_is_lost: bool) -> None:
        """Once or several times, and with the work of a recovery to do."""
        self.die(index_is_lost)
        for call in calls:
            fs = self.faulty()
            fs.crash_at(call)
            with suppress(SimulatedCrash):
                self.opened(fs).close()
            fs.reap()
            self.model.died()
            self.model.time.may_have_opened()
        self.come_back(stale=index_is_lost and self.marks_are_missing)

    def die(self, index_is_lost: bool) -> None:
        die(self.live, self.fs)
        self.model.died()
        if index_is_lost:
            shutil.rmtree(self.folder / "store" / "index")
            self.model.lost_the_index()

    def come_back(self, *, stale: bool = False) -> None:
        self.oracle.check(self.open(), stale=stale)
        self.oracle.saw(self.live, stale=stale)
        self.model.settled()

    def note_failures(self) -> bool:
        """Whether something was lost since this was last asked: only others can be the reason."""
        failures = self.live._signals.counts().get("write_failures", 0)
        is_new, self.failures = failures > self.failures, failures
        if is_new:
            assert self.has_floor
            self.model.write_failed()
        return is_new

    @invariant()
    def stays_under_its_caps(self) -> None:
        if self.store is not None:
            self.reader.wait()
            self.note_failures()
            assert not self.disk.below_floor
            for t in self.store.stats().tiers:
                assert t.bytes_used <= t.bytes_max

    def teardown(self) -> None:
        if self.store is not None:
            self.store.close()
        self.ends.close()
        shutil.rmtree(self.folder)
