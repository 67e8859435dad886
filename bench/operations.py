"""Runs :mod:`bench.test_operations` and takes its medians from pytest-benchmark's JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.pytest_run import run_files, spread_of


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds for one call of each operation."""
    say("single operations")
    ran = run_files(["test_operations.py"], "--benchmark-max-time", "0.2" if quick else "1")
    calls = {b["name"].removeprefix("test_").replace("_", " "): spread_of(b) for b in ran.benchmarks}
    return {"call_s": calls, "left_out": ran.left_out}
