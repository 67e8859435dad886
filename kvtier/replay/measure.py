"""Replays of one trace, cell by cell: each policy at each capacity, as rows of figures; and the bound."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kvtier.replay import belady
from kvtier.replay.capacity import Capacity
from kvtier.replay.cell import Cell, Factory
from kvtier.replay.cost import CostModel
from kvtier.replay.hints import Hints
from kvtier.replay.tier_model import TierModel
from kvtier.replay.trace import Trace


@dataclass(frozen=True)
class Row:
    """One policy at one capacity. What is None is not known: the policy failed, or is the bound, which has no tiers."""

    policy: str
    capacity: str
    capacity_blocks: int
    hit_ratio: float | None = None  #: prefix-correct: blocks of leading runs, of all references
    recompute_missed: float | None = None  #: seconds to compute what was not there
    recompute_missed_ratio: float | None = None  #: of the seconds without any cache
    bytes_moved: int | None = None  #: between tiers
    bytes_written: int | None = None  #: to all tiers
    policy_seconds_per_reference: float | None = None
    policy_bytes_per_block: float | None = None
    tiers: list[dict[str, Any]] = field(default_factory=list)
    namespaces: list[dict[str, Any]] = field(default_factory=list)  #: where there are several
    restores_cut: int | None = None  #: restores that were protected no longer; None: they take no time
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: without what is not in use."""
        unused = {"namespaces": self.namespaces, "restores_cut": self.restores_cut}
        return {k: v for k, v in asdict(self).items() if k not in unused or unused[k] not in ([], None)}


class Replay:
    """What all cells of one trace share."""

    def __init__(
        self, trace: Trace, model: TierModel, policies: Mapping[str, Factory], hints: Hints | None = None
    ) -> None:
        self._trace = trace
        self._model = model
        self._policies = policies
        self._hints = hints
        self._ids = trace.ids()
        self._numbers = {block_id: number for number, block_id in enumerate(self._ids)}
        self._block_bytes = model.bytes_of_block(trace.block_tokens)
        self._seconds_all = sum(model.cost.seconds(0, tokens) for tokens in trace.tokens)

    def bound(self, capacity: Capacity, tick: Callable[[int], None] | None = None) -> Row:
        """Leaf-Belady with all tiers as one."""
        return self._row(belady.NAME, capacity, belady.leads(self._trace, capacity.blocks, tick))

    def run(self, name: str, capacity: Capacity, tick: Callable[[int], None] | None = None) -> Row:
        """One policy. One that raises makes a row that says so."""
        try:
            cell = Cell(self._trace, self._ids, self._numbers, self._model, capacity.blocks, self._made_of(name))
            outcome = cell.run(self._hints, tick)
        except Exception as e:  # the policy's: the others go on
            return Row(name, capacity.text, capacity.blocks, error=f"{type(e).__name__}: {e}")
        flows = [t.flows for t in cell.tiers]
        return self._row(
            name,
            capacity,
            outcome.leads,
            bytes_moved=sum(f.demoted + f.promoted for f in flows) * self._block_bytes,
            bytes_written=sum(f.written for f in flows) * self._block_bytes,
            policy_seconds_per_reference=outcome.policy_seconds / self._trace.references,
            policy_bytes_per_block=cell.policy_bytes_per_block,
            tiers=cell.figures(),
            namespaces=self._by_namespace(outcome.leads),
            restores_cut=cell.restores_cut,
        )

    def _made_of(self, name: str) -> Callable[[str | None], Factory]:
        return lambda other: self._policies[other or name]

    def _by_namespace(self, leads: array[int]) -> list[dict[str, Any]]:
        hits, references, requests = Counter[int](), Counter[int](), Counter[int]()
        for request, lead in enumerate(leads):
            number = self._trace.namespaces[request]
            requests[number] += 1
            hits[number] += lead
            references[number] += self._trace.starts[request + 1] - self._trace.starts[request]
        if len(requests) < 2:
            return []
        return [
            {
                "name": self._trace.namespace_names[n],
                "requests": requests[n],
                "references": references[n],
                "hit_ratio": hits[n] / references[n] if references[n] else 0.0,
            }
            for n in sorted(requests)
        ]

    def _row(self, name: str, capacity: Capacity, leads: array[int], **more: Any) -> Row:
        missed = missed_seconds(self._trace, leads, self._model.cost)
        return Row(
            name,
            capacity.text,
            capacity.blocks,
            hit_ratio=sum(leads) / self._trace.references,
            recompute_missed=missed,
            recompute_missed_ratio=missed / self._seconds_all,
            **more,
        )


def missed_seconds(trace: Trace, leads: Sequence[int], cost: CostModel) -> float:
    """To compute all that follows the leads, each token with attention to everything before it."""
    total = 0.0
    for tokens, lead in zip(trace.tokens, leads, strict=True):
        total += cost.seconds(min(lead * trace.block_tokens, tokens), tokens)
    return total
