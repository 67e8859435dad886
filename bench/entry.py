"""One figure that has a goal: what it was found to be, in its arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot, sqrt
from statistics import median
from typing import Any

Figures = Mapping[str, Any]
Entry = dict[str, Any]
Arms = Mapping[str, float]


def at_least(
    name: str, suite: str, what: str, arms: Arms, goal: float | None, limit: float | None, **more: Any
) -> Entry:
    """An entry that should not be below its goal; None: it is shown, and has none. ``more``: see :func:`_entry`."""
    return _entry(name, suite, what, arms, min(arms.values()), "≥", goal, limit, **more)


def at_most(
    name: str, suite: str, what: str, arms: Arms, goal: float | None, limit: float | None, **more: Any
) -> Entry:
    """An entry that should not be above its goal."""
    return _entry(name, suite, what, arms, max(arms.values()), "≤", goal, limit, **more)


def _entry(
    name: str,
    suite: str,
    what: str,
    arms: Arms,
    value: float,
    sense: str,
    goal: float | None,
    limit: float | None,
    *,
    measured: str | None = None,
    noise: float | None = None,
    beaten_by: Sequence[str] = (),
    tolerance: Mapping[str, float] | None = None,
) -> Entry:
    """``measured``: the limit in its own unit, as it was in the same run. ``noise``: how far, as a share of it, the
    value is uncertain, where it is timed. ``beaten_by``: peers that did better in some arm, and where. ``tolerance``:
    how far, as a share of the goal, an arm may miss it and be said to meet it."""
    may_miss = tolerance or {}
    entry = {
        "id": name,
        "suite": suite,
        "what": what,
        "value": value,
        "median": median(arms.values()),
        "sense": sense,
        "goal": goal,
        "met": None if goal is None else all(_meets(arms[n], sense, goal, may_miss.get(n, 0.0)) for n in arms),
        "limit": limit,
        "arms": dict(arms),
    }
    optional = {"measured": measured, "noise": noise, "beaten_by": list(beaten_by)}
    return entry | {key: value for key, value in optional.items() if value}


def _meets(value: float, sense: str, goal: float, tolerance: float) -> bool:
    return value >= goal * (1 - tolerance) if sense == "≥" else value <= goal * (1 + tolerance)


def uncertainty(spread: Mapping[str, float]) -> float:
    """How far a median is uncertain, as a share of it: half of what its runs spread, less the more runs there are."""
    half = (spread["max"] - spread["min"]) / 2
    return half / spread["median"] / sqrt(spread.get("runs", 1)) if spread["median"] else 0.0


def ratio_noise(*pairs: tuple[Mapping[str, float], Mapping[str, float]]) -> float:
    """The same of a ratio of two medians; of several, the largest."""
    return max((hypot(uncertainty(a), uncertainty(b)) for a, b in pairs), default=0.0)
