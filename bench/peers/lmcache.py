"""LMCache's disk adapters, and kvtier plugged in beside them, by LMCache's own ``lmcache bench l2``.

Each sample is three runs of that command: a store of new objects into an empty folder, then loads by new processes,
with the page cache warm and dropped. They have one round each, as its objects have the same bytes in every round, which
kvtier would write once. LMCache's environment is the one that ``make lmcache`` makes.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.measure import read_files, spread
from bench.peers.fleet import Left
from bench.peers.peer import Survives, sync_files
from bench.peers.registry import Kind
from kvtier_adapters.llama_cpp.demo import page_cache

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / os.environ.get("LMCACHE_VENV", ".venv-lmcache") / "bin" / "lmcache"
OURS = "kvtier"
_QUIET = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1", "LMCACHE_LOG_LEVEL": "ERROR"}
_TIMEOUT_S = 300

Spec = Callable[[Path], dict[str, Any]]


def _plugin(folder: Path, **more: object) -> dict[str, Any]:
    """As docs/lmcache.md configures it."""
    tier = {"name": "disk", "kind": "ssd", "bytes_max": "16GiB"}
    ahead = {"threads": 1, "coalesce_bytes_max": "64KiB"}
    config = {"store": {"path": str(folder)}, "ram": {"bytes_max": 0}, "prefetch": ahead, "tier": [tier]}
    name = {"module_path": "kvtier_adapters.lmcache", "class_name": "KvtierL2Adapter"}
    return {"type": "plugin", **name, "adapter_params": {"config": config, **more}}


def _native(folder: Path, **more: object) -> dict[str, Any]:
    return {"type": "fs_native", "base_path": str(folder), **more}


class Adapter(NamedTuple):
    """``spec``: what is put behind ``--l2-adapter``. The others are as in :class:`bench.peers.peer.Facts`."""

    kind: Kind
    spec: Spec
    checks: bool
    acknowledged: Survives


ADAPTERS = {
    OURS: Adapter("ours", _plugin, True, "nothing"),
    "kvtier, `durable`": Adapter("ours", lambda folder: _plugin(folder, durable=True), True, "a power loss"),
    "fs": Adapter("peer", lambda folder: {"type": "fs", "base_path": str(folder)}, False, "a kill"),
    "fs_native": Adapter("peer", _native, False, "a kill"),
    "fs_native, `O_DIRECT`": Adapter("peer", lambda folder: _native(folder, use_odirect=True), False, "a kill"),
}


def measure(
    names: Sequence[str], keys: int, block_bytes: int, repeats: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Bytes a second of each of these adapters, in turns, or why there are none."""
    if not COMMAND.exists():
        return {"missing": "not installed: `make lmcache` makes its environment", "rows": []}
    samples: dict[str, dict[str, list[float]]] = {name: {"store": [], "warm": [], "cold": []} for name in names}
    missing: dict[str, str] = {}
    means: set[str] = set()
    for number in range(repeats):
        for name in names:
            if name not in missing:
                say(f"{name}, {number + 1} of {repeats}")
                try:
                    _sample(ADAPTERS[name].spec, keys, block_bytes, samples[name], means)
                except Left as e:
                    missing[name] = str(e)
    rows = [
        {
            "name": name,
            "kind": ADAPTERS[name].kind,
            "checks": ADAPTERS[name].checks,
            "acknowledged": ADAPTERS[name].acknowledged,
            "missing": missing.get(name),
            **{what: spread(rates) if rates else None for what, rates in samples[name].items()},
        }
        for name in names
    ]
    return {"missing": None, "keys": keys, "rows": rows, "page_cache": ", ".join(sorted(means))}


def _sample(spec: Spec, keys: int, block_bytes: int, samples: Mapping[str, list[float]], means: set[str]) -> None:
    """One store and its two loads. Raises :class:`Left`."""
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch:
        folder = Path(scratch) / "blocks"
        samples["store"].append(_run(spec(folder), "store", keys, block_bytes))
        sync_files(folder)
        read_files(folder)
        samples["warm"].append(_run(spec(folder), "load", keys, block_bytes))
        means.add(page_cache.drop([folder]))
        samples["cold"].append(_run(spec(folder), "load", keys, block_bytes))


def _run(spec: Mapping[str, Any], only: str, keys: int, block_bytes: int) -> float:
    """Bytes a second of one round. Raises :class:`Left` if it failed, or moved less than everything."""
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch:
        report = Path(scratch) / "report.json"
        what = ["--only", only, "--rounds", "1", "--warmup-rounds", "0", "--num-keys", str(keys)]
        how = ["--data-size-kb", str(block_bytes >> 10), "--l1-align-bytes", "4096"]
        out = ["--format", "json", "--output", str(report), "--quiet"]
        command = [str(COMMAND), "bench", "l2", "--l2-adapter", json.dumps(spec), *what, *how, *out]
        environment = {**os.environ, **_QUIET, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "adapters")))}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as e:
            raise Left(f"no answer within {_TIMEOUT_S} s") from e
        if done.returncode or not report.exists():
            words = done.stderr.strip().splitlines()
            raise Left(f"ended with code {done.returncode}" + (f": {words[-1]}" if words else ""))
        return rate(json.loads(report.read_text(encoding="utf-8")), keys * block_bytes)


def rate(report: Mapping[str, Any], nbytes: int) -> float:
    """Bytes a second, from what ``lmcache bench l2`` reports of one operation. Raises :class:`Left` if it failed."""
    section = report["metrics"]["op_0"]
    if section["total_success"] != section["total_keys"]:
        raise Left(f"{section['total_success']} of {section['total_keys']} objects")
    return float(nbytes / (section["duration_avg_ms"] / 1e3))
