"""Getting one block: from RAM, from the write queue, from an SSD with and without the page cache, from a hard disk that
is a formula."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import Sizes
from bench.measure import read_files
from bench.modelled_disk import ModelledDisk
from bench.stores import config_of, fill, filled, hit, keys_of
from kvtier import Store
from kvtier_adapters.llama_cpp.demo import page_cache

Read = Callable[[Store, bytes], object]
Call = Callable[[], object]


@pytest.fixture(params=["get", "get_into"])
def read(request: pytest.FixtureRequest, block_bytes: int) -> Read:
    """What reads one block: into new memory, or into the caller's."""
    if request.param == "get":
        return lambda store, key: hit(store.get(key))
    target = np.zeros(block_bytes, dtype=np.uint8)

    def into(store: Store, key: bytes) -> None:
        if not store.get_into(key, target.data):
            raise RuntimeError(f"block {key!r} is missing")

    return into


def each(benchmark: BenchmarkFixture, store: Store, keys: Iterable[bytes], block_bytes: int, read: Read) -> Call:
    """What is timed: a read of the next key, and after the last one of the first again."""
    turn = cycle(keys)
    benchmark.extra_info["bytes"] = block_bytes
    return lambda: read(store, next(turn))


def test_from_ram(benchmark: BenchmarkFixture, block_bytes: int, sizes: Sizes, tmp_path: Path, read: Read) -> None:
    keys = keys_of(sizes.total_bytes, block_bytes)
    config = config_of(tmp_path, ram_bytes=2 * len(keys) * block_bytes + (1 << 20))
    with filled(config, keys, block_bytes) as store:
        benchmark(each(benchmark, store, keys, block_bytes, read))


def test_pending(benchmark: BenchmarkFixture, block_bytes: int, sizes: Sizes, tmp_path: Path, read: Read) -> None:
    """Nothing of it is durable: without its worker the store writes when it is closed."""
    keys = keys_of(sizes.total_bytes, block_bytes)
    with Store.open(config_of(tmp_path), background=False) as store:
        fill(store, keys, block_bytes)
        benchmark(each(benchmark, store, keys, block_bytes, read))


def test_from_ssd(benchmark: BenchmarkFixture, block_bytes: int, sizes: Sizes, tmp_path: Path, read: Read) -> None:
    """The files are in the page cache."""
    keys = keys_of(sizes.total_bytes, block_bytes)
    with filled(config_of(tmp_path), keys, block_bytes) as store:
        read_files(tmp_path)
        benchmark(each(benchmark, store, keys, block_bytes, read))


def test_from_cold_ssd(benchmark: BenchmarkFixture, block_bytes: int, sizes: Sizes, tmp_path: Path, read: Read) -> None:
    """They are not."""
    keys = keys_of(sizes.total_bytes, block_bytes)
    with filled(config_of(tmp_path), keys, block_bytes) as store:

        def setup() -> None:
            benchmark.extra_info["page_cache"] = page_cache.drop([tmp_path])

        timed = each(benchmark, store, keys, block_bytes, read)
        benchmark.pedantic(timed, setup=setup, rounds=4 * sizes.rounds)


def test_from_hdd(benchmark: BenchmarkFixture, block_bytes: int, sizes: Sizes, tmp_path: Path, read: Read) -> None:
    """A model, which takes 10 ms for each way of the head and reads 160 MB/s: not a measurement of a disk."""
    keys = keys_of(0, block_bytes)
    disk = ModelledDisk(tmp_path / "hdd", sleeps=True)
    config = config_of(tmp_path / "store", kind="hdd", disk=tmp_path / "hdd" / "tier")
    with filled(config, keys, block_bytes, disk) as store:
        timed = each(benchmark, store, keys[::-1], block_bytes, read)  # no read goes on where the last one ended
        benchmark.pedantic(timed, rounds=sizes.rounds)
