"""The stages of the ladder, in order. To add one: a function of a :class:`Case`, and a line in :data:`STAGES`."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from kvtier import Config, Store
from kvtier.fs import OsFileSystem, PortableFileSystem
from tests.concurrency.mixture import KEYS, LONG_KEYS, Versions, long, small, work
from tests.crash.kills import kill_again_and_again
from tests.crash.power import LOST, lose_power, run_until
from tests.crash.scale import SCALES, Scale
from tests.crash.victim import Manner
from tests.direct import counted
from tests.faults import syscalls
from tests.faults.needs import why_no_fuse, why_no_strace
from tests.property.store_machine import StoreMachine
from tests.torture.calls import faults, run_fault
from tests.torture.damage import run_damage
from tests.torture.index_damage import run_index_damage
from tests.torture.simulation import Simulation
from tests.torture.soak import run_soak, why_no_soak
from tests.torture.stage import Case, Stage

KILLS = 10  # of one store
MACHINE_EXAMPLES = 10
THREADS, THREAD_OPERATIONS = 32, 60


def run_kills(case: Case) -> Counter[str]:
    """Long blocks on a disk, from which they are read directly, too."""
    manner = Manner(case.seed % 2 == 0, case.seed % 4 > 1, case.seed % 8 > 3, case.seed % 3 == 0, case.seed % 6 == 2)
    with TemporaryDirectory() if manner.long else nullcontext(case.folder) as folder:
        said = kill_again_and_again(Path(folder), case.seed, KILLS, manner)
    direct = Counter({what: said[what] for what in ("direct_writes", "direct_reads")})
    long = Counter(long_blocks=KILLS if manner.long else 0)
    return Counter(kills=KILLS, puts=said["put"], flushes=said["flushed"], dropped=said["dropped"]) + long + direct


def run_power(case: Case) -> Counter[str]:
    rng = random.Random(case.seed)
    scale, lost = rng.choice(list(SCALES.values())), rng.choice(LOST)
    compaction = rng.choice(["reclaim", "copy"])
    with counted() as direct:
        lose_power(case.folder, case.seed, scale, lost, _calls(scale, compaction), compaction)
    return Counter(losses=2, long_blocks=int(scale.is_long)) + direct


@cache
def _calls(scale: Scale, compaction: str) -> int:
    with TemporaryDirectory() as folder:
        return run_until(0, Path(folder), scale, compaction)[1].calls


def run_machine(case: Case) -> Counter[str]:
    manner = settings(
        max_examples=MACHINE_EXAMPLES,
        stateful_step_count=60,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    is_long = case.seed % 6 == 5
    machine = seeded(case.seed)(type("SeededMachine", (StoreMachine,), {"factor": 40 if is_long else 1}))
    with counted() as direct:
        run_state_machine_as_test(machine, settings=manner)
    return Counter(examples=MACHINE_EXAMPLES, long_blocks=MACHINE_EXAMPLES if is_long else 0) + direct


def run_simulation(case: Case) -> Counter[str]:
    is_long = case.seed % 5 == 3
    simulation = Simulation(case.folder, case.seed, is_long=is_long)
    try:
        simulation.run()
    except Exception as e:
        raise AssertionError("\n".join(["", *simulation.trace])) from e
    done = simulation.done
    found = Counter(steps=len(simulation.trace), kills=done["kill;"], losses=done["power"], faults=done["fault"])
    direct = Counter({what: done[what] for what in ("direct_writes", "direct_reads")})
    return found + Counter(calls=done["put"], long_blocks=int(is_long)) + direct


def run_threads(case: Case) -> Counter[str]:
    """Long blocks on a disk, from which they are read directly, too."""
    is_long, punches = case.seed % 4 == 2, case.seed % 2 == 0
    with TemporaryDirectory() if is_long else nullcontext(case.folder) as folder, counted() as direct:
        made = long(Path(folder)) if is_long else small(case.folder, "zstd" if case.seed % 4 > 1 else "none")
        _mix(made, LONG_KEYS if is_long else KEYS, case.seed, punches)
    return Counter(operations=THREADS * THREAD_OPERATIONS, long_blocks=3 if is_long else 0) + direct


def _mix(made: Config, keys: Sequence[bytes], seed: int, punches: bool) -> None:
    versions = Versions()
    with Store.open(made, fs=OsFileSystem() if punches else PortableFileSystem()) as store:
        with ThreadPoolExecutor(THREADS) as pool:
            seeds = range(seed * THREADS, (seed + 1) * THREADS)
            list(pool.map(lambda s: work(store, versions, s, THREAD_OPERATIONS, pins=punches, keys=keys), seeds))
        store.flush()
        stats = store.stats()
        assert (stats.quarantined, stats.queue.failed, stats.pinned) == (0, 0, 0)
    with Store.open(made) as store:
        for key, outcome in zip(keys, store.get_many(keys), strict=True):
            versions.check(key, versions.done[key], outcome)


def run_syscall(case: Case) -> Counter[str]:
    """The fault that has the seed as its number, each fourth of long blocks; behind the last one comes the first."""
    is_long = case.seed % 4 == 3
    faults = _direct_faults() if is_long else _syscall_faults()
    number = case.seed // 4 if is_long else case.seed - case.seed // 4
    name, fault, n = faults[number % len(faults)]
    result = syscalls.run_call(name, fault, n, scale=syscalls.LONG if is_long else syscalls.SHORT)
    assert result.failure is None, f"after {result}"
    return Counter(calls=1, kills=int(fault == "SIGKILL"), long_blocks=int(is_long)) + result.direct


@cache
def _syscall_faults() -> list[tuple[str, str, int]]:
    """Every way to fail of every system call, in a fixed order that mixes them."""
    found = [
        (name, fault, n)
        for name, count in sorted(syscalls.calls().items())
        for fault in syscalls.faults_of(name)
        for n in range(1, count + 1)
    ]
    random.Random(0).shuffle(found)
    return found


@cache
def _direct_faults() -> list[tuple[str, str, int]]:
    """The same of direct writes, and of what comes next after them."""
    found = [
        (name, fault, n)
        for name in ("pwritev2", "fdatasync", "pwrite64")
        for fault in (syscalls.FAULTS if name == "pwritev2" else ("EIO", "SIGKILL"))
        for n in syscalls.direct_calls(name)
    ]
    random.Random(0).shuffle(found)
    return found


def _all_syscalls() -> int:
    return 4 * max(len(_direct_faults()), -(-len(_syscall_faults()) // 3))


def run_lossy(case: Case) -> Counter[str]:
    from tests.faults import power  # needs libfuse, which the others do not

    result = power.run_seed(case.seed)
    assert result.failure is None, f"{result}"
    deaths = [result.died_in, result.recovery_died_in]
    kills = sum(died is not None for died in deaths)
    found = Counter(losses=2, kills=kills, things_lost=len(result.lost), long_blocks=int(result.is_long))
    return found + result.direct


def why_no_kills() -> str | None:
    return "the platform has no SIGKILL" if sys.platform == "win32" else None


STAGES = [
    Stage("calls", run_fault, lambda: len(faults()), 2),
    Stage("kills", run_kills, lambda: 200, 2, why_not=why_no_kills),
    Stage("power", run_power, lambda: 500, 1.5),
    Stage("syscalls", run_syscall, _all_syscalls, 1.5, why_not=why_no_strace),
    Stage("lossy", run_lossy, lambda: 500, 1.5, why_not=why_no_fuse),
    Stage("damage", run_damage, lambda: 500, 1),
    Stage("index", run_index_damage, lambda: 500, 1),
    Stage("machine", run_machine, lambda: 200, 1.5),
    Stage("simulation", run_simulation, lambda: 500, 1.5),
    Stage("threads", run_threads, lambda: 20, 1),
    Stage("soak", run_soak, lambda: 1, 1, full_seconds=600, why_not=why_no_soak),
]
