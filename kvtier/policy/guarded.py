"""A policy that may fail, with the default one behind it; and how it is told of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from kvtier.events import PolicyDisabled, Signals
from kvtier.policy.base import EvictionPolicy, Hint
from kvtier.policy.eviction.leaf_lru import LeafLru


class Guarded:
    """An eviction policy around another one, which it gives up for good when that raises or breaks the contract.

    Then the default takes over, with the same holds, and ``on_failure`` is called once with the reason: its part is to
    add the blocks again, as nobody else knows them. Until it returns nothing is asked of the default.
    """

    def __init__(self, policy: EvictionPolicy, on_failure: Callable[[str], None]) -> None:
        self._policy = policy
        self._on_failure = on_failure
        self._holds: Counter[int] = Counter()
        self.has_failed = False

    def fail(self, reason: str) -> None:
        """Give the policy up, for a reason that its owner has found."""
        if self.has_failed:
            return
        self.has_failed = True
        self._policy = LeafLru()
        for block in self._holds.elements():
            self._policy.hold(block)
        self._on_failure(reason)

    def add(self, block: int, parent: int, clock: int, nbytes: int) -> None:
        try:
            self._policy.add(block, parent, clock, nbytes)
        except Exception as e:
            self.fail(_told(e))

    def touch(self, block: int, clock: int) -> None:
        try:
            self._policy.touch(block, clock)
        except Exception as e:
            self.fail(_told(e))

    def remove(self, block: int) -> None:
        try:
            self._policy.remove(block)
        except Exception as e:
            self.fail(_told(e))

    def pop(self) -> int | None:
        try:
            block = self._policy.pop()
            wrong = self._wrong_with(block)
        except Exception as e:
            wrong = _told(e)
        if not wrong:
            return block
        self.fail(wrong)
        return self._policy.pop()

    def hold(self, block: int) -> None:
        self._holds[block] += 1
        try:
            self._policy.hold(block)
        except Exception as e:
            self.fail(_told(e))

    def release(self, block: int) -> None:
        if self._holds[block] > 1:
            self._holds[block] -= 1
        else:
            del self._holds[block]
        try:
            self._policy.release(block)
        except Exception as e:
            self.fail(_told(e))

    def hint(self, block: int, hint: Hint) -> None:
        try:
            self._policy.hint(block, hint)
        except Exception as e:
            self.fail(_told(e))

    def __len__(self) -> int:
        try:
            return len(self._policy)
        except Exception as e:
            self.fail(_told(e))
            return len(self._policy)

    def _wrong_with(self, block: object) -> str:
        if block is None:
            return "" if self._holds or not len(self._policy) else "it gives no block, though none is held"
        if not isinstance(block, int):
            return f"it gave {block!r}, which is no block"
        return f"it gave block {block:#x}, which is held" if block in self._holds else ""


def policy_disabled(signals: Signals, tier: str, policy: str, reason: str) -> None:
    """Count and tell that the policy of a tier failed."""
    signals.count("policies_disabled")
    signals.emit(PolicyDisabled(tier, policy, reason))


def _told(e: Exception) -> str:
    return f"{type(e).__name__}: {e}"
