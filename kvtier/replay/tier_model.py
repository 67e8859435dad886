"""The tier model: which tiers share the capacity of a replay, what is asked of them, and what computing KV costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvtier.config.checks import budget_problem
from kvtier.config.tier_model import ComputeSection, ModeledTier, TierModelFile
from kvtier.config.toml_file import read_toml
from kvtier.errors import ConfigError, ConfigProblem
from kvtier.policy import registry
from kvtier.replay.cost import DEFAULT_MODEL, FLOPS_DEFAULT, PRESETS, CostModel, ModelSizes
from kvtier.replay.namespaces import unused
from kvtier.replay.trace import Trace
from kvtier.tiers.limits import BLOCK_OVERHEAD_BYTES
from kvtier.units import Percent, format_size

_ONE_TIER = ModeledTier(name="all", share=1)


@dataclass(frozen=True)
class TierModel:
    """What a file says, and the cost of computing KV."""

    cost: CostModel
    said: TierModelFile
    source: str = ""  #: the name of the file

    @property
    def tiers(self) -> tuple[ModeledTier, ...]:
        """Those below RAM, fastest first."""
        return self.said.tier or (_ONE_TIER,)

    def bytes_of_block(self, block_tokens: int) -> int:
        return self.said.block_bytes or self.cost.kv_bytes_per_token * block_tokens

    def split(self, capacity: int) -> list[int]:
        """Blocks of RAM, if there is any, and of each tier: every one has at least one. Raises ConfigError if there are
        too few for that."""
        shares = [*([self.said.ram.share] if self.said.ram else []), *(t.share for t in self.tiers)]
        if capacity < len(shares):
            message = f"{capacity} blocks are too few for {len(shares)} tiers"
            raise ConfigError([ConfigProblem("--capacity", message, "at least a block for each")])
        ends = [0]
        for at in range(1, len(shares)):
            wanted = round(capacity * sum(shares[:at]) / sum(shares))
            ends.append(min(max(wanted, ends[-1] + 1), capacity - len(shares) + at))
        return [end - start for start, end in zip(ends, [*ends[1:], capacity], strict=True)]

    @property
    def has_classes(self) -> bool:
        """Whether it names policies that do not come with the package."""
        named = [self.said.ram.eviction if self.said.ram else None]
        named += [name for t in self.tiers for name in (t.eviction, t.admission, t.promotion)]
        return any(":" in name for name in named if name)

    def policies(self) -> Iterator[tuple[str, str]]:
        """The eviction policies that tiers name for themselves, and where. Raises ConfigError for one of another kind
        that there is not."""
        if self.said.ram and self.said.ram.eviction:
            yield self.said.ram.eviction, self._at("ram.eviction")
        for i, tier in enumerate(self.tiers):
            registry.promotion(tier.promotion, self._at(f"tier[{i}].promotion"))
            registry.admission(tier.admission, self._at(f"tier[{i}].admission"))
            if tier.eviction:
                yield tier.eviction, self._at(f"tier[{i}].eviction")

    def quotas(self, capacity: int, block_bytes: int) -> Mapping[str | None, int]:
        """In bytes, by namespace: a share is one of what the tiers below RAM hold."""
        held = self._held(capacity) * (block_bytes + BLOCK_OVERHEAD_BYTES)
        return {
            quota.namespace: quota.bytes_max.of(held) if isinstance(quota.bytes_max, Percent) else quota.bytes_max
            for quota in self.said.quota
        }

    @property
    def priorities(self) -> Mapping[str, int]:
        """By namespace."""
        return {rule.name: rule.priority for rule in self.said.namespace}

    def check(self, trace: Trace, capacities: Mapping[str, int]) -> None:
        """Whether the file goes with the trace and the capacities, by their texts. Raises ConfigError."""
        block_bytes = self.bytes_of_block(trace.block_tokens)
        problems = [*unused(trace, self.said.namespace)]
        for i, tier in enumerate(self.tiers):
            problems += budget_problem(i, tier, block_bytes, f"a block of {format_size(block_bytes)}")
        problems += self._quota_problems(trace, capacities, block_bytes)
        if problems:
            raise ConfigError(_in(self.source, problems))

    def _quota_problems(self, trace: Trace, capacities: Mapping[str, int], block_bytes: int) -> Iterator[ConfigProblem]:
        cost = block_bytes + BLOCK_OVERHEAD_BYTES
        for i, quota in enumerate(self.said.quota):
            if quota.namespace is not None and quota.namespace not in trace.namespace_names:
                hint = "write a [[namespace]] that says which sessions are in it"
                yield ConfigProblem(f"quota[{i}].namespace", f"no request is in {quota.namespace!r}", hint)
            for text, capacity in capacities.items():
                limit, held = self.quotas(capacity, block_bytes)[quota.namespace], self._held(capacity) * cost
                shown = f"{quota.bytes_max if isinstance(quota.bytes_max, Percent) else format_size(limit)}"
                if limit > held:
                    message = f"{shown} is more than all tiers together at --capacity {text} ({format_size(held)})"
                    yield ConfigProblem(f"quota[{i}].bytes_max", message, 'a share such as "25%" goes with any')
                    break
                if limit < cost:
                    message = f"{shown} leaves no room for a block at --capacity {text}"
                    yield ConfigProblem(f"quota[{i}].bytes_max", message, f"at least {cost} bytes")
                    break

    def _at(self, path: str) -> str:
        return f"{self.source}: {path}" if self.source else path

    def _held(self, capacity: int) -> int:
        return sum(self.split(capacity)[1 if self.said.ram else 0 :])


def preset(name: str, path: str = "--model") -> CostModel:
    """The cost of a model by name. Raises ConfigError with the names there are."""
    if name not in PRESETS:
        raise ConfigError([ConfigProblem(path, f"unknown model {name!r}", f"one of {', '.join(sorted(PRESETS))}")])
    return PRESETS[name].cost(name)


def read_tier_model(file: Path | None, model: str | None) -> TierModel:
    """The tier model of a file, or one tier; ``model`` (a preset) stands above the file's. Raises ConfigError."""
    if file is None:
        return TierModel(preset(model or DEFAULT_MODEL), TierModelFile())
    raw = read_toml(file)
    try:
        said = TierModelFile(**raw)
        cost = _cost(said.model)
    except ConfigError as e:
        raise ConfigError(_in(str(file), e.problems)) from None
    return TierModel(preset(model) if model else cost, said, str(file))


def _cost(said: ComputeSection) -> CostModel:
    per_token, per_position, kv_bytes = said.seconds_per_token, said.seconds_per_position, said.kv_bytes_per_token
    if per_token is not None and per_position is not None and kv_bytes is not None:
        return CostModel("measured", per_token, per_position, kv_bytes)
    flops = said.flops or FLOPS_DEFAULT
    if said.layers is not None:
        given = said.model_dump(exclude_none=True)
        sizes = {k: v for k, v in given.items() if k in ModelSizes.__dataclass_fields__}
        return ModelSizes(**sizes).cost("sizes", flops)
    name = said.preset or DEFAULT_MODEL
    preset(name, "model.preset")
    return PRESETS[name].cost(name, flops)


def _in(source: str, problems: tuple[ConfigProblem, ...] | list[ConfigProblem]) -> list[ConfigProblem]:
    return [ConfigProblem(f"{source}: {p.path}", p.message, p.hint) for p in problems]
