"""Threads that read and write one store at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import Sizes
from bench.stores import config_of, filled, hit, keys_of
from bench.workloads import payloads, stamped

_READS_A_WRITE = 4
_ROUND_BYTES_MAX = 1 << 30


def test_read_and_write(
    benchmark: BenchmarkFixture, block_bytes: int, threads: int, sizes: Sizes, tmp_path: Path
) -> None:
    """Four blocks are read for each that is written; all that was written is durable at the end."""
    if threads * (_READS_A_WRITE + 1) * block_bytes > _ROUND_BYTES_MAX:
        pytest.skip(f"one round of {threads} threads would move more than 1 GiB")
    keys = keys_of(sizes.total_bytes, block_bytes)
    blocks = [payloads(1, block_bytes)[0] for _ in range(threads)]
    numbers = count(len(keys))
    writes = max(1, len(keys) // (_READS_A_WRITE * threads))
    with filled(config_of(tmp_path), keys, block_bytes) as store, ThreadPoolExecutor(threads) as pool:

        def some(worker: int) -> None:
            for n in range(writes):
                for i in range(_READS_A_WRITE):
                    hit(store.get(keys[(worker * writes + n) * _READS_A_WRITE % len(keys) - i]))
                number = next(numbers)
                store.put(b"new %d" % number, stamped(blocks[worker], number).data)

        def run() -> None:
            for _ in pool.map(some, range(threads)):
                pass
            store.flush()

        benchmark.extra_info["bytes"] = threads * writes * (_READS_A_WRITE + 1) * block_bytes
        benchmark.pedantic(run, rounds=sizes.rounds)
