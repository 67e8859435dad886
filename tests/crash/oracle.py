"""What a store may answer after a crash, kept outside it, and the checks that hold it to that."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kvtier import Config, Hit, KeyProvider, MissReason, Store
from kvtier.fs import FileSystem, OsFileSystem
from kvtier.testing import FaultyFileSystem
from kvtier.tiers.ladder import Ladder
from kvtier.tiers.ledger import Ledger
from tests.stores import KIB, MIB, config, noise, settle, tier, value_of

BLOCK_BYTES = 16 * KIB


class WrongBytes(AssertionError):
    """A store gave a value that the key cannot have."""


class LostBlock(AssertionError):
    """A store gave no value where it had promised one."""


def two_tiers(folder: Path, *, top_bytes: int = 768 * KIB, low_bytes: int = 32 * MIB) -> Config:
    """Two tiers, the upper one with room for some 20 blocks (its cap counts the index, and 256 KiB of slack),
    in segments of 64 KiB; no RAM, so that every answer comes from disk."""
    return config(
        folder,
        tier("top", bytes_max=top_bytes, segment_bytes=64 * KIB),
        tier("low", bytes_max=low_bytes, segment_bytes=64 * KIB),
        value_bytes_max=32 * KIB,
    )


class Oracle:
    """For each key: every value that it may have now (None: absent), and every one it ever had."""

    def __init__(self) -> None:
        self.may_be: dict[bytes, set[bytes | None]] = {}
        self.ever: dict[bytes, set[bytes | None]] = {}
        self.waiting: dict[bytes, bytes | None] = {}
        self.given_up: set[bytes] = set()

    def set(self, key: bytes, value: bytes | None) -> None:
        """A put or (None) a deletion was asked for: until the next flush the key has its old value or this."""
        self.may_be.setdefault(key, {None}).add(value)
        self.ever.setdefault(key, {None}).add(value)
        self.waiting[key] = value
        self.given_up.discard(key)

    def flushed(self) -> None:
        """Everything so far was acknowledged as durable."""
        for key, value in self.waiting.items():
            self.may_be[key] = {value, None} if key in self.given_up else {value}
        self.waiting.clear()

    def failed(self) -> None:
        """Some of what was not durable yet was lost, and said to be: nothing of it is promised."""
        for key in self.waiting:
            self.may_be[key].add(None)
        self.waiting.clear()

    def dropped(self, keys: Iterable[bytes]) -> None:
        """The store gave these up."""
        for key in keys:
            self.may_be.setdefault(key, {None}).add(None)
            self.given_up.add(key)

    def deletions_may_be_undone(self) -> None:
        """The last commit may be lost: what it deleted or evicted may be back."""
        for key, allowed in self.may_be.items():
            if None in allowed:
                allowed |= self.ever[key]

    def saw(self, store: Store) -> None:
        """What was not durable is settled: from now on, what the store says is the truth."""
        self.waiting.clear()
        self.given_up.clear()
        for key in self.may_be:
            hit = store.get(key)
            self.may_be[key] = {value_of(hit) if isinstance(hit, Hit) else None}

    def check(self, store: Store, *, stale: bool = False, damage: bool = False) -> None:
        """Every answer is allowed. ``stale``: so is any value that the key ever had; ``damage``: a miss may say
        that it is due to damage."""
        for key, allowed in self.may_be.items():
            hit = store.get(key)
            value = value_of(hit) if isinstance(hit, Hit) else None
            if value not in allowed and not (stale and value is not None and value in self.ever[key]):
                kind = LostBlock if value is None else WrongBytes
                raise kind(f"{key!r}: {_shown(value)}, not one of {sorted(map(_shown, allowed))}")
            if not isinstance(hit, Hit) and not damage:
                assert hit.reason is MissReason.ABSENT, f"{key!r}: {hit.reason}"


def _shown(value: bytes | None) -> str:
    return "absent" if value is None else f"{len(value)} bytes {value[:4].hex()}"


def tell_of_losses(store: Store | None, tell: Callable[[int], None]) -> None:
    """``tell`` is called with each block that the store is about to give up: at a cap, because a newer value of it was
    lost, because it was deleted, or because it is refused: a full tier does not take it in without its parent, or its
    namespace has reached its quota. This is before the commit that does it.

    None: all stores of this process, those to come included, if their worker may be faster than who tells."""
    ladder: Any = Ladder if store is None else store._back.ladder  # type: ignore[union-attr]
    ledger: Any = Ledger if store is None else ladder.ledger
    unlink, refuse = ledger.unlink, ladder._refuse

    def watched_unlink(*args: Any) -> None:
        *_, block_id, _ = args  # with or without self before the change
        tell(block_id)
        unlink(*args)

    def watched_refuse(*args: Any) -> None:
        *_, block_ids, _ = args
        for block_id in block_ids:
            tell(block_id)
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


def reopen(settings: Config, fs: FileSystem | None = None, keys: KeyProvider | None = None) -> Store:
    return Store.open(settings, fs=fs or OsFileSystem(), background=False, keys=keys)


def check_usable(settings: Config, oracle: Oracle, keys: KeyProvider | None = None) -> None:
    """The store takes, keeps and forgets blocks again, through one more reopening, and stays under its caps."""
    again = [b"fresh", *list(oracle.may_be)[:2]]
    with reopen(settings, keys=keys) as store:
        for key in again:
            store.put(key, noise((key, "after the crash"), BLOCK_BYTES))
        store.flush()
        settle(store)
        store.delete(b"fresh")
        store.flush()
    with reopen(settings, keys=keys) as store:
        assert not store.get(b"fresh")
        for key in again[1:]:
            assert value_of(store.get(key)) == noise((key, "after the crash"), BLOCK_BYTES)
        settle(store)
        for t in store.stats().tiers:
            assert t.bytes_used <= t.bytes_max
