"""Real kills: a process that reads and writes with several threads is killed at some moment, again and again.

The oracle lives here, in the parent, which learns over a pipe what the victim was about to do and what it was
promised; it also reads along, as another process may.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
from collections import Counter
from functools import cache, partial
from multiprocessing.context import ForkServerContext
from pathlib import Path

from kvtier import Config, Hit, Store
from tests.crash import victim
from tests.crash.oracle import Oracle, WrongBytes, check_usable, tell_of_losses
from tests.crash.scale import LONG, SHORT
from tests.crash.victim import KEYS, WRITERS, Manner, Said, is_value_of, key_of
from tests.stores import KIB, MIB, settle, value_of

SHORT_ONES = SHORT["blocks are evicted"]._replace(top_bytes=2 * MIB, low_bytes=512 * KIB)
LONG_ONES = LONG["long blocks are evicted"]._replace(top_bytes=16 * MIB)


def kill_again_and_again(folder: Path, seed: int, kills: int, manner: Manner) -> Counter[str]:
    """So many lives of one store, each ended by SIGKILL and checked; returns what the victims said how often.

    Before every fourth opening the index is removed.
    """
    scale = LONG_ONES if manner.long else SHORT_ONES
    settings = scale.settings(folder, **manner.policies())
    oracles = [Oracle() for _ in range(WRITERS)]
    keys = manner.keys()
    said: Counter[str] = Counter()
    for number in range(kills):
        said.update(live_and_die(settings, manner, oracles, seed * kills + number))
        index_is_lost = number % 4 == 3
        if index_is_lost:
            shutil.rmtree(folder / "store" / "index")
        with Store.open(settings, background=False, keys=keys) as store:
            tell_of_losses(store, partial(_hear_of_loss, oracles, victim.names_of(store)))
            settle(store)  # the caps are kept from its opening on
            for oracle in oracles:
                try:
                    oracle.check(store, stale=index_is_lost)
                except AssertionError as e:
                    raise type(e)(f"after kill {number}: {e}") from e
                oracle.saw(store)
    roomy = scale._replace(top_bytes=32 * MIB)  # however much its readers made the index grow
    check_usable(roomy.settings(folder), oracles[0], keys)
    return said


def _hear_of_loss(oracles: list[Oracle], names: dict[int, bytes], block_id: int) -> None:
    hear(oracles, victim.dropped(names[block_id]))


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.crash.victim"])
    return context


def live_and_die(settings: Config, manner: Manner, oracles: list[Oracle], seed: int) -> Counter[str]:
    """One life of the victim; tells the oracles, and returns what it said how often."""
    rng = random.Random(seed)
    here, there = _context().Pipe(duplex=False)
    process = _context().Process(target=victim.main, args=(settings, there, seed, manner), daemon=True)
    process.start()
    there.close()
    assert here.recv().what == "opened"
    last, said = rng.choice([1, 30, 300, 600]) + rng.randrange(30), Counter({"opened": 1})
    with Store.open(settings, read_only=True, keys=manner.keys()) as reader:
        try:
            while True:
                heard = here.recv()
                hear(oracles, heard)
                said[heard.what] += 1
                if said.total() >= last:
                    process.kill()
                elif rng.random() < 0.3:
                    read_along(reader, rng)
        except EOFError:
            pass
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the victim died before it was killed"
    return said


def hear(oracles: list[Oracle], said: Said) -> None:
    oracle = oracles[said.writer]
    if said.what == "put":
        oracle.set(said.key, victim.value(said.key, said.version))
    elif said.what == "delete":
        oracle.set(said.key, None)
    elif said.what == "flushed":
        oracle.flushed()
    elif said.what == "failed":  # the block that was lost may be one of the other writer's
        for each in oracles:
            each.dropped(list(each.waiting))
        oracle.failed()
    elif said.what == "dropped":
        oracle.dropped([said.key])


def read_along(reader: Store, rng: random.Random) -> None:
    key = key_of(rng.randrange(WRITERS), rng.randrange(KEYS))
    hit = reader.get(key)
    if isinstance(hit, Hit) and not is_value_of(key, value_of(hit)):
        raise WrongBytes(f"{key!r} in another process")
