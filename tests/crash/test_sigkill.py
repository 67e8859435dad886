"""Real kills: a process that reads and writes with several threads is killed at some moment, again and again.

The oracle lives here, in the parent, which learns over a pipe what the victim was about to do and what it was
promised; it also reads along, as another process may.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from kvtier import Config, Hit, Store
from tests.crash import victim
from tests.crash.oracle import Oracle, check_usable, two_tiers
from tests.crash.victim import KEYS, WRITERS, Said, is_value_of, key_of
from tests.stores import KIB, MIB, value_of

KILLS = 40

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the platform has no SIGKILL")


def test_kill_again_and_again(fresh_folder: Callable[[], Path]) -> None:
    folder = fresh_folder()
    settings = two_tiers(folder, top_bytes=2 * MIB, low_bytes=512 * KIB)
    oracles = [Oracle() for _ in range(WRITERS)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.crash.victim"])
    said: Counter[str] = Counter()
    for seed in range(KILLS):
        said.update(live_and_die(context, settings, oracles, seed))
        index_is_lost = seed % 4 == 3
        if index_is_lost:
            shutil.rmtree(folder / "store" / "index")
        with Store.open(settings, background=False) as store:
            for oracle in oracles:
                try:
                    oracle.check(store, stale=index_is_lost)
                except AssertionError as e:
                    raise AssertionError(f"after kill {seed}") from e
                oracle.saw(store)
    check_usable(settings, oracles[0])
    assert min(said["put"], said["flushed"], said["dropped"]) > KILLS


def live_and_die(context: ForkServerContext, settings: Config, oracles: list[Oracle], seed: int) -> Counter[str]:
    """One life of the victim; tells the oracles, and returns what it said how often."""
    rng = random.Random(seed)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=victim.main, args=(settings, there, seed), daemon=True)
    process.start()
    there.close()
    assert here.recv().what == "opened"
    last, said = rng.choice([1, 30, 300, 600]) + rng.randrange(30), Counter({"opened": 1})
    with Store.open(settings, read_only=True) as reader:
        try:
            while True:
                heard = here.recv()
                hear(oracles, heard)
                said[heard.what] += 1
                if said.total() == last:
                    process.kill()
                elif said.total() < last and rng.random() < 0.3:
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
    if isinstance(hit, Hit):
        assert is_value_of(key, value_of(hit)), f"{key!r}: wrong bytes in another process"
