"""Which blocks a tier takes in, by its policy and its write budget, so that a chain is taken in from its start.

Threads: the store's background worker only, except :meth:`Gate.used`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from kvtier.events import Signals, WriteBudgetSpent
from kvtier.index.lmdb_index import LmdbIndex, View
from kvtier.policy.admission import DEPTH_MAX, AlwaysAdmit
from kvtier.policy.base import NO_PARENT, AdmissionPolicy, Candidate
from kvtier.policy.recent import RecentIds
from kvtier.tiers.budget import Budget
from kvtier.tiers.drafts import NewBlock
from kvtier.tiers.order import policy_disabled

#: A block that no disk tier took in yet, if RAM has it.
InRam = Callable[[int], NewBlock | None]


class Gate:
    """One tier's policy and budget. A policy that raises is not asked again: all is admitted then."""

    def __init__(self, name: str, policy: AdmissionPolicy, budget: Budget | None, signals: Signals) -> None:
        self._name = name
        self._policy = policy
        self._signals = signals
        self.budget = budget
        self.needed = RecentIds() if type(policy) is not AlwaysAdmit else None  # what blocks taken in extend

    @property
    def is_open(self) -> bool:
        """Whether it takes in everything."""
        return self.budget is None and type(self._policy) is AlwaysAdmit

    def wants(self, block: Candidate) -> bool:
        """Whether the policy takes the block in; the budget is not asked."""
        try:
            return bool(self._policy.admit(block))
        except Exception as e:
            self._disable(e)
            return True

    def used(self, block: int) -> bool:
        """A block was read; whether it is worth asking again now. Any thread."""
        try:
            again = bool(self._policy.used(block))
        except Exception as e:
            self._disable(e)
            again = True
        return again and (self.budget is None or self.budget.left > 0)

    def spent(self) -> None:
        """There was something to write, and no budget for it."""
        if self.budget is not None and self.budget.is_news():
            self._signals.emit(WriteBudgetSpent(self._name, self.budget.bytes_a_day))

    def _disable(self, error: Exception) -> None:
        policy, self._policy = self._policy, AlwaysAdmit()
        if type(policy) is not AlwaysAdmit:
            policy_disabled(self._signals, self._name, type(policy).__name__, f"{type(error).__name__}: {error}")


class Admission:
    """Asks gates about blocks that are put, and about blocks that move."""

    def __init__(self, index: LmdbIndex) -> None:
        self._index = index

    def at_put(
        self, gate: Gate, puts: Sequence[NewBlock], in_ram: InRam, overhead: int
    ) -> tuple[list[NewBlock], set[int], set[int]]:
        """What to write for ``puts``: those that are taken in, and before them what they extend, if only RAM has it.
        Second, the blocks that are refused; third, those that come from RAM.

        A block that the tier has keeps its place: of its new value only the budget is asked. ``overhead``: bytes that a
        block needs beside its value.
        """
        if gate.is_open:
            return list(puts), set(), set()
        with self._index.read() as view:
            entries = {p.block_id: view.block(p.block_id) for p in puts}
            unchanged = {p.block_id for p in puts if (e := entries[p.block_id]) is not None and p.is_at(e)}
            chains = _Chains({p.block_id: p for p in puts}, in_ram, view)
            wanted = [p for p in puts if entries[p.block_id] is not None or gate.wants(chains.candidate(p))]
            from_ram = [b for p in wanted for b in chains.waiting_above(p)]
        taken = {b.block_id for b in [*from_ram, *wanted]}
        pulled = {b.block_id: b for b in from_ram if b.block_id not in entries}
        todo = [*pulled.values(), *(p for p in puts if p.block_id in taken)]
        paid = _within(gate, [(b.block_id, b.parent_id, _size(b) + overhead) for b in todo], free=unchanged)
        refused = {p.block_id for p in puts} - paid
        return [b for b in todo if b.block_id in paid], refused, set(pulled) & paid

    def at_move(self, gate: Gate, block_ids: Sequence[int], *, is_hit: bool) -> list[int]:
        """Those of the blocks that are taken in, in order; ``block_ids`` have ancestors first."""
        if gate.is_open:
            return list(block_ids)
        with self._index.read() as view:
            chains = _Chains({}, lambda _: None, view)
            entries = [(b, e) for b in block_ids if (e := view.block(b)) is not None]
            wanted: dict[int, tuple[int, int, int]] = {}
            for block_id, entry in reversed(entries):  # the end of a chain says whether the rest is needed
                candidate = Candidate(block_id, entry.parent_id, entry.nbytes, chains.depth(block_id), is_hit)
                is_needed = gate.needed is not None and gate.needed.discard(block_id)
                if is_needed or gate.wants(candidate):
                    wanted[block_id] = block_id, entry.parent_id, entry.record_len
                    if gate.needed is not None and entry.parent_id != NO_PARENT:
                        gate.needed.add(entry.parent_id)
        paid = _within(gate, [wanted[b] for b in block_ids if b in wanted])
        return [b for b in block_ids if b in paid]


class _Chains:
    """What blocks extend: among those being put, in RAM only, or in the index."""

    def __init__(self, puts: Mapping[int, NewBlock], in_ram: InRam, view: View) -> None:
        self._puts = puts
        self._in_ram = in_ram
        self._view = view
        self._depths: dict[int, int] = {}
        self._waiting: dict[int, NewBlock | None] = {}

    def candidate(self, put: NewBlock) -> Candidate:
        return Candidate(put.block_id, put.parent_id, _size(put), self.depth(put.block_id), is_hit=False)

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

    def waiting_above(self, put: NewBlock) -> list[NewBlock]:
        """What the block extends and what is on no disk tier, from the start."""
        found: dict[int, NewBlock] = {}
        at = put.parent_id
        while at not in found and len(found) < DEPTH_MAX:
            block = self._puts.get(at) or self._only_in_ram(at)
            if block is None:
                break
            found[at] = block
            at = block.parent_id
        return list(found.values())[::-1]

    def _parent(self, block_id: int) -> int | None:
        """None: there is no such block."""
        block = self._puts.get(block_id) or self._only_in_ram(block_id) or self._view.block(block_id)
        return None if block is None else block.parent_id

    def _only_in_ram(self, block_id: int) -> NewBlock | None:
        if block_id == NO_PARENT:
            return None
        if block_id not in self._waiting:
            self._waiting[block_id] = self._in_ram(block_id)
        return self._waiting[block_id]


def _within(gate: Gate, blocks: Iterable[tuple[int, int, int]], free: Iterable[int] = ()) -> set[int]:
    """Those (block, parent, bytes), parents first, for which there is budget: not for what extends one that is left."""
    if gate.budget is None:
        return {block_id for block_id, _, _ in blocks} | set(free)
    left = gate.budget.left
    taken, refused = set(free), set[int]()
    for block_id, parent_id, nbytes in blocks:
        if block_id in taken:
            continue
        if parent_id in refused or nbytes > left:
            refused.add(block_id)
        else:
            taken.add(block_id)
            left -= nbytes
    if refused:
        gate.spent()
    return taken


def _size(block: NewBlock) -> int:
    return sum(block.lengths)
