"""Chains of blocks: matched, read ahead, brought up."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import Sizes
from bench.measure import read_files
from bench.stores import config_of, filled, hit, keys_of
from kvtier import Store
from kvtier_adapters.llama_cpp.demo import page_cache


@pytest.mark.parametrize("keep", [True, False], ids=["keep", "pass through"])
@pytest.mark.parametrize("cold", [True, False], ids=["cold", "page cache"])
def test_get_many(
    benchmark: BenchmarkFixture, block_bytes: int, sizes: Sizes, tmp_path: Path, keep: bool, cold: bool
) -> None:
    keys = keys_of(sizes.total_bytes, block_bytes)
    with filled(config_of(tmp_path), keys, block_bytes) as store:

        def setup() -> None:
            if cold:
                benchmark.extra_info["page_cache"] = page_cache.drop([tmp_path])
            else:
                read_files(tmp_path)

        def read() -> None:
            for outcome in store.get_many(keys, keep=keep):
                hit(outcome)

        benchmark.extra_info["bytes"] = len(keys) * block_bytes
        benchmark.pedantic(read, setup=setup, rounds=sizes.rounds)


def test_match(benchmark: BenchmarkFixture, block_bytes: int, sizes: Sizes, tmp_path: Path) -> None:
    """What it takes does not depend on the size of the blocks, but on how many there are."""
    keys = keys_of(sizes.total_bytes, block_bytes)
    with filled(config_of(tmp_path), keys, block_bytes) as store:
        benchmark.extra_info["blocks"] = len(keys)
        assert benchmark(store.match, keys) == len(keys)


def test_prefetch(benchmark: BenchmarkFixture, block_bytes: int, sizes: Sizes, tmp_path: Path) -> None:
    """From a cold SSD into RAM, until the last block is there."""
    keys = keys_of(sizes.total_bytes, block_bytes)
    config = config_of(tmp_path, ram_bytes=2 * len(keys) * block_bytes + (1 << 20))
    with filled(config, keys, block_bytes):
        pass

    def setup() -> tuple[tuple[Store], dict[str, object]]:
        for store in opened:
            store.close()
        opened[:] = [Store.open(config)]
        benchmark.extra_info["page_cache"] = page_cache.drop([tmp_path])
        return (opened[0],), {}

    def bring_up(store: Store) -> None:
        store.prefetch(keys)
        for key in keys:
            hit(store.get(key))

    opened: list[Store] = []
    benchmark.extra_info["bytes"] = len(keys) * block_bytes
    try:
        benchmark.pedantic(bring_up, setup=setup, rounds=sizes.rounds)
    finally:
        for store in opened:
            store.close()
