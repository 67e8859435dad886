"""Keep the figures as JSON, and write them as tables into the pages of docs/, between their markers.

docs/benchmarks.md has one part, with all suites that are not about policies; in docs/policies.md each suite has a part
of its own where the text is about it, with its plot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import plots, report_llama, report_peers, report_policies, report_store
from bench.goals import entries
from bench.report_text import Lines

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "bench" / "report"
SUMMARY = REPORT / "summary.json"
PAGES = (ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "policies.md")

Summary = Mapping[str, Any]
_PART = re.compile(r"(<!-- FIGURES of (\w+): written by `[^`]+` -->\n).*?(<!-- END OF FIGURES -->\n)", re.DOTALL)

BENCHMARKS: dict[str, Callable[[Mapping[str, Any]], Lines]] = {
    "warm_ttft": report_llama.warm_ttft,
    "rules": report_llama.rules,
    "restore_cost": report_llama.restore_cost,
    "chat": report_llama.chat,
    "stall": report_llama.stall,
    "decode": report_llama.decode,
    "storage": report_store.storage,
    "protection": report_store.protection,
    "opening": report_store.opening,
    "operations": report_store.operations,
    "peers": report_peers.peers,
}
POLICIES: dict[str, Callable[[Mapping[str, Any]], Lines]] = {
    "eviction": report_policies.eviction,
    "footprint": report_policies.footprint,
    "churn": report_policies.churn,
    "hdd": report_policies.hdd,
    "prefetch": report_policies.prefetch,
}


def keep(figures: Mapping[str, Any], machine: Mapping[str, str] | None, *, quick: bool) -> list[Path]:
    """Put the figures in the place of their suites' in the summary, and draw and write all anew; the files.

    ``machine``: on which they were made; None if there are none.
    """
    folder = ROOT / ".benchmarks" / "quick" if quick else REPORT
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "summary.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"machine": {}, "figures": {}}
    known = before["figures"] | figures
    summary = {"quick": quick, "machine": machine or before["machine"], "entries": entries(known), "figures": known}
    file.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    drawn = plots.draw(known, folder)
    if quick:
        page = folder / "figures.md"
        page.write_text(f"# Benchmarks\n\n{everything(summary)}", encoding="utf-8")
        return [file, page, *drawn]
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), summary), encoding="utf-8")
    return [file, *PAGES, *drawn]


def filled(page: str, summary: Summary) -> str:
    """The text of a page, with the figures of the summary between its markers."""
    return _PART.sub(lambda found: f"{found[1]}\n{part(found[2], summary)}\n{found[3]}", page)


def part(name: str, summary: Summary) -> str:
    """What stands between the markers of this name."""
    if name == "benchmarks":
        return benchmarks(summary)
    if name == "goals":
        return _text(report_policies.goals(summary["entries"]))
    if name not in summary["figures"]:
        return "Not measured yet.\n"
    return _text(POLICIES[name](summary["figures"][name])) + "\n" + _plot(name, summary) + "\n"


def benchmarks(summary: Summary) -> str:
    """The figures of all suites that are not about policies."""
    command = "make bench" + (" QUICK=1" if summary["quick"] else "")
    facts = [value if name != "python" else f"Python {value}" for name, value in summary["machine"].items()]
    lines = [f"Made by `{command}` on: {', '.join(facts)}. Medians, with least and most in brackets."]
    for name, write in BENCHMARKS.items():
        if name in summary["figures"]:
            lines += ["", *write(summary["figures"][name])]
            if name in plots.TITLES:
                lines += ["", _plot(name, summary)]
    return "\n".join(lines) + "\n"


def everything(summary: Summary) -> str:
    """All figures, on one page."""
    parts = [f"## {name}\n\n{part(name, summary)}" for name in ("goals", *POLICIES)]
    return "\n".join([benchmarks(summary), *parts])


def _plot(name: str, summary: Summary) -> str:
    folder = "" if summary["quick"] else "../bench/report/"
    return f"![{plots.TITLES[name]}]({folder}{name}.svg)"


def _text(lines: Lines) -> str:
    return "\n".join(lines) + "\n"
