"""Every policy of the package keeps at most 64 bytes a block: all arrays, with the spare room at their ends. What
hit-density has learned takes up to 46 kB beside that, whatever the size of the tier."""

from __future__ import annotations

import random

import pytest

from kvtier.policy import registry

BYTES_A_BLOCK = 64
SIZES = (40_000, 58_000, 65_600)  # the last: just after the sketch has grown


@pytest.mark.parametrize("name", registry.EVICTION)
def test_a_block_takes_64_bytes_at_most(name: str) -> None:
    rng = random.Random(1)
    policy = registry.EVICTION[name]()
    parent = 0
    for clock in range(1, SIZES[-1] + 1):
        block = rng.getrandbits(63) + 1
        policy.add(block, parent, clock, 1 << 20)
        parent = block if clock % 20 else 0
        if clock in SIZES:
            assert policy.nbytes <= BYTES_A_BLOCK * clock  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", registry.EVICTION)
def test_a_full_tier_takes_64_bytes_a_block_for_ever(name: str) -> None:
    capacity = 10_000 if name == "hit-density" else 5_000
    rng = random.Random(2)
    policy = registry.EVICTION[name]()
    parent = 0
    for clock in range(1, 5 * capacity):
        if len(policy) == capacity:
            policy.pop()
        block = rng.getrandbits(63) + 1
        policy.add(block, parent, clock, 1 << 20)
        parent = block if clock % 10 else 0
    assert policy.nbytes <= BYTES_A_BLOCK * capacity  # type: ignore[attr-defined]
