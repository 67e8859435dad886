"""The sections of a tier model, the file that ``kvtier replay`` takes: keys that a configuration has too mean the same.

Shares stand where a configuration has sizes: a replay is of many capacities.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from kvtier.config.checks import admission_problems, repeated_quotas
from kvtier.config.problems import Problems, path_of
from kvtier.config.sections import Section
from kvtier.config.values import (
    Admission,
    BytesPerDay,
    Cap,
    Eviction,
    Namespace,
    NamespaceName,
    Promotion,
    Rate,
    Size,
    TierName,
    Ttl,
)
from kvtier.errors import ConfigProblem
from kvtier.units import BadValue, Percent, parse_cap

TIERS_MAX = 8

_MEASURED = ("seconds_per_token", "seconds_per_position", "kv_bytes_per_token")
_WINDOW = ("window_layers", "window")
_SIZES = ("layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff", *_WINDOW)


def _not_zero(value: int) -> int:
    if not value:
        raise BadValue("0 bytes are too few", 'for example "6MiB"')
    return value


def _parse_sessions(value: object) -> str | Percent:
    if not isinstance(value, str) or not value:
        raise BadValue(f"{value!r} says no sessions", 'a share such as "30%", or a pattern such as "agent-*"')
    if not value.endswith("%"):
        return value
    share = parse_cap(value)
    assert isinstance(share, Percent)
    return share


_Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
_ModelSize = Annotated[int, Field(strict=True, ge=1, lt=1 << 31)]
_Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
_Bytes = Annotated[Size, AfterValidator(_not_zero)]


class ComputeSection(Section):
    """``[model]``: what it costs to compute KV: of a model by name, from sizes, or as measured."""

    preset: str | None = None
    flops: _Positive | None = None
    layers: _ModelSize | None = None
    d_model: _ModelSize | None = None
    heads: _ModelSize | None = None
    kv_heads: _ModelSize | None = None
    head_dim: _ModelSize | None = None
    d_ff: _ModelSize | None = None
    window_layers: _Count | None = None
    window: _Count | None = None
    seconds_per_token: _Positive | None = None
    seconds_per_position: _Positive | None = None
    kv_bytes_per_token: _Bytes | None = None

    def problems(self) -> Iterator[ConfigProblem]:
        """What does not go together."""
        ways = [way for way in (("preset",), _MEASURED, _SIZES) if not self.model_fields_set.isdisjoint(way)]
        if len(ways) > 1:
            yield ConfigProblem("model", "has several of a preset, sizes and measured seconds", "only one of them")
            return
        for key in sorted({*ways[0]} - {*_WINDOW} - self.model_fields_set) if ways else ():
            yield ConfigProblem(f"model.{key}", "required key is missing")
        if self.layers is not None and (self.window_layers or 0) > self.layers:
            yield ConfigProblem("model.window_layers", "is more than model.layers", f"at most {self.layers}")


class ModeledRam(Section):
    """``[ram]``: the tier in memory, through which everything goes, as in the store."""

    share: _Positive = Field(examples=[1])
    eviction: Eviction | None = None


class ModeledTier(Section):
    """``[[tier]]``: its part of the capacity, its policies, and its speed (None: not given)."""

    name: TierName = Field(examples=["ssd"])
    share: _Positive = Field(examples=[9])
    eviction: Eviction | None = None
    admission: Admission = "always"
    admission_blocks_min: Annotated[int, Field(strict=True, ge=2, le=256)] = Field(2, examples=[4])
    write_bytes_per_day: BytesPerDay = None
    promotion: Promotion = "always"
    read_bytes_per_second: Rate | None = None
    write_bytes_per_second: Rate | None = None


class ModeledQuota(Section):
    """``[[quota]]``: how much one namespace, or each of the others, may have on all disk tiers together."""

    namespace: NamespaceName = None
    bytes_max: Cap = Field(examples=["25%", "10GiB"])


class ModeledNamespace(Section):
    """``[[namespace]]``: which sessions are in it, if the trace does not say, and what its server asks for."""

    name: Namespace = Field(examples=["tenant-a"])
    sessions: Annotated[str | Percent | None, PlainValidator(_parse_sessions)] = None
    ttl_s: Ttl | None = None
    pin_blocks: Annotated[int, Field(strict=True, ge=0, le=1 << 20)] = 0
    priority: Annotated[int, Field(strict=True, ge=-(1 << 31), lt=1 << 31)] = 0


class TierModelFile(Section):
    """The whole file."""

    block_bytes: _Bytes | None = None
    ttl_s: Ttl = 0
    model: ComputeSection = Field(default_factory=ComputeSection)
    ram: ModeledRam | None = None
    tier: Annotated[tuple[ModeledTier, ...], Field(max_length=TIERS_MAX)] = ()
    quota: tuple[ModeledQuota, ...] = ()
    namespace: tuple[ModeledNamespace, ...] = ()

    @model_validator(mode="after")
    def _check_between_sections(self) -> TierModelFile:
        if problems := [*self._problems()]:
            raise Problems(problems)
        return self

    def _problems(self) -> Iterator[ConfigProblem]:
        yield from self.model.problems()
        yield from _twice("tier", [t.name for t in self.tier])
        yield from _twice("namespace", [n.name for n in self.namespace])
        yield from repeated_quotas([q.namespace for q in self.quota])
        if self.ram and not self.tier:
            yield ConfigProblem("ram", "there is no tier below it", "add a [[tier]]; one alone needs no [ram]")
        for i, tier in enumerate(self.tier):
            yield from admission_problems(i, tier)
        shares = sum(n.sessions.value for n in self.namespace if isinstance(n.sessions, Percent))
        if shares > 100:
            yield ConfigProblem("namespace", f"the shares of sessions are {shares:g}% together", "at most 100%")


def _twice(section: str, names: list[str]) -> Iterator[ConfigProblem]:
    for i, name in enumerate(names):
        if name in names[:i]:
            path = path_of((section, i, "name"))
            yield ConfigProblem(path, f"{name!r} is used twice", f"give each {section} a name of its own")
