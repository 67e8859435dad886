"""Blocks that extend one another, of which nothing but their parents is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


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
