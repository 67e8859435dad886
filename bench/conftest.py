"""Sizes of the I/O benchmarks: small in tests, so that each runs in a moment; ``python -m bench`` asks for more."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from bench.workloads import MIB

KIB = 1 << 10


class Sizes(NamedTuple):
    """``total_bytes``: of the blocks of one benchmark, of which there are at least four."""

    block_bytes: tuple[int, ...]
    total_bytes: int
    threads: tuple[int, ...]
    rounds: int


SIZES = {
    "small": Sizes((64 * KIB, 2 * MIB), 4 * MIB, (1, 4), 1),
    "quick": Sizes((64 * KIB, 2 * MIB), 16 * MIB, (1, 4), 3),
    "full": Sizes((64 * KIB, 256 * KIB, MIB, 2 * MIB, 8 * MIB, 64 * MIB), 128 * MIB, (1, 2, 4, 8), 5),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sizes", choices=list(SIZES), default="small", help="sizes of the I/O benchmarks")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = SIZES[metafunc.config.getoption("--sizes")]
    if "block_bytes" in metafunc.fixturenames:
        names = [f"{n // MIB} MiB" if n >= MIB else f"{n // KIB} KiB" for n in chosen.block_bytes]
        metafunc.parametrize("block_bytes", chosen.block_bytes, ids=names)
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", chosen.threads, ids=[f"{n} threads" for n in chosen.threads])


@pytest.fixture
def sizes(request: pytest.FixtureRequest) -> Sizes:
    return SIZES[request.config.getoption("--sizes")]
