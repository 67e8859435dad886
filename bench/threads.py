"""Whether more threads that get blocks get more of them: the same work, shared by 1, 2, 4 and 8 threads.

Beside it memcpy, shared in the same way: how far this machine's memory goes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import alternate, read_files, spread, timed
from bench.stores import config_of, fill, hit, keys_of
from bench.workloads import MIB
from kvtier import Store
from kvtier_adapters.llama_cpp.demo import page_cache

THREADS = (1, 2, 4, 8)
_BLOCK_BYTES = 2 * MIB
_TOTAL_BYTES = 256 * MIB
_GETS = 20_000  # of blocks in RAM, where nothing is copied

#: One thread's part of the work: its number, and the keys that it gets.
Work = Callable[[int, Sequence[bytes]], None]


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Bytes a second that all threads get together (calls a second, where nothing is copied)."""
    total, rounds, gets = (_TOTAL_BYTES // 4, 3, _GETS // 4) if quick else (_TOTAL_BYTES, 9, _GETS)
    keys = keys_of(total, _BLOCK_BYTES)
    means = set()
    rows = []
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        disk = stack.enter_context(Store.open(config_of(folder / "disk")))
        memory = stack.enter_context(Store.open(config_of(folder / "ram", ram_bytes=2 * total)))
        for store in (disk, memory):
            fill(store, keys, _BLOCK_BYTES)
            store.flush()
        targets = [np.ones(_BLOCK_BYTES, dtype=np.uint8) for _ in range(max(THREADS))]
        source = np.ones(_BLOCK_BYTES, dtype=np.uint8)

        def get(store: Store, number: int, some: Sequence[bytes]) -> None:
            for key in some:
                hit(store.get(key))

        def get_into(store: Store, number: int, some: Sequence[bytes]) -> None:
            for key in some:
                if not store.get_into(key, targets[number].data):
                    raise RuntimeError(f"block {key!r} is missing")

        def copy(number: int, some: Sequence[bytes]) -> None:
            for _ in some:
                np.copyto(targets[number], source)

        def drop() -> None:
            means.add(page_cache.drop([folder / "disk"]))

        warm = partial(read_files, folder / "disk")
        many = [keys[i % len(keys)] for i in range(gets)]
        for what, work, asked, before in (
            ("get from RAM", partial(get, memory), many, None),
            ("get_into from RAM", partial(get_into, memory), keys * 4, None),
            ("memcpy", copy, keys * 4, None),
            ("get_into from the page cache", partial(get_into, disk), keys, warm),
            ("get from the page cache", partial(get, disk), keys, warm),
            ("get_into from a cold SSD", partial(get_into, disk), keys, drop),
        ):
            say(what)
            per_call = 1 if asked is many else _BLOCK_BYTES
            samples = _samples(work, asked, rounds, before)
            rates = {n: [len(asked) * per_call / s for s in seconds] for n, seconds in samples.items()}
            rows.append({"what": what, "unit": "calls" if asked is many else "bytes", **_compared(rates)})
    return {"block_bytes": _BLOCK_BYTES, "rows": rows, "page_cache": ", ".join(sorted(means))}


def _samples(
    work: Work, asked: Sequence[bytes], rounds: int, before: Callable[[], None] | None
) -> dict[str, list[float]]:
    """Seconds for all of it, by number of threads; these alternate."""

    def shared(threads: int) -> float:
        ends = [len(asked) * i // threads for i in range(threads + 1)]
        parts = [asked[start:end] for start, end in pairwise(ends)]  # each its own chain
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda _: None, range(threads)))  # the threads are there
            if before is not None:
                before()
            return timed(lambda: list(pool.map(work, range(threads), parts)))

    arms = {str(threads): partial(shared, threads) for threads in THREADS}
    alternate(arms, 1)  # once unmeasured
    return alternate(arms, rounds)


def _compared(rates: dict[str, list[float]]) -> dict[str, Any]:
    """The rates, and each divided by that of the next fewer threads: the median of neighbours in time."""
    steps = pairwise(THREADS)
    growth = {
        f"{more} / {fewer}": spread([b / a for a, b in zip(rates[str(fewer)], rates[str(more)], strict=True)])
        for fewer, more in steps
    }
    return {"rates": {threads: spread(samples) for threads, samples in rates.items()}, "growth": growth}
