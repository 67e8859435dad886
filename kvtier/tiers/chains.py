"""Blocks that extend one another: which of some new ones no prefix would ever need, and how they are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvtier.index.lmdb_index import LmdbIndex
from kvtier.policy.base import NO_PARENT


def known(index: LmdbIndex, block_ids: Iterable[int]) -> list[int]:
    """Those of the blocks that are on some tier. :class:`OSError` as reading the index does."""
    with index.read() as view:
        return [b for b in block_ids if view.block(b) is not None]


def with_descendants(blocks: Iterable[int], parents: Mapping[int, int]) -> set[int]:
    """The blocks, and those that extend them. ``parents``: of each block that may."""
    children: dict[int, list[int]] = {}
    for block_id, parent_id in parents.items():
        children.setdefault(parent_id, []).append(block_id)
    found: set[int] = set()
    left = list(blocks)
    while left:
        if (block_id := left.pop()) not in found:
            found.add(block_id)
            left += children.get(block_id, ())
    return found


def orphans(index: LmdbIndex, parents: Mapping[int, int]) -> set[int]:
    """Those new blocks whose parent is named but neither stored nor new, and what extends them."""
    outside = {p for p in parents.values() if p not in parents} - {NO_PARENT}
    absent = outside - set(known(index, outside))
    return with_descendants(absent, parents) - absent


def in_chains(parents: Mapping[int, int]) -> list[int]:
    """Blocks in the order in which they are read: what extends a block comes behind it, before any other chain.
    ``parents``: of each of them; those that extend one another in a ring come last."""
    children: dict[int, list[int]] = {}
    for block, parent in parents.items():
        children.setdefault(parent, []).append(block)
    order: list[int] = []
    waiting = [b for b, parent in parents.items() if parent not in parents][::-1]
    while waiting:
        order.append(block := waiting.pop())
        waiting += children.get(block, [])[::-1]
    done = set(order)
    return order + [b for b in parents if b not in done]


def by_chain(index: LmdbIndex, block_ids: Iterable[int]) -> list[int]:
    """Blocks of some tier :func:`in_chains`. :class:`OSError` as reading the index does."""
    with index.read() as view:
        entries = {b: view.block(b) for b in block_ids}
    return in_chains({b: e.parent_id if e else NO_PARENT for b, e in entries.items()})
