"""Drives eviction policies with a trace, as the store drives them.

A request is atomic. What of its chain is there, from the start without a gap, is its *lead*; it is touched, end
first. Then what is missing comes into the first tier, in groups: room is made for a group, then it comes in. What
leaves a tier goes to the next one down, and a block that was found in a lower tier may go one up, as in the store's
ladder. In the last tier, where to leave is to be lost, the request's own blocks are held: a chain that is too long
keeps its beginning.

Victims are one group at most ahead of the blocks that replace them, so that to a policy its tier is full.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtier.policy.base import Hint
from kvtier.replay.hints import Hints
from kvtier.replay.tier import PolicyFault, Tier
from kvtier.replay.trace import Trace
from kvtier.tiers.advice import Advice
from kvtier.tiers.gate import Offer

GROUP_BLOCKS = 16
_REQUESTS_AT_ONCE = 256  # between two looks at the clock
_LEAVING = 255  # the place of a block between two tiers


class TraceTime:
    """The time of the request that is replayed, in seconds: the clock of policies that use ``now``, and of all else."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds

    def time(self) -> float:
        return self.seconds


@dataclass(frozen=True)
class Outcome:
    """What a replay counted."""

    leads: array[int]  #: by request
    policy_seconds: float  #: CPU time of all of it: calls to policies, and the loops around them


