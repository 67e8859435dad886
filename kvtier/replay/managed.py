"""A replay with what a store has around its eviction: RAM, admission, times to live, pins, quotas, restores that last.

As in the store, what is put goes into RAM and, if the first tier takes it in, to that tier at once; what it refuses is
in RAM only. What is read from RAM is no use on the tiers. What is read from a tier comes into RAM.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from kvtier.clock import StoreTime
from kvtier.policy.base import Hint
from kvtier.replay.memory import Memory
from kvtier.replay.rooms import Entry, Rooms, cost, orphans
from kvtier.replay.simulate import Simulation, TraceTime
from kvtier.replay.tier import Faults, Tier
from kvtier.replay.trace import Trace
from kvtier.tiers.gate import Offer
from kvtier.tiers.guards import Guards


@dataclass(frozen=True)
class Care:
    """What is asked for the blocks of one namespace."""

    namespace: bytes = b""
    ttl_s: int = 0  #: 0: no limit
    pin_blocks: int = 0  #: so many from the start of each chain


class Managed(Simulation):
    """See the module. ``cares``: by namespace, as the trace numbers them; ``speeds``: by tier, in bytes a second."""

    def __init__(
        self,
        trace: Trace,
        ids: Sequence[int],
        tiers: Sequence[Tier],
        now: TraceTime,
        cares: Sequence[Care],
        *,
        memory: Memory | None = None,
        rooms: Rooms | None = None,
        speeds: Sequence[int | None] = (),
        time: StoreTime,
        faults: Faults,
    ) -> None:
        super().__init__(trace, ids, tiers, now)
        self._memory = memory
        self._rooms = rooms
        self._cares = cares
        self._care = cares[0]
        self._time = time
        self._due = array("Q", bytes(8 * (trace.unique + 1)))  # by block: when it expires; 0: never
        self._dues: list[tuple[int, int]] = []  # a heap of times and blocks; what is not so any more is void
        self._pinned = bytearray(trace.unique + 1)
        self._speeds = speeds if any(speeds) else ()
        self._reading: list[tuple[float, int, bytes, list[int]]] = []  # a heap of restores by their ends
        self.guards = Guards(self._hold, faults)

    # -- what is due ------------------------------------------------------------------------------------------------

    def _begin(self, request: int, chain: Sequence[int]) -> None:
        self._care = self._cares[self._trace.namespaces[request]]
        self._again = []
        while self._dues and self._dues[0][0] <= self._time.now():
            when, block = heapq.heappop(self._dues)
            if self._due[block] == when and (at := self._where[block]):
                self._tiers[at - 1].flows.expired += 1
                self._drop(block)
        while self._reading and self._reading[0][0] <= self._now.seconds:
            _, _, namespace, held = heapq.heappop(self._reading)
            self.guards.guard(namespace, held, -1)
        for block in chain[: self._care.pin_blocks]:
            if not self._pinned[block]:
                self._pinned[block] = 1
                self._hold(self._care.namespace, [self._ids[block]], 1)
                if self._memory:
                    self._memory.tier.policy.hold(self._ids[block])

    def _hold(self, namespace: bytes, block_ids: Sequence[int], by: int) -> None:
        orders = [self._rooms.orders] if self._rooms else []
        for block_id in block_ids:
            for tier in self._tiers:
                (tier.policy.hold if by > 0 else tier.policy.release)(block_id)
            for order in orders:
                (order.hold if by > 0 else order.release)(namespace, block_id)

    def _let_go(self) -> bool:
        return self.guards.let_go() > 0

    # -- reading ----------------------------------------------------------------------------------------------------

    def _lead(self, chain: Sequence[int]) -> int:
        if self._memory is None:
            return super()._lead(chain)
        lead = 0
        for block in chain:
            if not self._where[block] and not self._memory.has(self._ids[block]):
                break
            lead += 1
        return lead

    def _read(self, lead: Sequence[int]) -> Sequence[int]:
        memory = self._memory
        below = [b for b in reversed(lead) if not (memory and self._in_memory(memory, b))][::-1]
        self._again.reverse()
        super()._read(below)
        self._used(below)
        self._guard(lead, below)
        if memory:
            for block in below:
                memory.put(self._care.namespace, self._ids[block], self._parent_id(block), self._due[block])
        return below

    def _in_memory(self, memory: Memory, block: int) -> bool:
        block_id = self._ids[block]
        found = memory.read(block_id)
        if found and memory.is_waiting(block_id) and self._tiers[0].gate.used(block_id):
            memory.taken(block_id)
            self._again.append(block)
        return found

    def _used(self, blocks: Sequence[int]) -> None:
        """Blocks on tiers were used: tell who decides on them later."""
        for at, tier in enumerate(self._tiers[1:], 2):
            if not tier.gate.is_open:
                for block in reversed(blocks):
                    if self._where[block] != at:
                        tier.gate.used(self._ids[block])
        if self._rooms:
            for block in reversed(blocks):
                self._rooms.touch(self._ids[block], self._clocks[block])

    def _guard(self, lead: Sequence[int], below: Sequence[int]) -> None:
        """Protect what is read for as long as that lasts: each tier's part of the chain, at its end."""
        seconds, ends = 0.0, dict[int, int]()
        for block in below if self._speeds else ():
            at = self._where[block] - 1
            seconds += self._block_bytes / (self._speeds[at] or float("inf"))
            ends[at] = self._ids[block]
        if seconds:
            held = list(dict.fromkeys([*ends.values(), self._ids[lead[-1]]]))
            self.guards.guard(self._care.namespace, held, 1)
            entry = self._now.seconds + seconds, len(self._reading), self._care.namespace, held
            heapq.heappush(self._reading, entry)

    # -- writing ----------------------------------------------------------------------------------------------------

    def _store(self, chain: Sequence[int], lead: int) -> None:
        expiries = dict.fromkeys(chain[lead:], self._time.after(self._care.ttl_s))
        if self._memory:
            for block, when in expiries.items():
                self._memory.put(self._care.namespace, self._ids[block], self._parent_id(block), when)
        todo = self._taken_in([*expiries])
        present = [b for b in todo if self._where[b]]
        self._touch(present)
        self._used(present)
        absent = self._with_room([b for b in todo if not self._where[b]], todo)
        self._bring_in(absent[: self._capacity])
        arrived = [b for b in absent if self._where[b]]
        if self._rooms:
            for block in arrived:
                entry = Entry(self._care.namespace, self._parent_id(block), self._clocks[block], self._block_bytes)
                self._rooms.arrive(self._ids[block], entry)
        for block in (*arrived, *present):
            self._due[block] = when = expiries.get(block, self._due[block])
            if when:
                heapq.heappush(self._dues, (when, block))

    def _taken_in(self, new: Sequence[int]) -> list[int]:
        """What the first tier takes in of what is put, and with it of what waits in RAM."""
        top, memory = self._tiers[0], self._memory
        puts = [*self._again, *new]
        if top.gate.is_open:
            return puts
        stored = {self._ids[b] for b in puts if self._where[b]}
        admitted = top.gate.at_put([*map(self._offer, puts)], self._waiting, self._parent_of, stored, stored)
        top.flows.not_admitted += len(admitted.refused)
        if memory:
            for block in self._again:
                self._due[block] = memory.expiry(self._ids[block])
            for block_id in admitted.refused:
                memory.wait(block_id)
            for block_id in admitted.pulled:
                memory.taken(block_id)
                self._due[self._numbers[block_id]] = memory.expiry(block_id)
        return [self._numbers[i] for i in admitted.todo]

    def _waiting(self, block_id: int) -> Offer | None:
        is_waiting = self._memory is not None and self._memory.is_waiting(block_id)
        return self._offer(self._numbers[block_id]) if is_waiting else None

    def _with_room(self, absent: Sequence[int], stay: Sequence[int]) -> list[int]:
        """Those for which there is room in their namespace, or could be in the first tier."""
        top, offers = self._tiers[0], [self._offer(b) for b in absent]
        idle = orphans(offers, lambda i: self._where[self._numbers[i]] > 0)
        if self._rooms:
            counted = [o._replace(cost=cost(self._block_bytes)) for o in offers]
            over = self._rooms.refused(
                self._care.namespace, counted, idle, {self._ids[b] for b in stay}, self._drop_over_quota
            )
            top.flows.over_quota += len(over)
            absent = [b for b in absent if self._ids[b] not in over]
        if top.room < len(absent):  # orphans displace nothing
            top.flows.not_admitted += sum(self._ids[b] in idle for b in absent)
            absent = [b for b in absent if self._ids[b] not in idle]
        return list(absent)

    def _drop_over_quota(self, block_id: int) -> int:
        block = self._numbers[block_id]
        self._tiers[self._where[block] - 1].flows.quota_evicted += 1
        self._drop(block)
        return cost(self._block_bytes)

    # -- leaving ----------------------------------------------------------------------------------------------------

    def _drop(self, block: int) -> None:
        self._tiers[self._where[block] - 1].remove(block)
        self._where[block] = 0
        self._lose([block])

    def _lose(self, blocks: Sequence[int]) -> None:
        super()._lose(blocks)
        if self._rooms:
            for block in blocks:
                self._rooms.leave(self._ids[block])

    def _hint(self, blocks: Sequence[int], hint: Hint) -> None:
        super()._hint(blocks, hint)
        if self._memory:
            self._memory.tier.hint(self._care.namespace, [self._ids[b] for b in reversed(blocks)], hint)

    def _parent_id(self, block: int) -> int:
        return self._ids[self._trace.parents[block]]
