"""How much of the wait for a hard disk is hidden by what is known ahead, and what is read in vain for that.

*Queued*: requests whose chains are known some time before they are answered, as those of a server's queue are. The
disk is the formula of :mod:`bench.modelled_disk`, which sleeps; the consumer only waits. How long before is given as a
share of the time that the disk needs for the chain, so that the ratio is of the store's making and not of the sizes.

*Next turn*: the workloads of :mod:`kvtier.replay.generator`, in simulated time, over the store's own policies: new
blocks enter RAM, and after each answer the prefetch policy is asked whether the rest of the chain should come up. The
wait is what the disk of the formula needs for the blocks of a request that are on disk and not in RAM.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from bench.measure import spread
from bench.modelled_disk import BYTES_PER_S, SEEK_S, ModelledDisk
from bench.workloads import MIB, payloads, stamped
from kvtier import Config, Hit, Store
from kvtier.background.prefetching import Turnover, may_be_in_vain
from kvtier.policy.base import PrefetchPolicy
from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.policy.prefetch import ChainOnly, NextTurn
from kvtier.replay.generator import generate
from kvtier.replay.sessions import sessions_of

GOAL_HIDDEN, GOAL_WASTED = 0.9, 0.2
_AHEAD = (0.0, 0.5, 1.0, 1.5, 2.0)
_BLOCK_BYTES = MIB
_CHAINS, _CHAIN_BLOCKS = 6, 24
_KV_BYTES = 6 * MIB  # of a block of 256 tokens, of a model with half a billion weights


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """The share of the wait that is hidden, and bytes brought up in vain for each that was used."""
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch:
        say("queued requests")
        queued = _queued(Path(scratch), repeats=2 if quick else 5)
    turns = []
    for kind in ("conversation", "agents", "documents"):
        say(f"next turn: {kind}")
        turns += _next_turns(f"generate:{kind}?seed=1&requests={1500 if quick else 6000}")
    return {"queued": queued, "next_turn": turns, "goal_hidden": GOAL_HIDDEN, "goal_wasted": GOAL_WASTED}


# -- requests that are queued --------------------------------------------------------------------------------


def _queued(folder: Path, repeats: int) -> dict[str, Any]:
    chain_bytes = _CHAIN_BLOCKS * _BLOCK_BYTES
    disk = ModelledDisk(folder / "tier", sleeps=True)
    tier = {"name": "hdd", "kind": "hdd", "path": str(folder / "tier"), "bytes_max": "2GiB", "segment_bytes": "256MiB"}
    ram = {"bytes_max": 4 * chain_bytes}
    config = Config.from_dict({"store": {"path": str(folder / "store")}, "ram": ram, "tier": [tier]})
    chains = [[b"%d.%d" % (c, i) for i in range(_CHAIN_BLOCKS)] for c in range(_CHAINS)]
    payload = payloads(1, _BLOCK_BYTES)[0]
    with Store.open(config, fs=disk) as store:
        for number, chain in enumerate(chains):
            for i, key in enumerate(chain):
                content = stamped(payload, number * _CHAIN_BLOCKS + i).tobytes()
                store.put(key, content, parent=chain[i - 1] if i else None)
        store.flush()
    read_s = SEEK_S + chain_bytes / BYTES_PER_S
    rows: list[dict[str, Any]] = []
    for ahead in _AHEAD:
        waits = []
        with Store.open(config, fs=disk) as store:  # nothing in RAM
            for _ in range(repeats):
                waits += [_wait(store, chain, ahead and ahead * read_s) for chain in chains]
            stats = store.stats().prefetch
        wasted = stats.bytes_wasted + stats.bytes_unused
        counts = {"useful_bytes": stats.bytes_useful, "wasted_bytes": wasted, "late": stats.late}
        rows.append({"ahead": ahead, "wait_s": spread(waits), **counts})
    for row in rows:
        row["hidden"] = 1 - row["wait_s"]["median"] / rows[0]["wait_s"]["median"]
        row["wasted"] = row["wasted_bytes"] / row["useful_bytes"] if row["useful_bytes"] else 0.0
    return {"chain_bytes": chain_bytes, "read_s": read_s, "rows": rows}


def _wait(store: Store, chain: list[bytes], ahead_s: float) -> float:
    """Seconds that a request waits for its chain, of which the store was told so long before."""
    if ahead_s:
        store.prefetch(chain)
        threading.Event().wait(ahead_s)
    begin = time.perf_counter()
    if sum(isinstance(hit, Hit) for hit in store.get_many(chain, keep=False)) != len(chain):
        raise RuntimeError("blocks are missing")
    return time.perf_counter() - begin


# -- the next turn -------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """Of one simulation: seconds of wait, and blocks that were brought up and used, or not."""

    wait_s: float
    useful: int
    wasted: int


class _Ram:
    """Blocks in memory, by the store's default policy: what was put, and what was brought up."""

    def __init__(self, blocks_max: int) -> None:
        self.blocks_max = blocks_max
        self.cap, self.bytes_taken = blocks_max, 0  # in blocks
        self.wasted = self.useful = 0
        self._policy = LeafLru()
        self._unused: set[int] = set()
        self._blocks: set[int] = set()
        self._clock = 0

    def use(self, chain: Sequence[int]) -> int:
        """A request's blocks; how many are not here."""
        for block in reversed(chain):
            self._clock += 1
            self._policy.touch(block, self._clock)
        here = self._blocks.intersection(chain)
        used = self._unused & here
        self.useful += len(used)
        self._unused -= used
        return len(chain) - len(here)

    def put(self, chain: Sequence[int], fresh: Collection[int]) -> None:
        """The ``fresh`` blocks of a chain come in."""
        for parent, block in pairwise([0, *chain]):
            if block in fresh:
                self._clock += 1
                self._blocks.add(block)
                self.bytes_taken += 1
                self._policy.add(block, parent, self._clock, _KV_BYTES)
                if len(self._blocks) > self.blocks_max and (victim := self._policy.pop()) is not None:
                    self._blocks.discard(victim)
                    self.wasted += victim in self._unused
                    self._unused.discard(victim)

    def bring(self, chain: Sequence[int]) -> None:
        """Those that are not here come up, as far as there is room beside such as are not used yet."""
        at_risk = self.wasted + len(self._unused)
        room = min(self.blocks_max - len(self._unused), may_be_in_vain(self, self.useful, at_risk))
        absent = [b for b in chain if b not in self._blocks][:room]
        self.put(chain, set(absent))
        self._unused |= self._blocks.intersection(absent)

    def end(self) -> None:
        """What is still unused was brought in vain."""
        self.wasted += len(self._unused)


