"""What callers tell a store ahead: what will be read, what must stay, what they know of the future."""

from __future__ import annotations

import time
from collections.abc import Iterable

from kvtier.back import Back
from kvtier.blocks import Hint
from kvtier.events import Signals
from kvtier.front import Front
from kvtier.opened import Opened
from kvtier.policy import base as policy
from kvtier.reads import Reads


class Advised(Opened):
    """The part of :class:`kvtier.Store` that takes advice. Any thread."""

    _front: Front
    _back: Back | None
    _reads: Reads
    _signals: Signals

    def prefetch(self, keys: Iterable[bytes], *, namespace: bytes = b"") -> int:
        """Bring blocks into RAM in the background, in this order; returns how many are on their way.

        Give it the chain of a request as soon as the request is queued. Bytes in flight are bounded by
        ``prefetch.bytes_max``; what waits or came and is not used yet, by the RAM tier's cap: the rest is not taken on.
        """
        self._check_open()
        return self._reads.prefetch([self._wanted(k, namespace) for k in keys])

    def cancel_prefetch(self, keys: Iterable[bytes], *, namespace: bytes = b"") -> int:
        """Undo one ``prefetch`` of each key, as its request was dropped; returns how many blocks are not read.

        What others have asked for too still comes, and what is being read is not stopped.
        """
        self._check_open()
        back = self._back
        return back.prefetching.cancel([self._wanted(k, namespace).block_id for k in keys]) if back else 0

    def answered(self, keys: Iterable[bytes], *, namespace: bytes = b"") -> int:
        """A request has its answer, its chain is now ``keys``, and its conversation may go on. With
        ``prefetch.policy = "next-turn"`` the chain comes up into RAM, if that pays; returns how many blocks do.
        """
        self._check_open()
        return self._reads.answered([self._wanted(k, namespace) for k in keys])

    def pin(self, keys: Iterable[bytes], *, namespace: bytes = b"") -> None:
        """Protect blocks, and with them their ancestors, from eviction on every tier, present yet or not.

        Pins count, and end with ``unpin`` or with the process: one that crashes leaves none behind.
        """
        self._check_open()
        ids = self._front.pin([self._wanted(k, namespace).block_id for k in keys])
        if self._back:
            self._back.hold(namespace, ids, 1)

    def unpin(self, keys: Iterable[bytes], *, namespace: bytes = b"") -> None:
        """Undo one ``pin`` of each key; keys that are not pinned are ignored."""
        self._check_open()
        ids = self._front.unpin([self._wanted(k, namespace).block_id for k in keys])
        if self._back:
            self._back.hold(namespace, ids, -1)

    def hint(self, keys: Iterable[bytes], hint: Hint, *, namespace: bytes = b"") -> None:
        """Advise the eviction policies of all tiers on blocks: the latest hint on a block counts, until it is deleted
        or leaves the disk.

        Give it the chain of a session when that ends, pauses, or becomes more important. A policy that knows no hints
        ignores it. Hints on up to 65,536 blocks are kept, in memory only; one on a block that is not there counts once
        that comes. Does not count as a use.
        """
        self._check_open()
        returns_at = None if hint.returns_in is None else time.monotonic() + hint.returns_in
        advice = policy.Hint(hint.ended, returns_at, hint.priority)
        ids = [self._wanted(k, namespace).block_id for k in keys]
        self._signals.count("hints", len(ids))
        self._front.hint(namespace, ids, advice)
        if self._back:
            self._back.hint(namespace, ids, advice)
