"""Keep the figures as JSON, and write them as tables into the pages of docs/, between their markers.

docs/benchmarks.md begins with the goals, and has one part with all suites that are not about policies; in
docs/policies.md each suite has a part of its own where the text is about it, with its plot. ``README.md`` beside the
summary has all of it, with all plots.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bench import plots, report_io, report_llama, report_peers, report_policies, report_store, scoreboard
from bench.goals import entries
from bench.machines import Machine, in_words, machine_of
from bench.report_text import Lines

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "bench" / "report"
SUMMARY = REPORT / "summary.json"
FROM_DOCS = "../bench/report/"
PAGES = (ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "policies.md")

Summary = Mapping[str, Any]
_PART = re.compile(r"(<!-- FIGURES of (\w+): written by `[^`]+` -->\n).*?(<!-- END OF FIGURES -->\n)", re.DOTALL)

BENCHMARKS: dict[str, Callable[[Mapping[str, Any]], Lines]] = {
    "warm_ttft": report_llama.warm_ttft,
    "two_models": report_llama.two_models,
    "rules": report_llama.rules,
    "restore_cost": report_llama.restore_cost,
    "chat": report_llama.chat,
    "stall": report_llama.stall,
    "decode": report_llama.decode,
    "storage": report_store.storage,
    "block_io": report_io.block_io,
    "threads": report_io.threads,
    "compression": report_io.compression,
    "protection": report_store.protection,
    "opening": report_store.opening,
    "index_entries": report_io.index_entries,
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


def keep(
    figures: Mapping[str, Any],
    machine: Machine | None,
    *,
    quick: bool,
    failed: Mapping[str, str | None] | None = None,
) -> list[Path]:
    """Put the figures in the place of their suites' in the summary, and draw and write all anew; the files.

    ``machine``: on which they were made; None if there are none. ``failed``: why suites have no new figures; None of
    one that did not fail.
    """
    folder = ROOT / ".benchmarks" / "quick" if quick else REPORT
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "summary.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"machine": {}, "figures": {}}
    known = before["figures"] | figures
    reasons = {**before.get("failed", {}), **(failed or {})}
    made_on = {suite: machine_of(before, suite) for suite in before["figures"]}
    summary = {
        "quick": quick,
        "machine": machine or before["machine"],
        "machines": {**made_on, **(dict.fromkeys(figures, machine) if machine else {})},
        "entries": entries(known),
        "failed": {name: reason for name, reason in reasons.items() if reason},
        "figures": known,
    }
    file.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    drawn = plots.draw(known, folder)
    page = folder / "README.md"
    page.write_text(f"# Benchmarks\n\n{everything(summary)}", encoding="utf-8")
    if quick:
        return [file, page, *drawn]
    for each in PAGES:
        each.write_text(filled(each.read_text(encoding="utf-8"), summary), encoding="utf-8")
    return [file, page, *PAGES, *drawn]


def filled(page: str, summary: Summary) -> str:
    """The text of a page, with the figures of the summary between its markers."""
    return _PART.sub(lambda found: f"{found[1]}\n{part(found[2], summary)}\n{found[3]}", page)


def part(name: str, summary: Summary, folder: str = FROM_DOCS) -> str:
    """What stands between the markers of this name; the plots are in ``folder``."""
    if name == "scoreboard":
        return _text(scoreboard.scoreboard(summary))
    if name == "benchmarks":
        return benchmarks(summary, folder)
    if name == "goals":
        return _text(report_policies.goals(e for e in summary["entries"] if e["suite"] in POLICIES))
    if name not in summary["figures"]:
        return "Not measured yet.\n"
    return _text([*POLICIES[name](summary["figures"][name]), *_plot(name, folder)])


def benchmarks(summary: Summary, folder: str = FROM_DOCS) -> str:
    """The figures of all suites that are not about policies."""
    command = "make bench" + (" QUICK=1" if summary["quick"] else "")
    made_on: dict[str, list[str]] = {}
    for name in BENCHMARKS:
        if name in summary["figures"]:
            made_on.setdefault(in_words(machine_of(summary, name)), []).append(f"`{name}`")
    where = "; ".join(
        words + (f" ({', '.join(names)})" if len(made_on) > 1 else "") for words, names in made_on.items()
    )
    lines = [f"Made by `{command}` on: {where}. Medians, with least and most in brackets."]
    for name, write in BENCHMARKS.items():
        if name in summary["figures"]:
            lines += ["", *write(summary["figures"][name]), *_plot(name, folder)]
    return _text(lines)


def everything(summary: Summary) -> str:
    """All figures, on one page in the folder of the plots."""
    parts = [part(name, summary, folder="") for name in ("scoreboard", "benchmarks")]
    parts += [f"## {plots.TITLES[name]}\n\n{part(name, summary, folder='')}" for name in POLICIES]
    return "\n".join(parts)


def _plot(name: str, folder: str) -> list[str]:
    return ["", f"![{plots.TITLES[name]}]({folder}{name}.svg)"] if name in plots.TITLES else []


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"
