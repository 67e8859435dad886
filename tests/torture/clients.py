"""The logical clients of a simulated store: each does a little, then it is another's turn, at every ``yield``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Protocol

from kvtier import FlushError, HitInto, Miss, Store
from tests.stores import KIB, names, noise
from tests.torture.model import Model

CHAINS = [names(8, f"c{number}-") for number in range(5)]
KEYS = [key for chain in CHAINS for key in chain]
SIZES = [0, 100, 4096, 9000, 20 * KIB, 24 * KIB, 24 * KIB]

Client = Iterator[str]


class World(Protocol):
    """What clients see of the simulation."""

    store: Store
    model: Model
    rng: random.Random


def writes(world: World) -> Client:
    """A conversation: a chain grows, block by block. Few contents, so that many blocks share one."""
    while True:
        chain = world.rng.choice(CHAINS)
        first = world.rng.randrange(len(chain))
        for parent, key in zip([None, *chain[first:]], chain[first:], strict=False):
            value = noise(world.rng.randrange(60), world.rng.choice(SIZES))
            world.model.set(key, value)
            world.store.put(key, value, parent=parent)
            yield f"put {key!r}, {len(value)} bytes"
        if world.rng.random() < 0.5:
            yield flushes(world)


def flushes(world: World) -> str:
    try:
        world.store.flush()
    except FlushError as e:
        world.model.write_failed()
        world.model.oracle.failed()
        return f"flush: {e.failed} failed"
    world.model.oracle.flushed()
    return "flush"


def deletes(world: World) -> Client:
    while True:
        key = world.rng.choice(KEYS)
        if world.store.delete(key):
            world.model.set(key, None)
        yield f"delete {key!r}"
        for _ in range(5):
            yield "wait"


def reads(world: World) -> Client:
    """A chain, whose blocks are changed and moved by others while it is being read."""
    while True:
        chain = world.rng.choice(CHAINS)
        keep = world.rng.random() < 0.5
        since = {key: world.model.now(key) for key in chain}
        for key, outcome in zip(chain, world.store.get_many(chain, keep=keep), strict=True):
            world.model.check(key, outcome, since[key])
            yield f"read {key!r}: {outcome.reason.value if isinstance(outcome, Miss) else outcome.tier}"


def looks(world: World) -> Client:
    """One block at a time, by every other way to read."""
    while True:
        key, chain = world.rng.choice(KEYS), world.rng.choice(CHAINS)
        since = world.model.now(key)
        match world.rng.randrange(5):
            case 0:
                outcome = world.store.get(key)
                world.model.check(key, outcome, since)
                yield f"get {key!r}: {bool(outcome)}"
            case 1:
                yield f"get_into {key!r}: {_get_into(world, key)}"
            case 2:
                yield f"prefetch {chain[0]!r}: {world.store.prefetch(chain)}"
            case 3:
                yield f"match {chain[0]!r}: {world.store.match(chain)}"
            case _:
                yield f"explain {key!r}: {world.store.explain(key).state.value}"


def _get_into(world: World, key: bytes) -> bool:
    since, info = world.model.now(key), world.store.info(key)
    if info is None:
        return False
    target = bytearray(info.nbytes)
    outcome = world.store.get_into(key, target)
    if isinstance(outcome, HitInto):
        world.model.check_bytes(key, bytes(target), since)
        return True
    assert isinstance(outcome, Miss)
    world.model.check(key, outcome, since)
    return False


def pins(world: World) -> Client:
    while True:
        chain = world.rng.choice(CHAINS)[: world.rng.randint(1, 4)]
        world.store.pin(chain)
        yield f"pin {chain[0]!r} and {len(chain) - 1} more"
        for _ in range(world.rng.randrange(10)):
            yield "wait"
        world.store.unpin(chain)
        yield f"unpin {chain[0]!r}"


ALL: list[Callable[[World], Client]] = [*[writes] * 5, reads, reads, looks, looks, deletes, pins]
