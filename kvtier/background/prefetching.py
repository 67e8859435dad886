"""What comes up before it is needed: because it was asked for, or because a policy expects it to be.

Threads: all of it may be called from any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from kvtier.background.prefetcher import Prefetcher
from kvtier.events import Signals
from kvtier.policy.base import PrefetchPolicy
from kvtier.policy.guarded import policy_disabled
from kvtier.policy.prefetch import ChainOnly
from kvtier.tiers.ram import RamTier
from kvtier.tiers.reading import Located


class Prefetching:
    """Requests to a :class:`Prefetcher`, kept to the room that RAM has for them, and counted."""

    def __init__(self, prefetcher: Prefetcher, ram: RamTier, policy: PrefetchPolicy, signals: Signals) -> None:
        self._prefetcher = prefetcher
        self._ram = ram
        self._signals = signals
        self._lock = threading.Lock()
        self._policy = policy
        self._turnover = Turnover(ram)

    # -- asked for ----------------------------------------------------------------------------------

    def request(self, located: Sequence[Located], *, is_expected: bool = False) -> int:
        """Bring up blocks, as many of the first ones as find room in RAM beside what was brought there and is not used
        yet; how many those are. What is only expected to be asked for is bounded by :func:`may_be_in_vain`, too."""
        ram, brought = self._ram, self._ram.brought
        room = ram.cap - brought.unused_bytes
        if is_expected:
            at_risk = brought.wasted.nbytes + brought.unused_bytes
            room = min(room, may_be_in_vain(ram, brought.useful.nbytes, at_risk))
        count = self._prefetcher.request(located, room)
        self._signals.count("prefetch_requested", count)
        return count

    def cancel(self, block_ids: Sequence[int]) -> int:
        """Undo one request of each; how many blocks are not read."""
        dropped = self._prefetcher.cancel(block_ids)
        self._signals.count("prefetch_cancelled", dropped)
        return dropped

    def coming(self, block_ids: Iterable[int]) -> set[int]:
        """Those of the blocks that are being read."""
        return self._prefetcher.flying(block_ids)

    def wait_for(self, block_id: int) -> bool:
        """If the block is being read, wait for it."""
        is_late = self._prefetcher.wait_for(block_id)
        self._signals.count("prefetch_late", is_late)
        return is_late

    def take_over(self, block_ids: Sequence[int]) -> None:
        """What waits to be read is read by who needs it now."""
        self._signals.count("prefetch_late", self._prefetcher.take_over(block_ids))

    # -- expected -----------------------------------------------------------------------------------

    def asked(self, namespace: bytes, chain: Sequence[int]) -> None:
        """A request names this chain."""
        with self._lock:
            try:
                self._policy.asked(namespace, chain)
            except Exception as e:
                self._disable(e)

    def answered(self, namespace: bytes, chain: Sequence[int]) -> bool:
        """A request with this chain has its answer; whether the chain should come up."""
        with self._lock:
            stays_s = self._turnover.seconds()
            try:
                return bool(chain) and self._policy.answered(namespace, chain, stays_s)
            except Exception as e:
                self._disable(e)
                return False

    def _disable(self, error: Exception) -> None:
        name, self._policy = type(self._policy).__name__, ChainOnly()
        policy_disabled(self._signals, "prefetch", name, f"{type(error).__name__}: {error}")


class Inflow(Protocol):
    """A RAM tier, as far as needed here."""

    bytes_taken: int
    cap: int


def may_be_in_vain(ram: Inflow, useful: int, at_risk: int) -> int:
    """How many bytes more may come up that nobody has asked for: until those ``at_risk`` (brought up in vain, or not
    used yet) are an eighth of the ``useful`` ones, a hundredth of what RAM took in, and to begin with a 32nd of RAM."""
    return useful // 8 + ram.bytes_taken // 100 + ram.cap // 32 - at_risk


class Turnover:
    """How long a block stays in RAM that nobody uses: as long as it took for half a RAM tier of others to come, as what
    is used again and again stays."""

    def __init__(self, ram: Inflow, now: Callable[[], float] = time.monotonic) -> None:
        self._ram = ram
        self._now = now
        self._since = now()
        self._bytes_then = ram.bytes_taken
        self._last_s = float("inf")

    def seconds(self) -> float:
        """By the last time that this happened, or infinite if it never did."""
        if self._ram.bytes_taken - self._bytes_then >= self._ram.cap // 2:
            now = self._now()
            self._last_s, self._since, self._bytes_then = now - self._since, now, self._ram.bytes_taken
        return self._last_s
