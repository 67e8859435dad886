"""The goals P1 to P12 at a glance: what was found, whether it is enough, and which peer is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.report_text import Lines, goal, met, table
from bench.unmeasured import SUITES, Unmeasured, unmeasured

IDS = tuple(SUITES)


def scoreboard(summary: Mapping[str, Any]) -> Lines:
    """One row for each entry, and for each figure that was not measured."""
    entries, left_out = summary["entries"], list(unmeasured(summary))
    rows = []
    for name in IDS:
        rows += [_row(entry) for entry in entries if entry["id"] == name]
        rows += [_unmeasured(left) for left in left_out if left.id == name]
    held = [entry for entry in entries if entry["goal"] is not None]
    yield (
        f"{sum(entry['met'] for entry in held)} of {len(held)} figures meet their goals. A figure is that of its worst "
        "arm; one without a goal is there to be seen."
    )
    yield ""
    head = ["", "figure", "value", "goal", "met", "limit", "limit, as measured in the same run", "beaten by", "suite"]
    yield from table(head, rows)
    for suite, reason in summary.get("failed", {}).items():
        yield from (
            "",
            f"**Suite `{suite}` failed** when it was last run: {reason}. Its figures are older, if there are any.",
        )


def _row(entry: Mapping[str, Any]) -> list[str]:
    return [
        entry["id"],
        entry["what"],
        f"**{number(entry['value'])}**",
        goal(entry),
        met(entry),
        "" if entry["limit"] is None else number(entry["limit"]),
        entry.get("measured", ""),
        ", ".join(entry.get("beaten_by", ())),
        f"`{entry['suite']}`",
    ]


def _unmeasured(left: Unmeasured) -> list[str]:
    reason = f"not measured: {left.reason}"
    return [left.id, f"{left.what}: {reason}" if left.what else reason, *[""] * 6, f"`{left.suite}`"]


def number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"
