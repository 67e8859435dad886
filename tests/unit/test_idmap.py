"""The map from ids to slots against a dict, and the ghost queue against an ordered dict."""

from __future__ import annotations

import random

import pytest

from kvtier.policy.eviction.ghost import Ghost
from kvtier.policy.eviction.idmap import NONE, IdMap


@pytest.mark.parametrize("stride", [1, 1 << 20, 1 << 40, (1 << 30) - 35])
def test_it_finds_what_a_dict_finds(stride: int) -> None:
    rng = random.Random(stride)
    ids, slots = IdMap(), dict[int, int]()
    for _ in range(4_000):
        key = rng.randint(1, 600) * stride
        if rng.random() < 0.6:
            assert slots.setdefault(key, ids.reserve(key)) == ids.seek(key)
        elif key in slots:
            ids.drop(slots.pop(key))
        assert ids.seek(key) == slots.get(key, NONE)
    assert {key: ids.seek(key) for key in slots} == slots
    assert len(set(slots.values())) == len(slots)
    assert len(ids.ids) <= 600 + 64 + 1  # slots are used again


def test_the_ghost_queue_forgets_the_oldest() -> None:
    rng = random.Random(1)
    ghost, expected = Ghost(), dict[int, None]()
    for _ in range(3_000):
        block = rng.randint(1, 200)
        if rng.random() < 0.7:
            ghost.add(block)
            expected.setdefault(block)
        else:
            assert ghost.discard(block) == (block in expected)
            expected.pop(block, None)
        ghost.trim(50)
        while len(expected) > 50:
            del expected[next(iter(expected))]
    assert [ghost.discard(block) for block in range(1, 201)] == [block in expected for block in range(1, 201)]
