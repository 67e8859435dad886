"""A tier that is full of what may not go: what fits is written, what does not is lost and said to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kvtier import FlushError, Store
from kvtier.tiers.disk import DiskTier
from tests.crash.scale import SHORT
from tests.stores import KIB, config, fill, names, noise, settle, tier, value_of


def test_of_a_group_that_does_not_fit_the_rest_is_written(tmp_path: Path) -> None:
    settings = config(tmp_path, tier(bytes_max=768 * KIB, segment_bytes=128 * KIB), value_bytes_max=100 * KIB)
    pinned = names(8)
    with Store.open(settings, background=False) as store:
        fill(store, pinned, 50 * KIB)
        store.pin(pinned)
        settle(store)
        for key in names(4, "large"):
            store.put(key, noise(key, 100 * KIB))
        store.put(pinned[0], b"newer")
        store.put(b"small", b"new")
        with pytest.raises(FlushError) as caught:
            store.flush()
        assert not any(store.get(key) for key in names(4, "large"))
        assert caught.value.failed == store.stats().queue.failed == 4
        assert value_of(store.get(pinned[0])) == b"newer"
        assert value_of(store.get(b"small")) == b"new"
        assert value_of(store.get(pinned[1])) == noise(pinned[1], 50 * KIB)
        store.flush()
    with Store.open(settings, background=False) as store:
        assert value_of(store.get(pinned[0])) == b"newer"
        assert value_of(store.get(b"small")) == b"new"


def test_a_block_that_is_evicted_while_it_moves_up_stays_gone(tmp_path: Path) -> None:
    """Making room above takes room below, from the very block that was to move: whoever looked for it then was told
    that it is not there."""
    with Store.open(SHORT["blocks are evicted"].settings(tmp_path), background=False) as store:
        for key in names(60):  # one by one, so that both tiers are full to the brim
            fill(store, [key], 20 * KIB)
        assert store._back is not None
        ladder = store._back.ladder
        oldest, *others = [key for key in names(60) if (info := store.info(key)) and info.tier == "low"]
        some = [store._identity.block_id(b"", key) for key in (oldest, *others[:2])]
        was_there, evict = [], ladder._evict

        def watched(tier: DiskTier, victims: Sequence[int]) -> None:
            evict(tier, victims)
            was_there.append(store.contains(oldest))

        setattr(ladder, "_evict", watched)  # noqa: B010
        ladder.promote(some)  # more than there can be room for above
        assert was_there[0] is False
        assert not store.contains(oldest)
