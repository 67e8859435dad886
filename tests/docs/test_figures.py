"""The figures in docs/ are those of bench/report/summary.json: ``python -m bench --render`` writes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import goals, report
from bench.__main__ import SUITES


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(report.SUMMARY.read_text(encoding="utf-8"))
    return parsed


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_a_page_has_the_figures_of_the_summary(page: Path, summary: dict[str, Any]) -> None:
    text = page.read_text(encoding="utf-8")
    assert report.filled(text, summary) == text


def test_the_entries_are_made_of_the_figures(summary: dict[str, Any]) -> None:
    assert goals.entries(summary["figures"]) == summary["entries"]


def test_every_suite_has_its_place() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in report.PAGES)
    parts = re.findall(r"^<!-- FIGURES of (\w+): ", text, re.MULTILINE)
    assert sorted(parts) == sorted(["benchmarks", "goals", "scoreboard", *report.POLICIES])
    assert sorted([*report.BENCHMARKS, *report.POLICIES]) == sorted(SUITES)
    assert text.count("<!-- END OF FIGURES -->\n") == len(parts)
