"""Runs the I/O benchmarks, each at every size of blocks, and sorts what pytest-benchmark measured by operation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.measure import too_little_disk
from bench.pytest_run import run_files, spread_of

#: One concept a file.
FILES = ("test_put.py", "test_get.py", "test_chains.py", "test_upkeep.py", "test_mixed.py")
_BYTES, _BYTES_QUICK = 1 << 30, 1 << 27  # half of what one benchmark leaves on the disk until it ends


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Rows: operation, its arm (all that is not the size), bytes of a block, seconds for one call, bytes it moves."""
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    means = set()
    for name in FILES:
        if reason := too_little_disk(Path(tempfile.gettempdir()), _BYTES_QUICK if quick else _BYTES):
            left_out[name] = reason
            continue
        say(name)
        ran = run_files(
            [name], "--sizes", "quick" if quick else "full", "--benchmark-max-time", "0.1" if quick else "0.3"
        )
        rows += map(_row, ran.benchmarks)
        left_out |= ran.left_out
        means |= {b["extra_info"]["page_cache"] for b in ran.benchmarks if "page_cache" in b["extra_info"]}
    return {"rows": rows, "left_out": left_out, "page_cache": ", ".join(sorted(means)) or "none"}


def _row(benchmark: dict[str, Any]) -> dict[str, Any]:
    operation, _, arms = benchmark["name"].removeprefix("test_").partition("[")
    size = benchmark["params"]["block_bytes"]
    label = f"{size >> 20} MiB" if size >> 20 else f"{size >> 10} KiB"
    arm = [part for part in arms.removesuffix("]").split("-") if part != label]
    return {
        "operation": operation.replace("_", " "),
        "arm": ", ".join(arm),
        "block_bytes": size,
        "bytes": benchmark["extra_info"].get("bytes"),
        "call_s": spread_of(benchmark),
    }
