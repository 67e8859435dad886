"""The same work for a long time, in a process of its own: its memory, descriptors, threads and disk use stay flat.

``python -m tests.torture.soak FOLDER SEED SECONDS ROUNDS`` prints a sample after every round, as a line of JSON, until
the seconds are over, and at least for so many rounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kvtier import Store
from tests.concurrency.mixture import Versions, small, work
from tests.stores import MIB, occupied
from tests.torture.stage import Case

_THREADS, _OPERATIONS, _REOPEN_EVERY = 4, 200, 10
ROUNDS_MIN = 30
#: How much the highest sample of the last third may exceed that of the second: memory is given back in large pieces,
#: and there is a descriptor for each segment.
_MAY_GROW = {"rss_bytes": 8 * MIB, "descriptors": 8, "threads": 0, "disk_bytes": MIB}

Sample = dict[str, int]


def sample(folder: Path) -> Sample:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "disk_bytes": occupied(folder),
    }


def live(folder: Path, seed: int, seconds: float, rounds: int) -> None:
    """Many threads' work in short rounds; every tenth opens the store anew."""
    versions, until, number = Versions(), time.monotonic() + seconds, 0
    while number < rounds or time.monotonic() < until:
        with Store.open(small(folder)) as store:
            for _ in range(_REOPEN_EVERY):
                seeds = range(seed + number * _THREADS, seed + (number + 1) * _THREADS)
                with ThreadPoolExecutor(_THREADS) as pool:
                    list(pool.map(lambda s, store=store: work(store, versions, s, _OPERATIONS), seeds))
                store.flush()
                assert store.stats().quarantined == 0
                number += 1
                print(json.dumps(sample(folder)), flush=True)


def growth(samples: Sequence[Sample]) -> dict[str, int]:
    """Of what grew too much from the second third to the last: by how much."""
    third = len(samples) // 3
    by = {
        name: max(s[name] for s in samples[-third:]) - max(s[name] for s in samples[third:-third]) for name in _MAY_GROW
    }
    return {name: grown for name, grown in by.items() if grown > _MAY_GROW[name]}


def run_soak(case: Case) -> Counter[str]:
    seconds = max(0.0, case.until - time.monotonic())
    command = [sys.executable, "-m", "tests.torture.soak", case.folder, case.seed, seconds, ROUNDS_MIN]
    done = subprocess.run(list(map(str, command)), cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    samples = [json.loads(line) for line in done.stdout.splitlines()]
    grown = growth(samples)
    assert not grown, f"{grown} in {len(samples)} rounds; the last one: {samples[-1]}"
    return Counter(rounds=len(samples), operations=len(samples) * _THREADS * _OPERATIONS, **samples[-1])


def why_no_soak() -> str | None:
    return None if sys.platform == "linux" else "the platform has no /proc"


if __name__ == "__main__":
    live(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
