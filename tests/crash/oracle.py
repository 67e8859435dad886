"""What a store may answer after a crash, kept outside it, and the checks that hold it to that."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable
from typing import Any

from kvtier import Config, Hit, KeyProvider, MissReason, Store
from kvtier.clock import Clock
from kvtier.fs import FileSystem, OsFileSystem
from kvtier.index.schema import Reason
from kvtier.testing import FaultyFileSystem
from kvtier.tiers.ladder import Ladder
from kvtier.tiers.ledger import Ledger
from tests.crash.lifetimes import Lifetimes
from tests.crash.scale import BLOCK_BYTES
from tests.stores import noise, settle, value_of


class WrongBytes(AssertionError):
    """A store gave a value that the key cannot have."""


class LostBlock(AssertionError):
    """A store gave no value where it had promised one."""


class Oracle:
    """For each key: every value that it may have now (None: absent), and every one it ever had. ``now`` is the time by
    which values expire; without it none do, as far as is known here."""

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        self.now = now or _at_the_beginning
        self._is_timed = now is not None
        self.may_be: dict[bytes, set[bytes | None]] = {}
        self.ever: dict[bytes, set[bytes | None]] = {}
        self.lifetimes = Lifetimes()
        self.waiting: dict[bytes, bytes | None] = {}
        self.given_up: set[bytes] = set()
        self.refused: set[bytes] = set()  # of those, what may still be taken in
        self._over: set[bytes] = set()  # what was removed since its last put had expired
        self._is_undone = False
        self._came_back: set[bytes] = set()

    def set(self, key: bytes, value: bytes | None, expires_at: int = 0) -> None:
        """A put or (None) a deletion was asked for: until the next flush the key has its old value or this."""
        self.may_be.setdefault(key, {None}).add(value)
        self.ever.setdefault(key, {None}).add(value)
        self.waiting[key] = value
        if value is not None:
            self.lifetimes.put(key, value, expires_at)
        self.given_up.discard(key)
        self.refused.discard(key)
        self._over.discard(key)

    def flushed(self) -> None:
        """Everything so far was acknowledged as durable."""
        for key, value in self.waiting.items():
            self.may_be[key] = {value, None} if key in self.given_up | self._over else {value}
            if value is not None and key not in self.given_up:
                self.lifetimes.flushed(key, value)
            self._came_back.discard(key)
        self.waiting.clear()

    def failed(self) -> None:
        """Some of what was not durable yet was lost, and said to be: nothing of it is promised. Some of it may be found
        in records that could not be cut off, which know when it expires to the day."""
        self.lifetimes.only_the_day_is_known(self.waiting)
        for key in self.waiting:
            self.may_be[key].add(None)
        self.waiting.clear()

    def dropped(self, keys: Iterable[bytes]) -> None:
        """The store gave these up."""
        for key in keys:
            self.may_be.setdefault(key, {None}).add(None)
            self.given_up.add(key)
            self.refused.discard(key)

    def was_refused(self, key: bytes) -> None:
        """No tier took in what was put last, for now."""
        self.dropped([key])
        self.refused.add(key)

    def was_taken_in(self, key: bytes) -> None:
        """A commit has made durable what is there of a key. If it had been refused, that is what was put last."""
        if key in self.refused:
            self.refused.discard(key)
            self.given_up.discard(key)

    def has_expired(self, key: bytes) -> None:
        """The store removes it, as its time is up. It is believed only if that can be: else it has lost it."""
        if self.may_be_over(key):
            self.may_be[key].add(None)
        if key in self.waiting and self.lifetimes.is_over(key, self.now()):  # not an older value of it
            self._over.add(key)

    def was_killed(self) -> None:
        """What no commit had covered is found again in the records, which know when it expires to the day."""
        self.lifetimes.only_the_day_is_known({*self.waiting, *self.given_up})

    def lost_the_last_commit(self, keys: Iterable[bytes]) -> None:
        """It may be lost, and has stored or renewed these keys."""
        keys = set(keys)
        self.deletions_may_be_undone()
        self.lifetimes.renewals_may_be_undone(keys)
        self.lifetimes.only_the_day_is_known(keys)

    def lost_the_index(self) -> None:
        """It is made anew, from the records. What had come back since the commit was lost that gave it up is marked on
        disk all the same: it goes again."""
        self.lifetimes.only_the_day_is_known(self.may_be)
        for key in self._came_back:
            self.may_be[key].add(None)

    def deletions_may_be_undone(self) -> None:
        """The last commit may be lost: what it deleted or evicted may be back."""
        self._is_undone = True
        for key, allowed in self.may_be.items():
            if None in allowed:
                allowed |= self.ever[key]
                self.lifetimes.may_be_any_of(key)

    def saw(self, store: Store, *, stale: bool = False) -> None:
        """What was not durable is settled: from now on, what the store says is the truth. ``stale``: as in a check."""
        self.waiting.clear()
        self.given_up.clear()
        self.refused.clear()
        self._over.clear()
        for key in self.may_be:
            hit = store.get(key)
            if isinstance(hit, Hit):
                value = value_of(hit)
                if self._is_timed:
                    self.lifetimes.saw(key, value, _expires_at(store, key), ever=stale)
                if self._is_undone and None in self.may_be[key]:
                    self._came_back.add(key)
                self.may_be[key] = {value}
            else:  # what has expired and is still there may be back, if the time by which it has goes back
                self.may_be[key] = {v for v in self.may_be[key] if v is None or self._may_be_over(key, v)} | {None}
        self._is_undone = False

    def _may_be_over(self, key: bytes, value: bytes) -> bool:
        return self.lifetimes.may_be_over(key, value, self.now())

    def may_be_over(self, key: bytes) -> bool:
        """Whether its time may be up."""
        return any(v is not None and self._may_be_over(key, v) for v in self.may_be[key])

    def allows(self, key: bytes, value: bytes | None, *, stale: bool = False) -> bool:
        """Whether this may be what the key means now. ``stale``: so may be any value that it ever had."""
        if value is None:
            return None in self.may_be[key] or self.may_be_over(key)
        is_known = value in self.may_be[key] or (stale and value in self.ever[key])
        return is_known and self.lifetimes.may_live(key, value, self.now(), ever=stale)

    def check(self, store: Store, *, stale: bool = False, damage: bool = False) -> None:
        """Every answer is allowed. ``stale``: so is any value that the key ever had; ``damage``: a miss may say
        that it is due to damage."""
        for key, allowed in self.may_be.items():
            hit = store.get(key)
            value = value_of(hit) if isinstance(hit, Hit) else None
            if not self.allows(key, value, stale=stale):
                kind = LostBlock if value is None else WrongBytes
                raise kind(f"{key!r}: {_shown(value)}, not one of {sorted(map(_shown, allowed))}")
            if not isinstance(hit, Hit) and not damage:
                assert hit.reason is MissReason.ABSENT, f"{key!r}: {hit.reason}"


def _at_the_beginning() -> float:
    return 0.0


def _expires_at(store: Store, key: bytes) -> int:
    assert store._back is not None
    with store._back.parts.index.read() as view:
        entry = view.block(store._wanted(key, b"").block_id)
    return 0 if entry is None else entry.expires_at


def _shown(value: bytes | None) -> str:
    return "absent" if value is None else f"{len(value)} bytes {value[:4].hex()}"


def tell_of_losses(
    store: Store | None,
    tell: Callable[[int], None],
    *,
    expired: Callable[[int], None] | None = None,
    refused: Callable[[int], None] | None = None,
) -> None:
    """``tell`` is called with each block that the store is about to give up: at a cap, because a newer value of it was
    lost, because it was deleted, or because it is refused: a full tier does not take it in without its parent, or its
    namespace has reached its quota. This is before the commit that does it.

    ``expired``: called instead with what leaves as its time is up; ``refused``: with what is refused.

    None: all stores of this process, those to come included, if their worker may be faster than who tells."""
    ladder: Any = Ladder if store is None else store._back.ladder  # type: ignore[union-attr]
    ledger: Any = Ledger if store is None else ladder.ledger
    unlink, refuse = ledger.unlink, ladder._refuse

    def watched_unlink(*args: Any) -> None:
        *_, block_id, reason = args  # with or without self before the change
        ((expired or tell) if reason is Reason.EXPIRED else tell)(block_id)
        unlink(*args)

    def watched_refuse(*args: Any) -> None:
        *_, block_ids, _ = args
        for block_id in block_ids:
            (refused or tell)(block_id)
        refuse(*args)

    ledger.unlink, ladder._refuse = watched_unlink, watched_refuse


def die(store: Store | None, fs: FaultyFileSystem) -> None:
    """What a kill leaves: nothing more is written; the kernel closes everything and drops the locks."""
    fs.crash()
    if store is not None:
        atexit.unregister(store.close)
        store._closed = True
        assert store._back is not None
        store._back._prefetcher.close()
        store._back.parts.index._env.close()
    fs.reap()


def reopen(
    settings: Config, fs: FileSystem | None = None, keys: KeyProvider | None = None, clock: Clock | None = None
) -> Store:
    return Store.open(settings, fs=fs or OsFileSystem(), clock=clock, background=False, keys=keys)


def check_usable(settings: Config, oracle: Oracle, keys: KeyProvider | None = None, clock: Clock | None = None) -> None:
    """The store takes, keeps and forgets blocks again, through one more reopening, and stays under its caps.

    ``settings`` take in every block."""
    again = [b"fresh", *list(oracle.may_be)[:2]]
    with reopen(settings, keys=keys, clock=clock) as store:
        for key in again:
            store.put(key, noise((key, "after the crash"), BLOCK_BYTES))
        store.flush()
        settle(store)
        store.delete(b"fresh")
        store.flush()
    with reopen(settings, keys=keys, clock=clock) as store:
        assert not store.get(b"fresh")
        for key in again[1:]:
            assert value_of(store.get(key)) == noise((key, "after the crash"), BLOCK_BYTES)
        settle(store)
        for t in store.stats().tiers:
            assert t.bytes_used <= t.bytes_max
