"""Single operations of the store, by pytest-benchmark: ``python -m pytest bench`` shows them by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.workloads import MIB, payloads
from kvtier import Config, Store
from kvtier_adapters.prefix import PrefixKeys

_BLOCKS = 512


def keys() -> list[bytes]:
    return [b"%032d" % i for i in range(_BLOCKS)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """512 small blocks, on disk only."""
    tier = {"name": "disk", "kind": "ssd", "bytes_max": "2GiB"}
    config = Config.from_dict({"store": {"path": str(tmp_path)}, "ram": {"bytes_max": 0}, "tier": [tier]})
    with Store.open(config) as opened:
        for i, key in enumerate(keys()):
            opened.put(key, b"%04d" % i * 256)
        opened.flush()
        yield opened


def test_get_2_mib_from_ram(benchmark: BenchmarkFixture) -> None:
    with Store.open(Config.from_dict({"ram": {"bytes_max": "64MiB"}})) as store:
        store.put(b"key", payloads(1, 2 * MIB)[0].data)
        assert benchmark(store.get, b"key")


def test_get_1_kib_from_disk(benchmark: BenchmarkFixture, store: Store) -> None:
    assert benchmark(store.get, keys()[7])


def test_put_1_kib(benchmark: BenchmarkFixture, store: Store) -> None:
    numbers = count()

    def put() -> None:
        n = next(numbers)
        store.put(b"new %d" % n, b"%08d" % n * 128)

    benchmark(put)


def test_info(benchmark: BenchmarkFixture, store: Store) -> None:
    assert benchmark(store.info, keys()[7])


def test_match_512_blocks(benchmark: BenchmarkFixture, store: Store) -> None:
    assert benchmark(store.match, keys()) == _BLOCKS


def test_keys_of_8192_tokens(benchmark: BenchmarkFixture) -> None:
    tokens = payloads(1, 8192 * 4)[0].tobytes()
    benchmark(lambda: PrefixKeys(bytes(32), bytes(32), tokens, 256).at(8192))
