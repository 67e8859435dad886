"""Blocks that are being read: held until that is done, or until nothing else is left to evict.

Threads: one at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from kvtier.events import Signals

_MAX = 1 << 12


class Guards:
    """``hold`` protects blocks of a namespace (1), or takes that back (-1)."""

    def __init__(self, hold: Callable[[bytes, Sequence[int], int], None], signals: Signals) -> None:
        self._hold = hold
        self._signals = signals
        self._held: Counter[tuple[bytes, int]] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    def guard(self, namespace: bytes, block_ids: Sequence[int], by: int) -> None:
        """Protect blocks (``by`` = 1) until that is taken back (-1) or :meth:`let_go`; 4,096 of them, no more."""
        for block_id in block_ids:
            key = namespace, block_id
            if self._held[key] if by < 0 else len(self._held) < _MAX:
                self._held[key] += by
                if not self._held[key]:
                    del self._held[key]
                self._hold(namespace, [block_id], by)

    def let_go(self) -> int:
        """Protect none of them any longer; how many blocks that were."""
        count = len(self._held)
        self._signals.count("restores_cut", count)
        for namespace, block_id in self._held.elements():
            self._hold(namespace, [block_id], -1)
        self._held.clear()
        return count
