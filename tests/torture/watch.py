"""Tells a model what a store does that no client has asked for: what it gives up, refuses, removes as expired, and when
it commits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kvtier import Store
from kvtier.index.schema import BlockEntry
from kvtier.tiers.catalog import Change
from tests.crash.oracle import tell_of_losses
from tests.torture.model import Model


def watch(store: Store, keys: list[bytes], model: Model) -> None:
    """From now on, until the store is closed."""
    assert store._back is not None
    by_id = {store._wanted(key, b"").block_id: key for key in keys}
    model.time.opened(store._front.time.now())
    tell_of_losses(
        store,
        lambda block_id: model.dropped([by_id[block_id]]),
        expired=lambda block_id: model.oracle.has_expired(by_id[block_id]),
        refused=lambda block_id: model.was_refused(by_id[block_id]),
    )
    _watch_quarantine(store._back.ladder, by_id, model)
    _watch_commits(store._back.ladder.ledger, by_id, model)


def _watch_quarantine(ladder: Any, by_id: Mapping[int, bytes], model: Model) -> None:
    """What cannot be read and is put again goes, with all blocks that shared it."""
    ledger, quarantine, forget = ladder.ledger, ladder.quarantine, ladder.ledger.forget

    def watched_forget(block_id: int, entry: BlockEntry | None) -> None:
        model.dropped([by_id[block_id]])
        forget(block_id, entry)

    def watched(*args: Any) -> None:
        ledger.forget = watched_forget
        try:
            quarantine(*args)
        finally:
            ledger.forget = forget

    ladder.quarantine = watched


def _watch_commits(ledger: Any, by_id: Mapping[int, bytes], model: Model) -> None:
    change, link, renew = ledger.change, ledger.link, ledger.renew
    renewed: set[bytes] = set()
    stored = model.just_committed

    @contextmanager
    def watched_change() -> Iterator[Change]:
        nonlocal stored
        stored = model.begins_commit()
        stored |= renewed
        renewed.clear()
        with change() as begun:
            yield begun
        model.committed()

    def watched_link(begun: Change, tier: Any, block_id: int, record: Any) -> bool:
        if is_there := link(begun, tier, block_id, record):
            stored.add(by_id[block_id])
        return bool(is_there)

    def watched_renew(expiries: Mapping[int, int]) -> None:
        renewed.update(by_id[block_id] for block_id in expiries)
        renew(expiries)

    ledger.change, ledger.link, ledger.renew = watched_change, watched_link, watched_renew
