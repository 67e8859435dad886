"""One tier of a replay: the real policies, a capacity in blocks, and counts of what went in and out. No bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvtier.events import Event, PolicyDisabled, Signals
from kvtier.policy.admission import AlwaysAdmit
from kvtier.policy.base import EvictionPolicy
from kvtier.policy.promotion import AlwaysPromote
from kvtier.tiers.gate import Gate
from kvtier.tiers.promotion import Lift


class PolicyFault(Exception):
    """A policy did what none may do."""


class Faults(Signals):
    """Where a store's parts tell what becomes of them: of a replay, that a policy was given up matters, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def emit(self, event: Event, *, quiet: bool = False) -> None:
        if isinstance(event, PolicyDisabled):
            self.reasons.append(event.reason)


@dataclass
class Flows:
    """Blocks that went in and out of one tier."""

    read: int = 0  #: hits
    written: int = 0
    demoted: int = 0  #: out, to the tier below
    promoted: int = 0  #: out, to the tier above
    dropped: int = 0  #: evicted for good
    not_admitted: int = 0  #: offered, and refused by the tier's admission or budget
    expired: int = 0  #: out, because their time was up
    quota_evicted: int = 0  #: out, to make room for others of their namespace
    over_quota: int = 0  #: offered, and more than their namespace may have


class Tier:
    """See the module. Blocks go by their number outside and by their id inside, as in the store."""

    def __init__(
        self,
        policy: EvictionPolicy,
        capacity: int,
        ids: Sequence[int],
        numbers: Mapping[int, int],
        block_bytes: int,
        *,
        gate: Gate | None = None,
        lift: Lift | None = None,
    ) -> None:
        self.policy = policy
        self.gate = gate or Gate("", AlwaysAdmit(), None, Faults())
        self.lift = lift or Lift("", AlwaysPromote(), Faults())
        self.capacity = capacity
        self.used = 0
        self.flows = Flows()
        self._ids = ids
        self.numbers = numbers
        self.block_bytes = block_bytes

    @property
    def room(self) -> int:
        return self.capacity - self.used

    def make_room(self, count: int) -> list[int]:
        """Evict until ``count`` blocks fit or all that is left is protected; returns who left, in that order."""
        pop, numbers, victims = self.policy.pop, self.numbers, []
        for _ in range(count - self.room):
            victim = pop()
            if victim is None:
                break
            if victim not in numbers:
                raise PolicyFault(f"pop() gave {victim!r}, which is not in the tier")
            victims.append(numbers[victim])
        self.used -= len(victims)
        return victims

    def enter(self, blocks: Sequence[int], parents: Sequence[int], clocks: Sequence[int]) -> None:
        """Take in blocks for which there is room. By block: its parent, and the clock of its last use."""
        add, ids, nbytes = self.policy.add, self._ids, self.block_bytes
        for block in reversed(blocks):  # the end first, as chains are touched
            add(ids[block], ids[parents[block]], clocks[block], nbytes)
        self.used += len(blocks)
        self.flows.written += len(blocks)
        if self.gate.budget is not None:
            self.gate.budget.spend(len(blocks) * nbytes)

    def remove(self, block: int) -> None:
        self.policy.remove(self._ids[block])
        self.used -= 1
