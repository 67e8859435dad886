"""Figures with a goal that were not measured, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bench.goals_store import MANY

#: The suites that have figures of a goal.
SUITES = {
    "P1": ("storage",),
    "P2": ("storage",),
    "P3": ("warm_ttft",),
    "P4": ("chat", "stall", "decode"),
    "P5": ("hdd",),
    "P6": ("eviction",),
    "P7": ("churn",),
    "P8": ("compression",),
    "P9": ("footprint", "index_entries", "opening"),
    "P10": ("prefetch",),
    "P11": ("peers",),
    "P12": ("threads",),
}


class Unmeasured(NamedTuple):
    """``id``: of the goal. ``what``: the figure, or empty for all that the suite has of this goal."""

    id: str
    suite: str
    what: str
    reason: str


def unmeasured(summary: Mapping[str, Any]) -> Iterator[Unmeasured]:
    """In the order of the goals."""
    figures = summary["figures"]
    for name, suites in SUITES.items():
        for suite in suites:
            if suite in figures:
                yield from (Unmeasured(name, suite, *found) for found in _parts(suite, figures[suite]))
            else:
                reason = summary.get("failed", {}).get(suite)
                yield Unmeasured(name, suite, "", f"the suite failed: {reason}" if reason else "the suite was not run")


def _parts(suite: str, figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a suite that was run has left out, and why."""
    if suite == "peers":
        rows = [("", row) for row in figures["rows"]] + [("LMCache: ", row) for row in figures["lmcache"]["rows"]]
        yield from ((prefix + row["name"], row["missing"]) for prefix, row in rows if row["missing"])
        if figures["lmcache"]["missing"]:
            yield "LMCache", figures["lmcache"]["missing"]
    elif suite == "hdd" and figures["no_throttle"]:
        yield "restore after churn / sequential, throttled disk", figures["no_throttle"]
    elif suite == "index_entries" and (largest := max((r["blocks"] for r in figures["rows"]), default=0)) < MANY:
        why = "; ".join(f"{name}: {reason}" for name, reason in figures.get("left_out", {}).items())
        yield f"get from a store of up to {MANY:,} blocks", f"{why or 'not asked for'}; the largest had {largest:,}"
