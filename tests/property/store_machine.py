"""Random lives of a store against a model: a dict, and for each key what a crash may leave of it."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvtier import FlushError, Hit, HitInto, Key, Miss, Store
from kvtier.fs import OsFileSystem, PortableFileSystem
from kvtier.testing import FaultyFileSystem, SimulatedCrash
from tests.crash.oracle import Oracle, die, reopen, tell_of_losses
from tests.stores import KIB, config, names, noise, settle, tier, value_of

KEYS = names(14)
SIZES = [0, 1, 60, 4000, 4096, 9000, 20 * KIB, 24 * KIB]
TOP_BYTES, LOW_BYTES = 576 * KIB, 256 * KIB

keys = st.sampled_from(KEYS)
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
    """``now``: what each key means in this session. The oracle: what it may mean in the next, and what the store
    may have given up at its caps."""

    def __init__(self) -> None:
        super().__init__()
        shm = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="kvtier-machine-", dir=shm if shm.is_dir() else None))
        self.oracle = Oracle()
        self.now: dict[bytes, bytes | None] = dict.fromkeys(KEYS)
        self.store: Store | None = None
        self.marks_are_missing = False

    @initialize(
        ram=st.sampled_from([0, 64 * KIB]),
        codec=st.sampled_from(["none", "zstd"]),
        punches=st.booleans(),
        encrypted=st.booleans(),
    )
    def begin(self, ram: int, codec: str, punches: bool, encrypted: bool) -> None:
        """Where holes cannot be punched, segments are compacted instead."""
        self.punches = punches
        self.keys = KeyRing() if encrypted else None
        self.settings = config(
            self.folder,
            tier("top", bytes_max=TOP_BYTES, segment_bytes=64 * KIB),
            tier("low", bytes_max=LOW_BYTES, segment_bytes=64 * KIB, codec=codec),
            ram=ram,
            value_bytes_max=24 * KIB,
            queue=96 * KIB,
        )
        self.open()

    def open(self) -> Store:
        self.fs = self.disk()
        self.store = reopen(self.settings, self.fs, self.keys)
        by_id = {self.store._wanted(key, b"").block_id: key for key in KEYS}
        tell_of_losses(self.store, lambda block_id: self.oracle.dropped([by_id[block_id]]))
        return self.store

    def disk(self) -> FaultyFileSystem:
        return FaultyFileSystem(OsFileSystem() if self.punches else PortableFileSystem())

    @property
    def live(self) -> Store:
        assert self.store is not None
        return self.store

    # -- changes ------------------------------------------------------------------------------------

    @rule(key=keys, content=st.integers(0, 5), size=st.sampled_from(SIZES), parent=st.none() | st.just(0))
    def put(self, key: bytes, content: int, size: int, parent: int | None) -> None:
        """Few contents, so that many blocks share one. The parent, if any, is the key before: chains, no rings."""
        value = noise(content, size)
        at = KEYS.index(key)
        self.oracle.set(key, value)
        self.now[key] = value
        self.live.put(key, value, parent=KEYS[at - 1] if at and parent is not None else None)

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        was_there = self.live.contains(key)
        assert self.live.delete(key) == was_there
        self.oracle.set(key, None)
        self.now[key] = None
        assert not self.live.contains(key)

    @rule(salt=st.integers(0, 3))
    def press(self, salt: int) -> None:
        """A new value for every key: more than both tiers hold."""
        for key in KEYS:
            self.put(key, 100 + salt * 100 + KEYS.index(key), 20 * KIB, 0)

    @rule()
    def flush(self) -> None:
        self.live.flush()
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
        self.keys.add()
        with suppress(FlushError):  # so small a tier may have no room
            self.live.rotate_keys()

    @rule()
    def forget_keys(self) -> None:
        self.live.forget_keys()

    # -- reads --------------------------------------------------------------------------------------

    def check(self, key: bytes, value: bytes | None) -> None:
        """The value is the one put last; a miss is right for what was deleted or given up."""
        if value is not None:
            assert value == self.now[key]
        else:
            assert self.now[key] is None or key in self.oracle.given_up, f"{key!r} is lost"

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        hit = self.live.get(key)
        self.check(key, value_of(hit) if isinstance(hit, Hit) else None)

    @rule(key=keys)
    def get_into(self, key: bytes) -> None:
        info = self.live.info(key)
        self.check(key, None if info is None else self.now[key])
        if info is not None:
            target = bytearray(info.nbytes)
            assert isinstance(self.live.get_into(key, target), HitInto)
            self.check(key, bytes(target))

    @rule(chain=chains)
    def get_many(self, chain: list[bytes]) -> None:
        for key, hit in zip(chain, self.live.get_many(chain), strict=True):
            assert hit.key == key
            self.check(key, value_of(hit) if isinstance(hit, Hit) else None)

    @rule(chain=chains)
    def match(self, chain: list[bytes]) -> None:
        count = self.live.match(chain)
        assert all(self.live.contains(key) for key in chain[:count])
        assert count == len(chain) or isinstance(self.live.get(chain[count]), Miss)
        for key in chain[: count + 1]:
            self.check(key, self.now[key] if self.live.contains(key) else None)

    # -- ends ---------------------------------------------------------------------------------------

    @rule()
    def close_and_open(self) -> None:
        self.live.close()
        self.oracle.flushed()
        self.come_back()

    @rule(index_is_lost=st.booleans())
    def crash(self, index_is_lost: bool) -> None:
        """Between two calls: so every mark is written, and a new index finds exactly what the old one knew (unless
        an earlier crash took a mark)."""
        die(self.live, self.fs)
        if index_is_lost:
            shutil.rmtree(self.folder / "store" / "index")
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
        die(self.live, self.fs)
        self.marks_are_missing = True
        self.come_back()

    @rule(calls=st.lists(st.integers(1, 12), min_size=1, max_size=3), index_is_lost=st.booleans())
    def crash_while_opening(self, calls: list[int], index_is_lost: bool) -> None:
        """Once or several times, and with the work of a recovery to do."""
        die(self.live, self.fs)
        if index_is_lost:
            shutil.rmtree(self.folder / "store" / "index")
        for call in calls:
            fs = self.disk()
            fs.crash_at(call)
            with suppress(SimulatedCrash):
                reopen(self.settings, fs, self.keys).close()
            fs.reap()
        self.come_back(stale=index_is_lost and self.marks_are_missing)

    def come_back(self, *, stale: bool = False) -> None:
        self.oracle.check(self.open(), stale=stale)
        self.oracle.saw(self.live)
        for key, allowed in self.oracle.may_be.items():
            (self.now[key],) = allowed

    @invariant()
    def stays_under_its_caps(self) -> None:
        if self.store is not None:
            for t in self.store.stats().tiers:
                assert t.bytes_used <= t.bytes_max

    def teardown(self) -> None:
        if self.store is not None:
            self.store.close()
        shutil.rmtree(self.folder)
