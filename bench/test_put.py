"""Putting blocks: what the caller waits for, and what it takes until they are durable."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import Sizes
from bench.stores import config_of, fill, keys_of
from bench.workloads import payloads, stamped
from kvtier import Store


def test_put(benchmark: BenchmarkFixture, tmp_path: Path, block_bytes: int, sizes: Sizes) -> None:
    """One block, copied; what the write queue holds by then is written between the rounds, not within them."""
    block, numbers = payloads(1, block_bytes)[0], count(1)
    with Store.open(config_of(tmp_path)) as store:

        def setup() -> None:
            stamped(block, next(numbers))
            store.flush()

        benchmark.extra_info["bytes"] = block_bytes
        benchmark.pedantic(lambda: store.put(b"%d" % next(numbers), block.data), setup=setup, rounds=2 * sizes.rounds)


def test_put_give(benchmark: BenchmarkFixture, tmp_path: Path, block_bytes: int, sizes: Sizes) -> None:
    """One block whose memory the store takes over."""
    numbers = count(1)
    with Store.open(config_of(tmp_path)) as store:

        def setup() -> tuple[tuple[bytes, memoryview], dict[str, object]]:
            store.flush()
            number = next(numbers)
            return (b"%d" % number, stamped(payloads(1, block_bytes)[0], number).data), {}

        def put(key: bytes, block: memoryview) -> None:
            store.put(key, block, give=True)

        benchmark.extra_info["bytes"] = block_bytes
        benchmark.pedantic(put, setup=setup, rounds=2 * sizes.rounds)


def test_put_and_flush(benchmark: BenchmarkFixture, tmp_path: Path, block_bytes: int, sizes: Sizes) -> None:
    """Many blocks, until the last one is durable."""
    numbers = count()

    def fresh() -> tuple[tuple[Callable[[], None]], dict[str, object]]:
        n = next(numbers)
        keys = [b"%d." % n + key for key in keys_of(sizes.total_bytes, block_bytes)]
        return (lambda: fill(store, keys, block_bytes, seed=n),), {}

    def durable(put: Callable[[], None]) -> None:
        put()
        store.flush()

    with Store.open(config_of(tmp_path)) as store:
        benchmark.extra_info["bytes"] = len(keys_of(sizes.total_bytes, block_bytes)) * block_bytes
        benchmark.pedantic(durable, setup=fresh, rounds=sizes.rounds)
