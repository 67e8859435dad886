"""Runs :mod:`bench.test_operations` and takes its medians from pytest-benchmark's JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("test_operations.py")


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds for one call of each operation."""
    say("single operations")
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder:
        file = Path(folder) / "result.json"
        options = ["--benchmark-json", str(file), "--benchmark-max-time", "0.2" if quick else "1"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", str(_FILE), *options]
        done = subprocess.run(command, cwd=_FILE.parents[1], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout)
        result = json.loads(file.read_text(encoding="utf-8"))
    names = {b["name"].removeprefix("test_").replace("_", " "): b["stats"] for b in result["benchmarks"]}
    return {"call_s": {n: {"median": s["median"], "min": s["min"], "max": s["max"]} for n, s in names.items()}}
