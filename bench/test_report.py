"""How figures are kept, and held against their goals."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from bench import goals, machines, report

CHURN = {
    "bytes_max": 1000,
    "arms": {
        "evicted": {"written_to_admitted": 1.0, "disk_to_live": 1.2, "live_to_cap": 0.9},
        "deleted": {"written_to_admitted": 1.1, "disk_to_live": 1.0, "live_to_cap": 0.9},
    },
}


def hdd(ratio: float) -> dict[str, Any]:
    arm = {"s": {"median": 1.0, "min": 1.0, "max": 1.0}, "reads": 3, "bytes": 100}
    arms = {"restore": arm, "sequential": arm, "unaided": arm}
    row = {"disk": "throttled", "place": "alone", **arms, "of_sequential": ratio, "of_unaided": 1.0}
    return {"rows": [row], "goal": 0.8, "no_throttle": None}


def test_a_run_replaces_the_figures_of_its_own_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    report.keep({"churn": CHURN, "hdd": hdd(0.5)}, {"system": "one"}, quick=True)
    summary, page, *drawn = report.keep({"hdd": hdd(0.9)}, {"system": "other"}, quick=True)
    kept = json.loads(summary.read_text(encoding="utf-8"))
    assert kept["figures"] == {"churn": CHURN, "hdd": hdd(0.9)}
    assert [(e["id"], e["value"], e["met"]) for e in kept["entries"]] == [
        ("P5", 0.9, True),
        ("P7", 1.1, True),
        ("P7", 1.2, False),
    ]
    assert kept["machines"] == {"churn": {"system": "one"}, "hdd": {"system": "other"}}
    assert "| throttled | alone |" in page.read_text(encoding="utf-8")
    assert [file.name for file in drawn] == ["churn.svg", "churn.png", "hdd.svg", "hdd.png"]
    report.keep({}, None, quick=True)
    assert json.loads(summary.read_text(encoding="utf-8")) == kept


def test_the_page_says_which_figures_were_made_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    calls = {"call_s": {"get": {"median": 1.0, "min": 1.0, "max": 1.0, "runs": 1}}}
    (tmp_path / ".benchmarks" / "quick").mkdir(parents=True)
    older = {"machine": {"system": "one"}, "figures": {"operations": calls}}
    (tmp_path / ".benchmarks" / "quick" / "summary.json").write_text(json.dumps(older), encoding="utf-8")
    _, page, *_ = report.keep({}, None, quick=True)
    assert " on: one. " in page.read_text(encoding="utf-8")
    report.keep({"two_models": {"tokens": 1, "rows": []}}, {"python": "3"}, quick=True)
    assert " on: Python 3 (`two_models`); one (`operations`). " in page.read_text(encoding="utf-8")


def test_a_machine_says_what_was_measured_on_it() -> None:
    known = machines.machine()
    assert set(known) == {"processor", "memory", "system", "python", "packages"}
    assert f"lmdb {metadata.version('lmdb')}" in machines.in_words(known)


def test_an_entry_is_its_worst_arm() -> None:
    written, space = goals.entries({"churn": CHURN})
    assert written["arms"] == {"evicted": 1.0, "deleted": 1.1}
    assert (written["value"], written["sense"], written["goal"], written["limit"]) == (1.1, "≤", 1.10, 1.0)
    assert (space["value"], space["met"]) == (1.2, False)
    (entry,) = goals.entries({"hdd": hdd(0.7)})
    assert (entry["id"], entry["value"], entry["sense"], entry["met"]) == ("P5", 0.7, "≥", False)


def test_only_what_is_between_the_markers_is_written() -> None:
    page = "a\n<!-- FIGURES of churn: written by `x` -->\nold\n<!-- END OF FIGURES -->\nb\n"
    filled = report.filled(page, {"quick": False, "figures": {}, "entries": []})
    assert filled == "a\n<!-- FIGURES of churn: written by `x` -->\n\nNot measured yet.\n\n<!-- END OF FIGURES -->\nb\n"
