"""Replays of one trace, cell by cell: each policy at each capacity, as rows of figures; and the bound."""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kvtier.policy.base import EvictionPolicy
from kvtier.policy.registry import PROMOTION
from kvtier.replay import belady
from kvtier.replay.capacity import Capacity
from kvtier.replay.cost import CostModel
from kvtier.replay.footprint import policy_bytes
from kvtier.replay.hints import Hints
from kvtier.replay.simulate import Simulation, TraceTime
from kvtier.replay.tier import Tier
from kvtier.replay.tier_model import ModeledTier, TierModel
from kvtier.replay.trace import Trace

Factory = Callable[..., EvictionPolicy]


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
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


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
        now = TraceTime()
        sizes = self._model.split(capacity.blocks)
        try:
            tiers = [
                Tier(
                    made(self._policies[tier.eviction or name], now),
                    PROMOTION[tier.promotion](),
                    size,
                    self._ids,
                    self._numbers,
                    self._block_bytes,
                )
                for tier, size in zip(self._model.tiers, sizes, strict=True)
            ]
            outcome = Simulation(self._trace, self._ids, tiers, now).run(self._hints, tick)
            memory = sum(policy_bytes(t.policy) for t in tiers) / max(1, sum(t.used for t in tiers))
        except Exception as e:  # the policy's: the others go on
            return Row(name, capacity.text, capacity.blocks, error=f"{type(e).__name__}: {e}")
        figures = [self._tier_figures(*each) for each in zip(self._model.tiers, tiers, strict=True)]
        return self._row(
            name,
            capacity,
            outcome.leads,
            bytes_moved=sum(t.flows.demoted + t.flows.promoted for t in tiers) * self._block_bytes,
            bytes_written=sum(t.flows.written for t in tiers) * self._block_bytes,
            policy_seconds_per_reference=outcome.policy_seconds / self._trace.references,
            policy_bytes_per_block=memory,
            tiers=figures,
        )

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

    def _tier_figures(self, modeled: ModeledTier, tier: Tier) -> dict[str, Any]:
        flows = {f"bytes_{name}": count * self._block_bytes for name, count in asdict(tier.flows).items()}
        figures: dict[str, Any] = {"name": modeled.name, "capacity_blocks": tier.capacity, **flows}
        for what, speed in (("read", modeled.read_bytes_per_second), ("written", modeled.write_bytes_per_second)):
            if speed is not None:
                figures[f"seconds_{what}"] = flows[f"bytes_{what}"] / speed
        return figures


def missed_seconds(trace: Trace, leads: Sequence[int], cost: CostModel) -> float:
    """To compute all that follows the leads, each token with attention to everything before it."""
    total = 0.0
    for tokens, lead in zip(trace.tokens, leads, strict=True):
        total += cost.seconds(min(lead * trace.block_tokens, tokens), tokens)
    return total


def made(factory: Factory, now: TraceTime) -> EvictionPolicy:
    """A new policy, with the time of the trace as its clock if it takes one."""
    if "now" in inspect.signature(factory).parameters:
        return factory(now=now)
    return factory()
