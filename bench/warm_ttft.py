"""Time to first token in a new process: kvtier from each of its tiers, what else there is, no cache, and a limit.

Others are llama.cpp's own state file, and llama-cpp-python's LlamaDiskCache and LlamaRAMCache. What is in RAM was
brought there before the clock starts. The hard disk is a formula (:mod:`bench.modelled_disk`), which makes each read
take its time: a model, not a measurement.

For each model and length, one process evaluates the prompt and saves it in the three forms; then the arms
alternate, a new process (:mod:`bench.warm_ttft_arm`) for each sample (the cold one is taken once). The clock
runs from the request (model loaded, weights touched, store open, tokens in hand) to the first token. The
files of all arms are dropped from memory just before it starts. The limit reads the same state from a plain file, from
end to end into memory in use (in pieces of 1 MiB through the page cache, or of 8 MiB past it: whichever is faster),
sets it (``llama_state_seq_set_data``) and decodes one token.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import alternate_with_peers, folder_bytes, spread
from bench.workloads import model_files, prompt
from kvtier_adapters.llama_cpp.demo import page_cache

OURS = ("kvtier", "kvtier_ram", "kvtier_hdd")
PEERS = ("raw", "disk_cache", "ram_cache")
LIMITS = ("limit_cached", "limit_direct")
ARMS = (*OURS, *LIMITS, *PEERS, "cold")
_LENGTHS = {"SmolLM2-135M": (1024, 4096, 8000), "Gemma 3 270M": (1024, 4096, 15_000)}
_QUICK_TOKENS = 256


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """One row for each model and length; times in seconds."""
    rows = []
    for name, model in model_files().items():
        for tokens in (_QUICK_TOKENS,) if quick else _LENGTHS[name]:
            rows.append(_measure(name, model, tokens, 2 if quick else 5, say))
    return {"rows": rows, "page_cache": rows[0]["page_cache"]}


def _measure(name: str, model: Path, tokens: int, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch:
        folder = Path(scratch)
        job = {"model": str(model), "folder": scratch, "prompt": prompt(model, tokens)}
        say(f"{name}, {tokens} tokens: saving")
        saved, _ = _process({**job, "arm": "save"}, folder)
        (folder / "disk_cache").rename(folder / "disk_cache.kept")
        means = set()
        first: dict[str, set[int]] = {arm: set() for arm in ARMS}
        opening: list[float] = []
        parts: dict[str, dict[str, list[float]]] = {arm: defaultdict(list) for arm in LIMITS}

        def sample(arm: str) -> float:
            say(f"{name}, {tokens} tokens: {arm}")
            if arm in ("disk_cache", "ram_cache"):
                _restore_disk_cache(folder)
            done, dropped = _process({**job, "arm": arm}, folder)
            means.add(dropped)
            first[arm].add(done["token"])
            for part, seconds in done.get("parts_s", {}).items():
                parts[arm][part].append(seconds)
            if arm == "kvtier":
                opening.append(done["open_s"])
            if arm in OURS and done["restored"] != tokens - 1:
                raise RuntimeError(f"{done['restored']} of {tokens} tokens restored: {done['stats']}")
            return float(done["ttft_s"])

        warm = {arm: partial(sample, arm) for arm in ARMS if arm != "cold"}
        samples, failed = alternate_with_peers(warm, (*PEERS, "limit_direct"), repeats)
        samples["cold"] = [sample("cold")]  # once: it is the goal of nothing, and takes longest
        times = {arm: spread(found) for arm, found in samples.items()}
        limit = min((arm for arm in LIMITS if arm in times), key=lambda arm: times[arm]["median"])
        times["limit"] = times[limit]
        return {
            "model": name,
            "tokens": tokens,
            "ttft_s": times,
            "failed": failed,
            "kvtier_to_raw": _ratio(times, "kvtier", "raw"),
            "kvtier_to_limit": _ratio(times, "kvtier", "limit"),
            "limit_parts_s": {part: spread(seconds) for part, seconds in parts[limit].items()},
            "open_s": spread(opening),
            "save_s": saved["save_s"],
            "bytes": {
                "kvtier": folder_bytes(folder / "kvtier"),
                "raw": folder_bytes(folder / "raw"),
                "disk_cache": folder_bytes(folder / "disk_cache.kept"),
            },
            "same_first_token": len(set.union(*first.values())) == 1,
            "page_cache": ", ".join(sorted(means)),
        }


def _ratio(times: dict[str, dict[str, float]], arm: str, other: str) -> float | None:
    """Of medians; None where the other one has none."""
    return times[arm]["median"] / times[other]["median"] if other in times else None


def _restore_disk_cache(folder: Path) -> None:
    """LlamaDiskCache deletes what it reads: give it another copy; linked, where it only unlinks."""
    shutil.rmtree(folder / "disk_cache", ignore_errors=True)

    def copy(source: str, target: str) -> None:
        if source.endswith(".val"):
            Path(target).hardlink_to(source)
        else:
            shutil.copy2(source, target)

    shutil.copytree(folder / "disk_cache.kept", folder / "disk_cache", copy_function=copy)


def _process(job: dict[str, Any], folder: Path) -> tuple[dict[str, Any], str]:
    """Run one arm in a new process: what it reports, and how the page cache was dropped before its clock started."""
    command = [sys.executable, "-m", "bench.warm_ttft_arm"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            if process.stdout.readline() != "loaded\n":
                raise RuntimeError(f"arm {job['arm']} did not load")
            dropped = page_cache.drop([folder])
            process.stdin.write("go\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"arm {job['arm']} ended early")
            return json.loads(line), dropped
        finally:
            process.stdin.close()
            if process.wait(timeout=60) != 0:
                raise RuntimeError(f"arm {job['arm']} failed")
