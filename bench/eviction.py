"""What each eviction policy makes of traces: hits, time to compute what was missed, and CPU time, against the bound.

The traces are made up (:mod:`kvtier.replay.generator`); those that ``KVTIER_TRACES`` names (files or folders, with
the system's separator of paths) come in addition. All policies without hints, ours with them too. All but the CPU time
is the same in every run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kvtier.policy.registry import EVICTION
from kvtier.replay import belady
from kvtier.replay.capacity import Capacity, parse_capacities
from kvtier.replay.generator import generate
from kvtier.replay.hints import HintKind, make_hints
from kvtier.replay.measure import Replay, Row
from kvtier.replay.reader import read_trace
from kvtier.replay.tier_model import TierModel, read_tier_model
from kvtier.replay.trace import Trace

OURS, BASE = "hit-density", "leaf-lru"
SHARES = ("1%", "5%", "10%", "20%")
TRACES = "KVTIER_TRACES"
_SEED = 1  # of the noise in hints, as of `kvtier replay`
_GAP_LEAST = 0.005  # of all references: below it there is nothing to close


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """For each trace: hit ratios and the like at each capacity, by policy and by what the server tells."""
    found = []
    model = read_tier_model(None, None)
    for trace in [*_made(quick), *_given()]:
        found.append(_replayed(trace, model, say))
    return {"capacities": list(SHARES), "model": model.cost.name, "traces": found}


def _made(quick: bool) -> list[Trace]:
    requests = {"conversation": 2000, "agents": 1000, "documents": 1000}
    return [generate(f"generate:{kind}?seed=7&requests={200 if quick else n}") for kind, n in requests.items()]


def _given() -> list[Trace]:
    return [read_trace(Path(path)) for path in os.environ.get(TRACES, "").split(os.pathsep) if path]


def _replayed(trace: Trace, model: TierModel, say: Callable[[str], None]) -> dict[str, Any]:
    capacities = parse_capacities(",".join(SHARES), trace.unique)
    series = []
    for hints in HintKind:
        cells = Replay(trace, model, EVICTION, make_hints(trace, hints, _SEED))
        for policy in EVICTION if hints is HintKind.NONE else [OURS]:
            say(f"{trace.name}: {policy}, hints: {hints.value}")
            series.append(_series(policy, hints, [cells.run(policy, c) for c in capacities]))
    say(f"{trace.name}: {belady.NAME}")
    cells = Replay(trace, model, {})
    bound = _series(belady.NAME, HintKind.NONE, [cells.bound(c) for c in capacities])
    base = next(s for s in series if s["policy"] == BASE)
    for each in series:
        _compare(each, base, bound)
    return {**_facts(trace, capacities), "series": [*series, bound]}


def _facts(trace: Trace, capacities: Sequence[Capacity]) -> dict[str, Any]:
    return {
        "name": trace.name if trace.name.startswith("generate:") else Path(trace.name).name,
        "requests": len(trace),
        "references": trace.references,
        "unique_blocks": trace.unique,
        "reuse": trace.reuse,
        "capacity_blocks": [c.blocks for c in capacities],
    }


def _series(policy: str, hints: HintKind, rows: Sequence[Row]) -> dict[str, Any]:
    if failed := [row.error for row in rows if row.error]:
        raise RuntimeError(f"{policy}: {failed[0]}")
    return {
        "policy": policy,
        "hints": hints.value,
        "hit_ratio": [row.hit_ratio for row in rows],
        "recompute_missed": [row.recompute_missed_ratio for row in rows],
        "cpu_s_per_reference": [row.policy_seconds_per_reference for row in rows],
    }


def _compare(series: dict[str, Any], base: dict[str, Any], bound: dict[str, Any]) -> None:
    """Add what of the gap is closed (None where there is none), and the ratios to leaf-LRU and to the bound."""
    cells = list(zip(series["hit_ratio"], base["hit_ratio"], bound["hit_ratio"], strict=True))
    series["of_gap"] = [(hit - lru) / (best - lru) if best - lru > _GAP_LEAST else None for hit, lru, best in cells]
    series["of_lru_hits"] = [hit / lru if lru else None for hit, lru, _ in cells]
    series["of_lru_cpu"] = _ratios(series, base, "cpu_s_per_reference")
    series["of_bound_recompute"] = _ratios(series, bound, "recompute_missed")


def _ratios(series: dict[str, Any], other: dict[str, Any], what: str) -> list[float]:
    return [mine / theirs for mine, theirs in zip(series[what], other[what], strict=True)]
