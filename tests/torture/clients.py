"""The logical clients of a simulated store: each does a little, then it is another's turn, at every ``yield``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Protocol

from kvtier import FlushError, Hint, HitInto, Miss, Store
from tests.stores import KIB, names, noise
from tests.torture.model import Model

CHAINS = [names(8, f"c{number}-") for number in range(5)]
KEYS = [key for chain in CHAINS for key in chain]
SIZES = [0, 100, 4096, 9000, 20 * KIB, 24 * KIB, 24 * KIB]
HOUR, DAY = 3600.0, 86_400.0
TTLS = [None, None, None, 0, 10, HOUR, 5 * HOUR, 2 * DAY, 30 * DAY]

Client = Iterator[str]


class World(Protocol):
    """What clients see of the simulation."""

    store: Store
    model: Model
    rng: random.Random
    times: int  # how much longer than short ones its blocks are
    parents: dict[bytes, bytes | None]  # what each key was put to extend, the last time


def writes(world: World) -> Client:
    """A conversation: a chain grows, block by block. Few contents, so that many blocks share one."""
    while True:
        chain = world.rng.choice(CHAINS)
        first = world.rng.randrange(len(chain))
        for parent, key in zip([None, *chain[first:]], chain[first:], strict=False):
            yield put(world, key, noise(world.rng.randrange(60), _size(world)), parent)
        if world.rng.random() < 0.5:
            yield flushes(world)


def _size(world: World) -> int:
    size = world.rng.choice(SIZES)
    return size if world.times == 1 else size * world.times - size // 7  # such that none is whole pages


def put(world: World, key: bytes, value: bytes, parent: bytes | None) -> str:
    """With a time to live by chance."""
    ttl = world.rng.choice(TTLS)
    lives = world.store.config.store.ttl_s if ttl is None else ttl
    world.model.set(key, value, world.model.time.after(lives))
    world.parents[key] = parent
    given = bytearray(value) if world.times > 1 and world.rng.random() < 0.5 else value  # a copy starts with a page
    world.store.put(key, given, parent=parent, ttl=ttl)
    return f"put {key!r}, {len(value)} bytes for {lives} s"


def renews(world: World) -> Client:
    """The same once more, with another time to live: of a key that was put lately, most often."""
    while True:
        key = world.rng.choice(list(world.parents)[-12:] or KEYS)
        value = world.model.current(key)
        if value is None:
            yield "wait"
            continue
        yield put(world, key, value, world.parents.get(key))
        if world.rng.random() < 0.3:
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
        match world.rng.randrange(6):
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
            case 4:
                world.store.forget_keys()
                yield "forget what is in RAM"
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


def hints(world: World) -> Client:
    while True:
        chain, hint = world.rng.choice(CHAINS), Hint(ended=world.rng.random() < 0.5, priority=world.rng.randrange(3))
        world.store.hint(chain, hint)
        yield f"hint {chain[0]!r}: {hint}"
        for _ in range(world.rng.randrange(10)):
            yield "wait"


def pauses(world: World) -> Client:
    while True:
        for _ in range(world.rng.randrange(20)):
            yield "wait"
        world.store.pause_compaction()
        yield "pause"
        for _ in range(world.rng.randrange(10)):
            yield "wait"
        world.store.resume_compaction()
        yield "resume"


ALL: list[Callable[[World], Client]] = [*[writes] * 5, renews, reads, reads, looks, looks, deletes, pins, hints, pauses]
