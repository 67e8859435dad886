"""Leaf-Belady: what no eviction policy can beat, computed with the future in hand.

Of the blocks that were there before a request and those it brings, the ones whose next use is nearest stay (MIN with
bypass: a new block need not come in). A block's next use is never later than that of a block behind it, so the farthest
one is a leaf, the deeper first among equals, and prefixes stay whole.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable

from kvtier.replay.trace import Trace

NAME = "leaf-belady"

_NUMBER_BITS = 32
_DEPTH_MAX = (1 << _NUMBER_BITS) - 1


def leads(trace: Trace, capacity: int, tick: Callable[[int], None] | None = None) -> array[int]:
    """By request: how many leading blocks are hits with a cache of ``capacity``. ``tick`` is told requests done."""
    uses = _next_uses(trace)
    never = len(trace)
    due = array("I", bytes(4 * (trace.unique + 1)))  # by block: its next use as a request's number; 0: not here
    heap: list[int] = []  # the farthest next use first, the deepest of those first; old entries are void
    result = array("I")
    here = 0
    for number in range(len(trace)):
        start, chain = trace.starts[number], trace.chain(number)
        lead = 0
        for block in chain:
            if not due[block]:
                break
            lead += 1
        result.append(lead)
        here += len(chain) - lead
        for depth, block in enumerate(chain):
            due[block] = use = uses[start + depth]
            heapq.heappush(heap, _entry(never - use, depth, block))
        while here > capacity:
            entry = heapq.heappop(heap)
            block = entry & (1 << _NUMBER_BITS) - 1
            if due[block] == never - (entry >> 2 * _NUMBER_BITS):
                due[block] = 0
                here -= 1
        if tick and not number & 255:
            tick(number)
    return result


def _entry(nearness: int, depth: int, block: int) -> int:
    return (nearness << _NUMBER_BITS | _DEPTH_MAX - depth) << _NUMBER_BITS | block


def _next_uses(trace: Trace) -> array[int]:
    """By reference: the number of the next request that has its block; the number of requests if there is none."""
    never = len(trace)
    next_of = array("I", [never]) * (trace.unique + 1)
    uses = array("I", bytes(4 * len(trace.blocks)))
    for number in range(never - 1, -1, -1):
        for at in range(trace.starts[number], trace.starts[number + 1]):
            block = trace.blocks[at]
            uses[at] = next_of[block]
            next_of[block] = number
    return uses
