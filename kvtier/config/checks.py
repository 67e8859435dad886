"""What must hold between the keys and sections of a configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kvtier.config.floors import disk_floor_problem, memory_problems
from kvtier.config.problems import path_of
from kvtier.config.sections import RECORD_OVERHEAD_BYTES_MAX, QuotaConfig, TierConfig
from kvtier.errors import ConfigProblem
from kvtier.units import Percent, format_size

if TYPE_CHECKING:
    from kvtier.config.whole import Config


def problems_between(config: Config) -> Iterator[ConfigProblem]:
    """Every problem that shows only when sections are looked at together."""
    yield from _size_problems(config)
    yield from memory_problems(config.ram)
    yield from _tier_problems(config)
    yield from _quota_problems(config)


def _size_problems(config: Config) -> Iterator[ConfigProblem]:
    value, shown = config.store.value_bytes_max, format_size(config.store.value_bytes_max)
    if value < 1:
        yield ConfigProblem("store.value_bytes_max", "a value needs at least one byte", 'for example "64MiB"')
    if config.tier and config.store.path is None:
        yield ConfigProblem("store.path", "required key is missing", "a store with disk tiers has a folder")
    if not config.tier and config.ram.bytes_max == 0:
        message = "is 0 and there is no disk tier, so nothing can be stored"
        yield ConfigProblem("ram.bytes_max", message, 'for example "1GiB"')
    if config.ram.write == "back" and (config.ram.bytes_max == 0 or not config.tier):
        message = "'back' keeps blocks in RAM until they are written, and " + (
            "there is no disk tier" if config.ram.bytes_max else "ram.bytes_max is 0"
        )
        yield ConfigProblem("ram.write", message, 'leave it out, or set write = "through"')
    if config.tier and config.write_behind.bytes_max < value:
        message = f"is smaller than store.value_bytes_max ({shown})"
        yield ConfigProblem("write_behind.bytes_max", message, f"at least {shown}, or lower that limit")
    if not 0 < config.prefetch.coalesce_bytes_max <= config.prefetch.bytes_max:
        message = "must be more than 0 and at most prefetch.bytes_max"
        hint = f"at most {format_size(config.prefetch.bytes_max)}"
        yield ConfigProblem("prefetch.coalesce_bytes_max", message, hint)
    if config.prefetch.policy != "chain" and config.ram.bytes_max == 0:
        message = f"{config.prefetch.policy!r} brings blocks into RAM, and ram.bytes_max is 0"
        yield ConfigProblem("prefetch.policy", message, 'give RAM a size, or set policy = "chain"')


def _tier_problems(config: Config) -> Iterator[ConfigProblem]:
    value = config.store.value_bytes_max
    seen: list[TierConfig] = []
    for i, tier in enumerate(config.tier):
        if any(tier.name == other.name for other in seen):
            message = f"{tier.name!r} is used twice"
            yield ConfigProblem(path_of(("tier", i, "name")), message, "give each tier a name of its own")
        if clash := _path_clash(tier, seen, config.store.path):
            yield ConfigProblem(path_of(("tier", i, "path")), clash, "give each tier a folder of its own")
        if tier.segment_bytes < value + RECORD_OVERHEAD_BYTES_MAX:
            message = f"{format_size(tier.segment_bytes)} cannot hold a value of store.value_bytes_max"
            hint = f"at least {value + RECORD_OVERHEAD_BYTES_MAX} bytes, or lower that limit"
            yield ConfigProblem(path_of(("tier", i, "segment_bytes")), message, hint)
        yield from admission_problems(i, tier)
        yield from budget_problem(i, tier, value + RECORD_OVERHEAD_BYTES_MAX, "a value of store.value_bytes_max")
        if problem := _cap_problem(tier):
            yield ConfigProblem(path_of(("tier", i, "bytes_max")), *problem)
        if problem := disk_floor_problem(tier):
            yield ConfigProblem(path_of(("tier", i, "free_bytes_min")), *problem)
        seen.append(tier)


class Admitting(Protocol):
    """A tier of a configuration, or of a tier model."""

    @property
    def model_fields_set(self) -> set[str]: ...

    @property
    def admission(self) -> str: ...

    @property
    def write_bytes_per_day(self) -> int | None: ...


def admission_problems(i: int, tier: Admitting) -> Iterator[ConfigProblem]:
    """What of a tier's admission does not go together."""
    if "admission_blocks_min" in tier.model_fields_set and tier.admission != "min-chain":
        message = f"means nothing with admission {tier.admission!r}"
        hint = 'leave it out, or set admission = "min-chain"'
        yield ConfigProblem(path_of(("tier", i, "admission_blocks_min")), message, hint)
    if tier.write_bytes_per_day is None and tier.admission == "write-budget":
        path = path_of(("tier", i, "write_bytes_per_day"))
        yield ConfigProblem(path, "required key is missing", 'for example "200GiB"')


