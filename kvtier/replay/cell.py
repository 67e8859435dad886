"""One replay: the parts of a store that a tier model asks for, with one policy at one capacity."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kvtier.clock import StoreTime
from kvtier.config.tier_model import ModeledTier
from kvtier.policy import registry
from kvtier.policy.base import EvictionPolicy
from kvtier.replay.footprint import policy_bytes
from kvtier.replay.hints import Hints
from kvtier.replay.managed import Care, Managed
from kvtier.replay.memory import Memory
from kvtier.replay.rooms import Rooms
from kvtier.replay.simulate import Outcome, Simulation, TraceTime
from kvtier.replay.tier import Faults, PolicyFault, Tier
from kvtier.replay.tier_model import TierModel
from kvtier.replay.trace import Trace
from kvtier.tiers.budget import Budget
from kvtier.tiers.gate import Gate
from kvtier.tiers.promotion import Lift

Factory = Callable[..., EvictionPolicy]


class Cell:
    """See the module. ``policy``: what makes the policy of this name, or (None) the one that is replayed."""

    def __init__(
        self,
        trace: Trace,
        ids: Sequence[int],
        numbers: Mapping[int, int],
        model: TierModel,
        capacity: int,
        policy: Callable[[str | None], Factory],
    ) -> None:
        self._model = model
        self._block_bytes = model.bytes_of_block(trace.block_tokens)
        self._now = TraceTime()
        self._faults = Faults()
        self._cares = _cares(trace, model)
        self._quotas = model.quotas(capacity, self._block_bytes)
        time, sizes = StoreTime(self._now), model.split(capacity)
        self._memory: Memory | None = None
        if (ram := model.said.ram) is not None:
            made = self._made(policy(ram.eviction))
            self._memory = Memory(made, sizes.pop(0), self._block_bytes, time, self._faults)
        self.tiers = [
            Tier(
                self._made(policy(tier.eviction)),
                size,
                ids,
                numbers,
                self._block_bytes,
                gate=self._gate(tier),
                lift=Lift(tier.name, registry.promotion(tier.promotion)(), self._faults),
            )
            for tier, size in zip(model.tiers, sizes, strict=True)
        ]
        self._simulation = Simulation(trace, ids, self.tiers, self._now)
        if self._has_rules:
            self._simulation = Managed(
                trace,
                ids,
                self.tiers,
                self._now,
                self._cares,
                memory=self._memory,
                rooms=Rooms(self._quotas) if self._quotas else None,
                speeds=[t.read_bytes_per_second for t in model.tiers],
                time=time,
                faults=self._faults,
            )

    @property
    def _has_rules(self) -> bool:
        """Whether something but eviction, and promotion, decides what is where."""
        used = self._memory or self._restores_last
        return bool(used) or any(self._may_count.values()) or any(care.pin_blocks for care in self._cares)

    @property
    def _restores_last(self) -> bool:
        return any(t.read_bytes_per_second for t in self._model.tiers)

    @property
    def _may_count(self) -> Mapping[str, bool]:
        """Of the flows that not every replay has, which there may be."""
        return {
            "not_admitted": not all(t.gate.is_open for t in self.tiers),
            "expired": any(care.ttl_s for care in self._cares),
            "quota_evicted": bool(self._quotas),
            "over_quota": bool(self._quotas),
        }

    def run(self, hints: Hints | None, tick: Callable[[int], None] | None) -> Outcome:
        """Replay all. Raises what a policy raises, or :class:`PolicyFault` for one that was given up."""
        outcome = self._simulation.run(hints, tick)
        if self._faults.reasons:
            raise PolicyFault(self._faults.reasons[0])
        return outcome

    @property
    def policy_bytes_per_block(self) -> float:
        """Of eviction policies: their memory for each block that they know."""
        policies = [t.policy for t in self.tiers] + ([self._memory.policy] if self._memory else [])
        return sum(map(policy_bytes, policies)) / max(1, sum(map(len, policies)))

    @property
    def restores_cut(self) -> int | None:
        """Restores that were protected no longer, as nothing else was left to evict; None: they take no time."""
        return self._faults.get("restores_cut") if self._restores_last else None

    def figures(self) -> list[dict[str, Any]]:
        """What went in and out of RAM, if there is any, and of each tier."""
        found = [self._tier_figures(*each) for each in zip(self._model.tiers, self.tiers, strict=True)]
        if (memory := self._memory) is not None:
            flows = {"read": memory.reads, "written": memory.writes, "dropped": memory.tier.evictions}
            found.insert(0, {"name": "ram", "capacity_blocks": memory.capacity, **self._bytes(flows)})
        return found

    def _tier_figures(self, modeled: ModeledTier, tier: Tier) -> dict[str, Any]:
        counts = {k: n for k, n in asdict(tier.flows).items() if n or self._may_count.get(k, True)}
        flows = self._bytes(counts)
        figures: dict[str, Any] = {"name": modeled.name, "capacity_blocks": tier.capacity, **flows}
        for what, speed in (("read", modeled.read_bytes_per_second), ("written", modeled.write_bytes_per_second)):
            if speed is not None:
                figures[f"seconds_{what}"] = flows[f"bytes_{what}"] / speed
        return figures

    def _bytes(self, counts: Mapping[str, int]) -> dict[str, int]:
        return {f"bytes_{name}": count * self._block_bytes for name, count in counts.items()}

    def _gate(self, tier: ModeledTier) -> Gate:
        limit = tier.write_bytes_per_day
        budget = None if limit is None else Budget(limit, self._now)
        policy = registry.admission(tier.admission, blocks_min=tier.admission_blocks_min)()
        return Gate(tier.name, policy, budget, self._faults)

    def _made(self, factory: Factory) -> EvictionPolicy:
        """A new policy, with the time of the trace as its clock if it takes one."""
        if "now" in inspect.signature(factory).parameters:
            return factory(now=self._now)
        return factory()


def _cares(trace: Trace, model: TierModel) -> list[Care]:
    """By namespace, as the trace numbers them."""
    rules = {rule.name: rule for rule in model.said.namespace}
    found = []
    for name in trace.namespace_names:
        rule = rules.get(name)
        ttl_s = model.said.ttl_s if rule is None or rule.ttl_s is None else rule.ttl_s
        found.append(Care(name.encode(), ttl_s, rule.pin_blocks if rule else 0))
    return found
