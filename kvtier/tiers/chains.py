"""Blocks of the index: which of some new ones no prefix would ever need, and in which order others are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvtier.index.lmdb_index import LmdbIndex
from kvtier.policy.base import NO_PARENT
from kvtier.tiers.forest import in_chains, with_descendants


def known(index: LmdbIndex, block_ids: Iterable[int]) -> list[int]:
    """Those of the blocks that are on some tier. :class:`OSError` as reading the index does."""
    with index.read() as view:
        return [b for b in block_ids if view.block(b) is not None]


def orphans(index: LmdbIndex, parents: Mapping[int, int]) -> set[int]:
    """Those new blocks whose parent is named but neither stored nor new, and what extends them."""
    outside = {p for p in parents.values() if p not in parents} - {NO_PARENT}
    absent = outside - set(known(index, outside))
    return with_descendants(absent, parents) - absent


def by_chain(index: LmdbIndex, block_ids: Iterable[int]) -> list[int]:
    """Blocks of some tier :func:`in_chains`. :class:`OSError` as reading the index does."""
    with index.read() as view:
        entries = {b: view.block(b) for b in block_ids}
    return in_chains({b: e.parent_id if e else NO_PARENT for b, e in entries.items()})
