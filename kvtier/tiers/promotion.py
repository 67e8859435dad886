"""Whether a hit in one tier brings the block up, by the tier's policy."""

from __future__ import annotations

from kvtier.events import Signals
from kvtier.policy.base import PromotionPolicy
from kvtier.policy.guarded import policy_disabled
from kvtier.policy.promotion import AlwaysPromote


class Lift:
    """One tier's policy; one that raises is not asked again: every hit brings its block up then. Any thread."""

    def __init__(self, name: str, policy: PromotionPolicy, signals: Signals) -> None:
        self._name = name
        self._policy = policy
        self._signals = signals

    def takes(self, block_id: int) -> bool:
        """Decide for one hit."""
        policy = self._policy
        try:
            return bool(policy.promote(block_id))
        except Exception as e:
            self._policy = AlwaysPromote()
            policy_disabled(self._signals, self._name, type(policy).__name__, f"{type(e).__name__}: {e}")
            return True
