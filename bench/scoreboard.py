"""The goals P1 to P12 at a glance: what was found, whether it is enough, and which peer is better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.report_text import Lines, table

IDS = tuple(f"P{n}" for n in range(1, 13))


def scoreboard(summary: Mapping[str, Any]) -> Lines:
    """One row for each entry; of goals that were not measured one too."""
    entries = summary["entries"]
    rows = [row for name in IDS for row in _rows(name, [e for e in entries if e["id"] == name])]
    met = sum(entry["met"] for entry in entries)
    yield f"{met} of {len(entries)} figures meet their goals. A figure is that of its worst arm."
    yield ""
    head = ["", "figure", "value", "goal", "met", "limit", "limit, as measured in the same run", "beaten by", "suite"]
    yield from table(head, rows)
    for suite, reason in summary.get("failed", {}).items():
        yield from (
            "",
            f"**Suite `{suite}` failed** when it was last run: {reason}. Its figures are older, if there are any.",
        )


def _rows(name: str, entries: list[Mapping[str, Any]]) -> Iterator[list[str]]:
    if not entries:
        yield [name, "not measured", *[""] * 7]
    for entry in entries:
        yield [
            name,
            entry["what"],
            f"**{number(entry['value'])}**",
            f"{entry['sense']} {entry['goal']:g}",
            "yes" if entry["met"] else "**no**",
            "" if entry["limit"] is None else number(entry["limit"]),
            entry.get("measured", ""),
            ", ".join(entry.get("beaten_by", ())),
            f"`{entry['suite']}`",
        ]


def number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"
