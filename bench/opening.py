"""How long it takes to open a store with many blocks, closed in order or killed. A new process each time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import alternate, folder_bytes, spread
from kvtier import Config, Store
from kvtier_adapters.llama_cpp.demo import page_cache

PAYLOAD_BYTES = 512
_CHAIN_BLOCKS = 100


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds for ``Store.open`` of 1,000,000 blocks (quick: 10,000), the files not in memory."""
    blocks, repeats = (10_000 if quick else 1_000_000), 3
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch:
        kept = {end: Path(scratch) / end for end in ("closed", "killed")}
        for end, folder in kept.items():
            say(f"{blocks} blocks, {end}")
            _build(folder, blocks, kill=end == "killed")
        means = set()

        def sample(end: str) -> float:
            copy = Path(scratch) / "copy"
            shutil.copytree(kept[end], copy)
            try:
                means.add(page_cache.drop([copy]))
                command = [sys.executable, "-m", "bench.opening", "open", str(copy), str(blocks)]
                return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            finally:
                shutil.rmtree(copy)

        say("opening")
        samples = alternate({end: partial(sample, end) for end in kept}, repeats)
        return {
            "blocks": blocks,
            "payload_bytes": PAYLOAD_BYTES,
            "open_s": {end: spread(s) for end, s in samples.items()},
            "index_bytes_per_block": (folder_bytes(kept["closed"]) - _segment_bytes(kept["closed"])) / blocks,
            "page_cache": ", ".join(sorted(means)),
        }


def _segment_bytes(folder: Path) -> int:
    return sum(folder_bytes(f) for f in folder.rglob("*.seg"))


def _build(folder: Path, blocks: int, *, kill: bool) -> None:
    command = [sys.executable, "-m", "bench.opening", "build", str(folder), str(blocks)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "durable\n":
                raise RuntimeError("the store was not built")
            if not kill:
                process.stdin.close()
                process.wait()
        finally:
            process.kill()


def _open(folder: str) -> Store:
    tier = {"name": "disk", "kind": "ssd", "bytes_max": "16GiB"}
    return Store.open(Config.from_dict({"store": {"path": folder}, "tier": [tier]}))


def _main(what: str, folder: str, blocks: int) -> None:
    if what == "build":
        with _open(folder) as store:
            for i in range(blocks):
                parent = _key(i - 1) if i % _CHAIN_BLOCKS else None
                store.put(_key(i), i.to_bytes(8, "little") * (PAYLOAD_BYTES // 8), parent=parent)
            store.flush()
            sys.stdout.write("durable\n")
            sys.stdout.flush()
            sys.stdin.read()
        return
    begin = time.perf_counter()
    store = _open(folder)
    seconds = time.perf_counter() - begin
    if store.stats().blocks != blocks:
        raise RuntimeError(f"{store.stats().blocks} blocks of {blocks}")
    store.close()
    sys.stdout.write(f"{seconds}\n")


def _key(i: int) -> bytes:
    return b"%032d" % i


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
