"""Blocks whose time is up leave the index, a few at a time. Until they do, they are misses all the same.

Threads: the store's background worker only.
"""

from __future__ import annotations

from itertools import islice

from kvtier.events import Signals
from kvtier.index.lmdb_index import LmdbIndex
from kvtier.index.schema import Reason
from kvtier.tiers.ledger import Ledger

_AT_ONCE = 256
_LOOK_AGAIN_S = 60.0


class Expiry:
    """Removes what has expired by the ledger's time."""

    def __init__(self, index: LmdbIndex, ledger: Ledger, signals: Signals) -> None:
        self._index = index
        self._ledger = ledger
        self._signals = signals

    def step(self) -> float | None:
        """Remove some blocks: 0.0 if there were any; else in how many seconds there may be some, None: none expire."""
        self._index.ensure_alive()
        now = self._ledger.time.now()
        with self._index.read() as view:
            first = list(islice(view.expiring(), _AT_ONCE))
            due = [(when, block_id) for when, block_id in first if when <= now]
            gone = [b for when, b in due if (entry := view.block(b)) is not None and entry.expires_at == when]
        if not due:
            return min(max(first[0][0] - now, 1.0), _LOOK_AGAIN_S) if first else None
        with self._ledger.change() as change:
            for block_id in gone:
                self._ledger.unlink(change, block_id, Reason.EXPIRED)
            for when, block_id in due:  # also what a kvtier that knows no expiry has left behind
                change.txn.del_expiry(when, block_id)
        self._signals.count("expired", len(gone))
        return 0.0