def _next_turns(source: str) -> list[dict[str, Any]]:
    rows = []
    for ram_blocks in (1000, 3000):
        base = simulate(source, ram_blocks, lambda now: ChainOnly())
        for name, knows_the_end in (("next-turn", False), ("next-turn, told of ends", True)):
            found = simulate(source, ram_blocks, NextTurn, knows_the_end=knows_the_end)
            rows.append(
                {
                    "workload": source,
                    "ram_bytes": ram_blocks * _KV_BYTES,
                    "policy": name,
                    "hidden": 1 - found.wait_s / base.wait_s,
                    "wasted": found.wasted / found.useful if found.useful else 0.0,
                    "useful_blocks": found.useful,
                }
            )
    return rows


def simulate(
    source: str,
    ram_blocks: int,
    make: Callable[[Callable[[], float]], PrefetchPolicy],
    *,
    knows_the_end: bool = False,
) -> Outcome:
    """A trace in its own time: each request waits for its blocks, is answered, and the policy is asked.

    ``knows_the_end``: the server says nothing of an answer after which the session is over. What a request names for
    the first time is not on disk and no wait: it is put. A restored chain passes through, as with ``keep=False``.
    """
    trace = generate(source)
    sessions = sessions_of(trace)
    last_of = {sessions[i]: i for i in range(len(trace))}
    clock = [0.0]
    policy, ram = make(lambda: clock[0]), _Ram(ram_blocks)
    on_disk: set[int] = set()
    turnover = Turnover(ram, lambda: clock[0])
    wait_s = 0.0
    for request in range(len(trace)):
        chain = trace.chain(request)
        clock[0] = trace.times[request]
        policy.asked(b"", chain)
        missing = ram.use([b for b in chain if b in on_disk])
        wait_s += SEEK_S + missing * _KV_BYTES / BYTES_PER_S if missing else 0.0
        ram.put(chain, set(chain) - on_disk)
        on_disk.update(chain)
        is_over = knows_the_end and last_of[sessions[request]] == request
        if chain and not is_over and policy.answered(b"", chain, turnover.seconds()):
            ram.bring(chain)
    ram.end()
    return Outcome(wait_s, ram.useful, ram.wasted)
