"""Blocks whose time is up leave the index, a few at a time. Until they do, they are misses all the same.

Threads: the store's background worker only.
"""

from __future__ import annotations

import logging
from itertools import islice, takewhile

from kvtier.events import Signals
from kvtier.index.lmdb_index import IndexFull, LmdbIndex
from kvtier.index.schema import Reason
from kvtier.tiers.ledger import Ledger

log = logging.getLogger("kvtier")

_AT_ONCE = 256
_OVERDUE_S = _AGAIN_S = 1.0
_LOOK_AGAIN_S = 60.0


class Expiry:
    """Removes what has expired by the ledger's time."""

    def __init__(self, index: LmdbIndex, ledger: Ledger, signals: Signals) -> None:
        self._index = index
        self._ledger = ledger
        self._signals = signals
        self._stepped_at = -_OVERDUE_S

    @property
    def is_overdue(self) -> bool:
        """For who has other work: whether the last step was a second ago, or left something to remove."""
        return self._ledger.time.now() - self._stepped_at >= _OVERDUE_S

    def step(self) -> float | None:
        """Remove some blocks: 0.0 if there were any; else in how many seconds there may be some, None: none expire.
        If that fails it is tried again a second later: nothing waits for it."""
        try:
            return self._step()
        except Exception as e:  # it must not end the worker
            self._signals.count("expiry_errors")
            if not isinstance(e, OSError | IndexFull):
                log.exception("blocks that have expired cannot be removed")
            return _AGAIN_S

    def _step(self) -> float | None:
        self._index.ensure_alive()
        now = self._ledger.time.now()
        with self._index.read() as view:
            due = list(islice(takewhile(lambda row: row[0] <= now, view.expiring()), _AT_ONCE))
            first = [] if due else list(islice(view.expiring(), 1))
            gone = [b for when, b in due if (entry := view.block(b)) is not None and entry.expires_at == when]
        if len(due) < _AT_ONCE:
            self._stepped_at = now
        if not due:
            return min(max(first[0][0] - now, 1.0), _LOOK_AGAIN_S) if first else None
        with self._ledger.change() as change:
            for block_id in gone:
                self._ledger.unlink(change, block_id, Reason.EXPIRED)
            for when, block_id in due:  # also what a kvtier that knows no expiry has left behind
                change.txn.del_expiry(when, block_id)
        self._signals.count("expired", len(gone))
        return 0.0