class Simulation:
    """One pass of a trace over a ladder of tiers, fastest first."""

    def __init__(self, trace: Trace, ids: Sequence[int], tiers: Sequence[Tier], now: TraceTime) -> None:
        self._trace = trace
        self._numbers = tiers[0].numbers
        self._block_bytes = tiers[0].block_bytes
        self._is_whole = len(tiers) == 1  # what follows a block that is missing is missing too
        self._ids = ids
        self._tiers = tiers
        self._now = now
        self._where = bytearray(trace.unique + 1)  # by block: its tier, from 1; 0: nowhere
        self._touches = [_nowhere, *(tier.policy.touch for tier in tiers)]
        self._capacity = sum(tier.capacity for tier in tiers)
        self._clock = 0
        self._again: list[int] = []  # what was read from RAM, and may come in now
        self._advice = Advice()
        self._clocks = array("Q", [0]) * (trace.unique + 1)  # by block: of its last use

    def run(self, hints: Hints | None = None, tick: Callable[[int], None] | None = None) -> Outcome:
        """Replay all. ``tick`` is told the number of requests done, now and then. Raises what a policy raises."""
        leads, spent = array("I"), 0.0
        for start in range(0, len(self._trace), _REQUESTS_AT_ONCE):
            began = time.thread_time()  # seldom: it may take as long as many requests
            for request in range(start, min(start + _REQUESTS_AT_ONCE, len(self._trace))):
                leads.append(self._request(request, hints))
            spent += time.thread_time() - began
            if tick:
                tick(start)
        for tier in self._tiers:
            if len(tier.policy) != tier.used:
                raise PolicyFault(f"len() is {len(tier.policy)} with {tier.used} blocks in the tier")
        return Outcome(leads, spent)

    def _request(self, request: int, hints: Hints | None) -> int:
        chain = self._trace.chain(request)
        self._now.seconds = self._trace.times[request]
        self._begin(request, chain)
        lead = self._lead(chain)
        self._use(chain, lead)
        if hints and (hint := hints.hints[request]):
            self._hint(chain[hints.since[request] :], hint)
        return lead

    def _begin(self, request: int, chain: Sequence[int]) -> None:
        """What is due when a request comes."""

    def _hint(self, blocks: Sequence[int], hint: Hint) -> None:
        if len(self._tiers) > 1:  # so that it goes with a block from tier to tier
            self._advice.take(b"", [self._ids[b] for b in blocks if self._where[b]], hint)
        for block in reversed(blocks):
            if at := self._where[block]:
                self._tiers[at - 1].policy.hint(self._ids[block], hint)

    def _lead(self, chain: Sequence[int]) -> int:
        where, lead = self._where, 0
        for block in chain:
            if not where[block]:
                break
            lead += 1
        return lead

    def _use(self, chain: array[int], lead: int) -> None:
        movers = self._movers(self._read(chain[:lead]))
        if lead == len(chain) and not movers and not self._again:
            return
        last = self._tiers[-1].policy
        held = [self._ids[b] for b in self._ends(chain, lead)]
        for block_id in held:
            last.hold(block_id)
        for at, blocks in movers:
            self._promote(at, blocks)
        self._store(chain, lead)
        for block_id in held:
            last.release(block_id)

    def _read(self, lead: Sequence[int]) -> Sequence[int]:
        """Blocks are used; returns those that were read from tiers."""
        self._touch(lead)
        self._count_reads(lead)
        return lead

    def _touch(self, blocks: Sequence[int]) -> None:
        """Blocks on tiers were used, in this order."""
        ids, where, clocks, touches, clock = self._ids, self._where, self._clocks, self._touches, self._clock
        for block in reversed(blocks):
            clock += 1
            clocks[block] = clock
            touches[where[block]](ids[block], clock)
        self._clock = clock

    def _store(self, chain: Sequence[int], lead: int) -> None:
        """Bring in what follows the lead."""
        self._bring_in(chain[lead : self._capacity])

    def _bring_in(self, blocks: Sequence[int]) -> None:
        """Put blocks of one chain into the first tier, as far as there is room."""
        where, clocks, clock = self._where, self._clocks, self._clock
        for start in range(0, len(blocks), GROUP_BLOCKS):
            group = blocks[start : start + GROUP_BLOCKS]
            for block in reversed(group):
                clock += 1
                clocks[block] = clock
            self._clock = clock
            self._put(0, group if self._is_whole else self._absent(group))
            if not where[group[-1]] or (start and not where[blocks[start - 1]]):
                break  # there was no room for all: the rest would be of no use

    def _absent(self, group: Sequence[int]) -> list[int]:
        """Those that are on no tier; the others, whose parents left the tier below before them, are touched."""
        for block in reversed(group):
            self._touches[self._where[block]](self._ids[block], self._clocks[block])
        return [b for b in group if not self._where[b]]

    def _count_reads(self, blocks: Sequence[int]) -> None:
        if len(self._tiers) == 1:
            self._tiers[0].flows.read += len(blocks)
        else:
            for block in blocks:
                self._tiers[self._where[block] - 1].flows.read += 1

    def _ends(self, chain: Sequence[int], lead: int) -> list[int]:
        """Of the lead: what to hold in the last tier so that all of it that is there stays while others come down."""
        where, here = self._where, len(self._tiers)
        if here == 1:
            return []  # what comes in holds what it extends
        there = [where[b] == here for b in chain[:lead]]
        return [
            b for b, is_there, more in zip(chain, there, [*there[1:], False], strict=False) if is_there and not more
        ]

    def _movers(self, lead: Sequence[int]) -> list[tuple[int, list[int]]]:
        """What is to go one tier up, with the tier it is on."""
        found = []
        for at in range(1, len(self._tiers)):
            takes = self._tiers[at].lift.takes
            if blocks := [b for b in lead if self._where[b] == at + 1 and takes(self._ids[b])]:
                found.append((at, blocks))
        return found

    def _promote(self, at: int, blocks: Sequence[int]) -> None:
        upper, lower = self._tiers[at - 1], self._tiers[at]
        blocks = self._admitted(at - 1, blocks, is_hit=True)
        for start in range(0, len(blocks), GROUP_BLOCKS):
            group = blocks[start : start + GROUP_BLOCKS]
            victims = upper.make_room(len(group))
            moved = [b for b in group[: upper.room] if self._where[b] == at + 1]
            for block in moved:
                lower.remove(block)
            lower.flows.promoted += len(moved)
            self._enter(at - 1, moved)
            self._demote(at - 1, victims)

    def _put(self, at: int, group: Sequence[int]) -> None:
        """Bring blocks, ancestors first, into a tier; those that find no room are nowhere after that."""
        tier = self._tiers[at]
        if len(group) > tier.capacity:
            for start in range(0, len(group), tier.capacity):
                self._put(at, group[start : start + tier.capacity])
            return
        if tier.room < len(group):
            held = self._parents_of(group) if at + 1 == len(self._tiers) else []
            for block_id in held:
                tier.policy.hold(block_id)
            victims = tier.make_room(len(group))
            if tier.room < len(group) and self._let_go():
                victims += tier.make_room(len(group))
            for block_id in held:
                tier.policy.release(block_id)
            self._demote(at, victims)
        self._enter(at, group[: tier.room])

    def _parents_of(self, group: Sequence[int]) -> list[int]:
        """Ids of what the group extends in the last tier."""
        parents, where, last = self._trace.parents, self._where, len(self._tiers)
        return [self._ids[b] for b in {parents[b] for b in group}.difference(group) if where[b] == last]

    def _enter(self, at: int, blocks: Sequence[int]) -> None:
        self._tiers[at].enter(blocks, self._trace.parents, self._clocks)
        for block in blocks:
            self._where[block] = at + 1
        if self._advice:
            for block in blocks:
                if (hint := self._advice.of(b"", self._ids[block])) is not None:
                    self._tiers[at].policy.hint(self._ids[block], hint)

    def _demote(self, at: int, victims: list[int]) -> None:
        flows, where = self._tiers[at].flows, self._where
        leaving = _LEAVING if at + 1 < len(self._tiers) else 0
        for block in victims:
            if where[block] != at + 1:
                raise PolicyFault(f"pop() gave {self._ids[block]}, which is not in the tier")
            where[block] = leaving
        lost = victims
        if victims and at + 1 < len(self._tiers):
            wanted = self._admitted(at + 1, victims[::-1], is_hit=False)
            for block in victims:
                where[block] = 0
            self._put(at + 1, wanted)
            lost = [b for b in victims if not where[b]]
        flows.demoted += len(victims) - len(lost)
        flows.dropped += len(lost)
        self._lose(lost)

    def _admitted(self, at: int, blocks: Sequence[int], *, is_hit: bool) -> Sequence[int]:
        """Those of the blocks, ancestors first, that a tier takes in from another one."""
        gate, ids = self._tiers[at].gate, self._ids
        if gate.is_open:
            return blocks
        numbers = {ids[b]: b for b in blocks}
        taken = [numbers[i] for i in gate.at_move([*map(self._offer, blocks)], self._parent_of, is_hit=is_hit)]
        self._tiers[at].flows.not_admitted += len(blocks) - len(taken)
        return taken

    def _offer(self, block: int) -> Offer:
        return Offer(self._ids[block], self._ids[self._trace.parents[block]], self._block_bytes, self._block_bytes)

    def _parent_of(self, block_id: int) -> int | None:
        """As the index of a store knows it."""
        block = self._numbers.get(block_id, 0)
        return self._ids[self._trace.parents[block]] if self._where[block] else None

    def _lose(self, blocks: Sequence[int]) -> None:
        """Blocks are on no tier any more."""
        if self._advice:
            self._advice.forget(b"", [self._ids[b] for b in blocks])

    def _let_go(self) -> bool:
        """All that is left is protected: whether something is not any more."""
        return False


def _nowhere(block: int, clock: int) -> None:
    """The touch of a block that is on no tier."""
