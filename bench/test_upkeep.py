"""What a store does for itself: opening, and compaction."""

from __future__ import annotations

import shutil
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import Sizes
from bench.stores import config_of, filled, keys_of
from bench.workloads import MIB
from kvtier import Config, Store
from kvtier.compacting import compact
from kvtier_adapters.llama_cpp.demo import page_cache


def test_reopen(benchmark: BenchmarkFixture, block_bytes: int, sizes: Sizes, tmp_path: Path) -> None:
    """A store that was closed in order, its files not in memory."""
    config = config_of(tmp_path)
    with filled(config, keys_of(sizes.total_bytes, block_bytes), block_bytes):
        pass
    opened: list[Store] = []

    def setup() -> None:
        while opened:
            opened.pop().close()
        benchmark.extra_info["page_cache"] = page_cache.drop([tmp_path])

    benchmark.pedantic(lambda: opened.append(Store.open(config)), setup=setup, rounds=2 * sizes.rounds)
    opened.pop().close()


def test_compact(benchmark: BenchmarkFixture, block_bytes: int, sizes: Sizes, tmp_path: Path) -> None:
    """Three of four blocks were deleted, from segments of four blocks or 8 MiB: the rest is copied together."""
    keys = keys_of(sizes.total_bytes, block_bytes)
    made, copy = tmp_path / "made", tmp_path / "copy"

    def config(folder: Path) -> Config:
        segment_bytes = max(8 * MIB, 4 * block_bytes + MIB)
        return config_of(folder, segment_bytes=segment_bytes, value_bytes_max=max(block_bytes, MIB))

    with filled(config(made), keys, block_bytes) as store:
        for number, key in enumerate(keys):
            if number % 4:
                store.delete(key)
        store.flush()

    def setup() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(made, copy)

    def run() -> None:
        assert compact(config(copy)).is_done

    benchmark.extra_info["bytes"] = -(-len(keys) // 4) * block_bytes
    benchmark.pedantic(run, setup=setup, rounds=sizes.rounds)
