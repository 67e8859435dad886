"""Which blocks a tier takes in, by its policy and its write budget, so that a chain is taken in from its start.

Nothing here knows where blocks are kept: who asks says what they extend and what it takes to write them.
Threads: one at a time, except :meth:`Gate.used`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from kvtier.events import Signals, WriteBudgetSpent
from kvtier.policy.admission import DEPTH_MAX, AlwaysAdmit
from kvtier.policy.base import NO_PARENT, AdmissionPolicy, Candidate
from kvtier.policy.guarded import policy_disabled
from kvtier.policy.recent import RecentIds
from kvtier.tiers.budget import Budget


class Offer(NamedTuple):
    """A block that a tier could take in."""

    block_id: int
    parent_id: int
    nbytes: int  #: of its value
    cost: int  #: bytes that are written if it is taken in


class Admitted(NamedTuple):
    """What becomes of blocks that are put."""

    todo: list[int]  #: to write, ancestors first
    refused: set[int]
    pulled: set[int]  #: of ``todo``, what was waiting in RAM


#: What a block on some tier extends; None: it is on none.
ParentOf = Callable[[int], int | None]
#: A block that no tier took in yet, if RAM has it.
WaitingInRam = Callable[[int], Offer | None]


class Gate:
    """One tier's policy and budget. A policy that raises is not asked again: all is admitted then."""

    def __init__(self, name: str, policy: AdmissionPolicy, budget: Budget | None, signals: Signals) -> None:
        self._name = name
        self._policy = policy
        self._signals = signals
        self.budget = budget
        self._asked = 0  # bytes of blocks that were worth it since the last answer: all of them want the same budget
        self._needed = RecentIds() if type(policy) is not AlwaysAdmit else None  # what blocks taken in extend

    @property
    def is_open(self) -> bool:
        """Whether it takes in everything."""
        return self.budget is None and type(self._policy) is AlwaysAdmit

    def used(self, block: int, cost: int = 0) -> bool:
        """A block was read; whether it is worth asking again now, which would write ``cost`` bytes. Any thread."""
        try:
            again = bool(self._policy.used(block))
        except Exception as e:
            self._disable(e)
            again = True
        if not again or self.budget is None:
            return again
        if self.budget.left - self._asked < max(cost, 1):
            return False
        self._asked += cost
        return True

    def at_put(
        self,
        puts: Sequence[Offer],
        waiting: WaitingInRam,
        parent_of: ParentOf,
        stored: Collection[int],
        unchanged: Collection[int],
    ) -> Admitted:
        """What to write for ``puts``: those that are taken in, and before them what they extend, if only RAM has it.

        What is ``stored`` keeps its place: of its new value only the budget is asked, and not even that if it is
        ``unchanged``.
        """
        self._asked = 0
        chains = _Chains({p.block_id: p for p in puts}, waiting, parent_of)
        wanted = [p for p in puts if p.block_id in stored or self._wants(p, chains.depth(p.block_id), is_hit=False)]
        above = chains.waiting_above(wanted)
        taken = {b.block_id for b in [*above, *wanted]}
        ours = {p.block_id for p in puts}
        pulled = {b.block_id: b for b in above if b.block_id not in ours}
        todo = [*pulled.values(), *(p for p in puts if p.block_id in taken)]
        paid = self._within_budget(todo, unchanged)
        return Admitted([b.block_id for b in todo if b.block_id in paid], ours - paid, set(pulled) & paid)

    def at_move(self, blocks: Sequence[Offer], parent_of: ParentOf, *, is_hit: bool) -> list[int]:
        """Those of the blocks that are taken in, in order; ``blocks`` have ancestors first."""
        if self.is_open:
            return [b.block_id for b in blocks]
        chains = _Chains({}, lambda _: None, parent_of)
        wanted = set()
        for block in reversed(blocks):  # the end of a chain says whether the rest is needed
            is_needed = self._needed is not None and self._needed.discard(block.block_id)
            if is_needed or self._wants(block, chains.depth(block.block_id), is_hit):
                wanted.add(block.block_id)
                if self._needed is not None and block.parent_id != NO_PARENT:
                    self._needed.add(block.parent_id)
        paid = self._within_budget(b for b in blocks if b.block_id in wanted)
        return [b.block_id for b in blocks if b.block_id in paid]

    def _wants(self, block: Offer, depth: int, is_hit: bool) -> bool:
        """Whether the policy takes the block in; the budget is not asked."""
        try:
            return bool(self._policy.admit(Candidate(block.block_id, block.parent_id, block.nbytes, depth, is_hit)))
        except Exception as e:
            self._disable(e)
            return True

    def _within_budget(self, blocks: Iterable[Offer], free: Iterable[int] = ()) -> set[int]:
        """Those, parents first, for which there is budget: not for what extends one that is left."""
        taken, refused = set(free), set[int]()
        if self.budget is None:
            return taken.union(b.block_id for b in blocks)
        left = self.budget.left
        for block in blocks:
            if block.block_id in taken:
                continue
            if block.parent_id in refused or block.cost > left:
                refused.add(block.block_id)
            else:
                taken.add(block.block_id)
                left -= block.cost
        if refused and self.budget.is_news():
            self._signals.emit(WriteBudgetSpent(self._name, self.budget.bytes_a_day))
        return taken

    def _disable(self, error: Exception) -> None:
        policy, self._policy = self._policy, AlwaysAdmit()
        if type(policy) is not AlwaysAdmit:
            policy_disabled(self._signals, self._name, type(policy).__name__, f"{type(error).__name__}: {error}")


class _Chains:
    """What blocks extend: among those being put, in RAM only, or on some tier."""

    def __init__(self, puts: Mapping[int, Offer], waiting: WaitingInRam, parent_of: ParentOf) -> None:
        self._puts = puts
        self._ask = waiting
        self._parent_of = parent_of
        self._depths: dict[int, int] = {}
        self._waiting: dict[int, Offer | None] = {}

    def depth(self, block_id: int) -> int:
        """Blocks from the start of the chain to this one."""
        path: dict[int, None] = {}
        at = block_id
        while at not in path and at not in self._depths and len(path) < DEPTH_MAX:
            parent = self._parent(at)
            if parent is None:
                break
            path[at] = None
            at = parent
        depth = self._depths.get(at, DEPTH_MAX if len(path) == DEPTH_MAX else 0)
        for above in reversed(path):
            depth = min(depth + 1, DEPTH_MAX)
            self._depths[above] = depth
        return depth

    def waiting_above(self, puts: Sequence[Offer]) -> list[Offer]:
        """What the blocks extend and what is on no tier, ancestors first."""
        found: list[Offer] = []
        seen: set[int] = set()
        for put in puts:
            path: list[Offer] = []
            at = put.parent_id
            while at not in seen and len(path) < DEPTH_MAX:
                block = self._puts.get(at) or self._only_in_ram(at)
                if block is None:
                    break
                seen.add(at)
                path.append(block)
                at = block.parent_id
            found += reversed(path)
        return found

    def _parent(self, block_id: int) -> int | None:
        """None: there is no such block."""
        block = self._puts.get(block_id) or self._only_in_ram(block_id)
        return self._parent_of(block_id) if block is None else block.parent_id

    def _only_in_ram(self, block_id: int) -> Offer | None:
        if block_id == NO_PARENT:
            return None
        if block_id not in self._waiting:
            self._waiting[block_id] = self._ask(block_id)
        return self._waiting[block_id]