def budget_problem(i: int, tier: Admitting, bytes_min: int, what: str) -> Iterator[ConfigProblem]:
    """That a day's budget is less than ``what`` takes."""
    if tier.write_bytes_per_day is not None and tier.write_bytes_per_day < bytes_min:
        message = f"{format_size(tier.write_bytes_per_day)} a day cannot hold {what}"
        yield ConfigProblem(path_of(("tier", i, "write_bytes_per_day")), message, f"at least {bytes_min} bytes")


def _quota_problems(config: Config) -> Iterator[ConfigProblem]:
    if config.quota and not config.tier:
        yield ConfigProblem("quota", "there is no disk tier for it", "quotas are of what is on disk: add a [[tier]]")
        return
    yield from repeated_quotas([quota.namespace for quota in config.quota])
    for i, quota in enumerate(config.quota):
        if problem := _quota_problem(config, quota):
            yield ConfigProblem(path_of(("quota", i, "bytes_max")), *problem)


def repeated_quotas(namespaces: Sequence[str | None]) -> Iterator[ConfigProblem]:
    """That a namespace has more than one."""
    for i, namespace in enumerate(namespaces):
        whose = "the other namespaces have" if namespace is None else f"namespace {namespace!r} has"
        if namespace in namespaces[:i]:
            path = path_of(("quota", i, "namespace"))
            yield ConfigProblem(path, f"{whose} a quota already", "give each one quota")


def _quota_problem(config: Config, quota: QuotaConfig) -> tuple[str, str] | None:
    if quota.bytes_max < 1:
        return "leaves no room for a block", 'for example "10GiB"'
    try:
        disks = sum(tier.bytes_max_resolved() for tier in config.tier)
    except (OSError, ValueError):
        return None  # which is reported of the tier
    if quota.bytes_max > disks:
        shown = format_size(disks)
        return f"{format_size(quota.bytes_max)} is more than all disk tiers together ({shown})", f"at most {shown}"
    return None


def _cap_problem(tier: TierConfig) -> tuple[str, str] | None:
    share = isinstance(tier.bytes_max, Percent)
    if share and not tier.path.is_absolute():
        return None  # store.path is missing, which is reported: no disk to ask
    try:
        cap = tier.bytes_max_resolved()
    except OSError as e:
        return f"the disk that holds {tier.path} cannot be asked: {e.strerror}", "give a size"
    if cap >= tier.segment_bytes:
        return None
    shown = f"{tier.bytes_max} of the disk ({format_size(cap)})" if share else format_size(cap)
    size = format_size(tier.segment_bytes)
    return f"{shown} is smaller than one segment ({size})", f"at least {size}, or lower segment_bytes"


def _path_clash(tier: TierConfig, others: list[TierConfig], store: Path | None) -> str:
    def real(path: Path) -> Path:
        return Path(os.path.normcase(os.path.realpath(path)))

    mine = real(tier.path)
    if store is not None and (mine == real(store) or mine in real(store).parents):
        return f"{tier.path} holds the store itself"
    for other in others:
        theirs = real(other.path)
        if mine == theirs:
            return f"{tier.path} is the folder of tier {other.name!r}"
        if mine in theirs.parents or theirs in mine.parents:
            return f"{tier.path} and the folder of tier {other.name!r} lie inside one another"
    return ""
