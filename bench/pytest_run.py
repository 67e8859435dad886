"""Runs benchmark files under pytest, in a process of their own: what pytest-benchmark measured, and what it did not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

_HERE = Path(__file__).resolve().parent


class Ran(NamedTuple):
    """``benchmarks`` as in pytest-benchmark's JSON; ``left_out``: why others have no figures, by name."""

    benchmarks: list[dict[str, Any]]
    left_out: dict[str, str]


def run_files(names: Sequence[str], *options: str) -> Ran:
    """Run these files of ``bench/``. Raises :class:`RuntimeError` if nothing was measured at all."""
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder:
        result, report = Path(folder) / "result.json", Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", *(str(_HERE / name) for name in names)]
        command += ["--benchmark-json", str(result), "--junit-xml", str(report), "--basetemp", f"{folder}/pytest"]
        command += ["-o", "tmp_path_retention_policy=failed"]  # the files of one that passed are removed at once
        alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # also in a test
        done = subprocess.run([*command, *options], cwd=_HERE.parent, env=alone, capture_output=True, text=True)
        if not result.exists() or not result.stat().st_size:
            raise RuntimeError(done.stdout + done.stderr)
        measured = json.loads(result.read_text(encoding="utf-8"))["benchmarks"]
        return Ran(measured, _left_out(report))


def _left_out(report: Path) -> dict[str, str]:
    """Benchmarks that failed or were skipped: the first line of why."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        for outcome in case:
            if outcome.tag in ("failure", "error", "skipped"):
                message = (outcome.get("message") or outcome.tag).splitlines()[0]
                found.setdefault(str(case.get("name")), f"{outcome.tag}: {message}")
    return found


def spread_of(benchmark: dict[str, Any]) -> dict[str, float]:
    """Seconds for one call, as :func:`bench.measure.spread` gives them."""
    stats = benchmark["stats"]
    return {"median": stats["median"], "min": stats["min"], "max": stats["max"], "runs": stats["rounds"]}
