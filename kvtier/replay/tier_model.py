"""The tier model: a TOML file that says which tiers share the capacity of a replay, and what computing KV costs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kvtier.errors import ConfigError, ConfigProblem
from kvtier.policy.registry import PROMOTION
from kvtier.replay.cost import DEFAULT_MODEL, FLOPS_DEFAULT, PRESETS, CostModel, ModelSizes
from kvtier.replay.toml_table import Table, count, positive, size, text
from kvtier.units import BadValue

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TIERS_MAX = 8
_MEASURED = ("seconds_per_token", "seconds_per_position")


@dataclass(frozen=True)
class ModeledTier:
    """One tier: its part of the capacity, and its speed in bytes a second (None: not given)."""

    name: str = "all"
    share: float = 1.0
    eviction: str | None = None  #: None: the policy that is replayed
    promotion: str = "always"
    read_bytes_per_second: int | None = None
    write_bytes_per_second: int | None = None


@dataclass(frozen=True)
class TierModel:
    """Tiers, fastest first; the cost of computing KV; and the size of a block, None for what the model makes of it."""

    tiers: tuple[ModeledTier, ...]
    cost: CostModel
    block_bytes: int | None = None

    def bytes_of_block(self, block_tokens: int) -> int:
        return self.block_bytes or self.cost.kv_bytes_per_token * block_tokens

    def split(self, capacity: int) -> list[int]:
        """Blocks of each tier: every one has at least one. Raises ConfigError if there are too few for that."""
        if capacity < len(self.tiers):
            message = f"{capacity} blocks are too few for {len(self.tiers)} tiers"
            raise ConfigError([ConfigProblem("--capacity", message, "at least a block for each")])
        total = sum(t.share for t in self.tiers)
        ends = [0]
        for at in range(1, len(self.tiers)):
            wanted = round(capacity * sum(t.share for t in self.tiers[:at]) / total)
            ends.append(min(max(wanted, ends[-1] + 1), capacity - len(self.tiers) + at))
        return [end - start for start, end in zip(ends, [*ends[1:], capacity], strict=True)]


def preset(name: str) -> CostModel:
    """The cost of a model by name. Raises ConfigError with the names there are."""
    if name not in PRESETS:
        raise ConfigError([ConfigProblem("--model", f"unknown model {name!r}", f"one of {', '.join(sorted(PRESETS))}")])
    return PRESETS[name].cost(name)


def read_tier_model(file: Path | None, model: str | None) -> TierModel:
    """The tier model of a file, or one tier; ``model`` (a preset) stands above the file's. Raises ConfigError."""
    data = _load(file) if file else {}
    problems: list[ConfigProblem] = []
    top = Table(data, "", problems)
    cost = _cost(top.table("model"), problems)
    block_bytes = top.take("block_bytes", size)
    tiers = [_tier(Table(t, f"tier.{i}.", problems)) for i, t in enumerate(top.tables("tier"))]
    top.end()
    if len(tiers) > TIERS_MAX:
        problems.append(ConfigProblem("tier", f"{len(tiers)} tiers are too many", f"at most {TIERS_MAX}"))
    names = [t.name for t in tiers]
    problems += [
        ConfigProblem("tier", f"the name {n!r} is used twice") for n in sorted(set(names)) if names.count(n) > 1
    ]
    if problems:
        raise ConfigError([ConfigProblem(f"{file}: {p.path}", p.message, p.hint) for p in problems])
    assert cost is not None  # it is None only beside a problem
    return TierModel(tuple(tiers) or (ModeledTier(),), preset(model) if model else cost, block_bytes)


def _load(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode())
    except ValueError as e:  # UnicodeDecodeError and TOMLDecodeError
        raise ConfigError([ConfigProblem(str(file), f"not TOML: {e}")]) from e


def _tier(table: Table) -> ModeledTier:
    tier = ModeledTier(
        name=table.take("name", text) or "",
        share=table.take("share", positive) or 1.0,
        eviction=table.take("eviction", text),
        promotion=table.take("promotion", _promotion) or ModeledTier.promotion,
        read_bytes_per_second=table.take("read_bytes_per_second", size),
        write_bytes_per_second=table.take("write_bytes_per_second", size),
    )
    for required in ("name", "share"):
        table.require(required)
    table.end()
    return tier


def _cost(table: Table, problems: list[ConfigProblem]) -> CostModel | None:
    """``[model]``: a preset by name; or sizes; or ``seconds_per_token`` and the like, as measured."""
    before = len(problems)
    name = table.take("preset", _preset)
    flops = table.take("flops", positive) or FLOPS_DEFAULT
    sizes = {f.name: table.take(f.name, count) for f in fields(ModelSizes)}
    per_token, per_position = (table.take(key, positive) for key in _MEASURED)
    kv_bytes = table.take("kv_bytes_per_token", size)
    table.end()
    kinds = [
        name is not None,
        any(v is not None for v in sizes.values()),
        per_token is not None or kv_bytes is not None,
    ]
    if sum(kinds) > 1:
        problems.append(ConfigProblem("model", "a preset, sizes or measured seconds: only one of them"))
    if kinds[1]:
        optional = ("window_layers", "window")
        problems += [
            ConfigProblem(f"model.{k}", "is missing") for k, v in sizes.items() if v is None and k not in optional
        ]
    if kinds[2] or per_position is not None:
        given = dict(zip((*_MEASURED, "kv_bytes_per_token"), (per_token, per_position, kv_bytes), strict=True))
        problems += [ConfigProblem(f"model.{k}", "is missing") for k, v in given.items() if v is None]
    if len(problems) > before:
        return None
    if per_token is not None and per_position is not None and kv_bytes is not None:
        return CostModel("measured", per_token, per_position, kv_bytes)
    if kinds[1]:
        return ModelSizes(**{k: v for k, v in sizes.items() if v is not None}).cost("sizes", flops)
    return PRESETS[name or DEFAULT_MODEL].cost(name or DEFAULT_MODEL, flops)


def _promotion(value: object) -> str:
    if value not in PROMOTION:
        raise BadValue(f"unknown promotion {value!r}", f"one of {', '.join(sorted(PROMOTION))}")
    return str(value)


def _preset(value: object) -> str:
    if value not in PRESETS:
        raise BadValue(f"unknown model {value!r}", f"one of {', '.join(sorted(PRESETS))}")
    return str(value)
