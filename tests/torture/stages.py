"""The stages of the ladder, in order. To add one: a function of a :class:`Case`, and a line in :data:`STAGES`."""

from __future__ import annotations

import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from kvtier import Store
from kvtier.fs import OsFileSystem, PortableFileSystem
from tests.concurrency.mixture import KEYS, Versions, small, work
from tests.crash.kills import kill_again_and_again
from tests.crash.operations import LOW_BYTES
from tests.crash.power import LOST, lose_power, run_until
from tests.crash.victim import Manner
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
    manner = Manner(case.seed % 2 == 0, case.seed % 4 > 1, case.seed % 8 > 3, case.seed % 3 == 0)
    said = kill_again_and_again(case.folder, case.seed, KILLS, manner)
    return Counter(kills=KILLS, puts=said["put"], flushes=said["flushed"], dropped=said["dropped"])


def run_power(case: Case) -> Counter[str]:
    rng = random.Random(case.seed)
    low_bytes, lost = rng.choice(list(LOW_BYTES.values())), rng.choice(LOST)
    compaction = rng.choice(["reclaim", "copy"])
    lose_power(case.folder, case.seed, low_bytes, lost, _calls(low_bytes, compaction), compaction)
    return Counter(losses=2)


@cache
def _calls(low_bytes: int, compaction: str) -> int:
    with TemporaryDirectory() as folder:
        return run_until(0, Path(folder), low_bytes, compaction)[1].calls


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
    machine = seeded(case.seed)(type("SeededMachine", (StoreMachine,), {}))
    run_state_machine_as_test(machine, settings=manner)
    return Counter(examples=MACHINE_EXAMPLES)


def run_simulation(case: Case) -> Counter[str]:
    simulation = Simulation(case.folder, case.seed)
    try:
        simulation.run()
    except Exception as e:
        raise AssertionError("\n".join(["", *simulation.trace])) from e
    done = simulation.done
    return Counter(
        steps=len(simulation.trace), kills=done["kill;"], losses=done["power"], faults=done["fault"], calls=done["put"]
    )


def run_threads(case: Case) -> Counter[str]:
    punches = case.seed % 2 == 0
    made = small(case.folder, "zstd" if case.seed % 4 > 1 else "none")
    versions = Versions()
    with Store.open(made, fs=OsFileSystem() if punches else PortableFileSystem()) as store:
        with ThreadPoolExecutor(THREADS) as pool:
            seeds = range(case.seed * THREADS, (case.seed + 1) * THREADS)
            list(pool.map(lambda seed: work(store, versions, seed, THREAD_OPERATIONS, pins=punches), seeds))
        store.flush()
        stats = store.stats()
        assert (stats.quarantined, stats.queue.failed, stats.pinned) == (0, 0, 0)
    with Store.open(made) as store:
        for key, outcome in zip(KEYS, store.get_many(KEYS), strict=True):
            versions.check(key, versions.done[key], outcome)
    return Counter(operations=THREADS * THREAD_OPERATIONS)


def run_syscall(case: Case) -> Counter[str]:
    """The fault that has the seed as its number; behind the last one comes the first."""
    name, fault, n = _syscall_faults()[case.seed % len(_syscall_faults())]
    result = syscalls.run_call(name, fault, n)
    assert result.failure is None, f"after {result}"
    return Counter(calls=1, kills=int(fault == "SIGKILL"))


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


def run_lossy(case: Case) -> Counter[str]:
    from tests.faults import power  # needs libfuse, which the others do not

    result = power.run_seed(case.seed)
    assert result.failure is None, f"{result}"
    deaths = [result.died_in, result.recovery_died_in]
    return Counter(losses=2, kills=sum(died is not None for died in deaths), things_lost=len(result.lost))


def why_no_kills() -> str | None:
    return "the platform has no SIGKILL" if sys.platform == "win32" else None


STAGES = [
    Stage("calls", run_fault, lambda: len(faults()), 2),
    Stage("kills", run_kills, lambda: 200, 2, why_not=why_no_kills),
    Stage("power", run_power, lambda: 500, 1.5),
    Stage("syscalls", run_syscall, lambda: len(_syscall_faults()), 1.5, why_not=why_no_strace),
    Stage("lossy", run_lossy, lambda: 500, 1.5, why_not=why_no_fuse),
    Stage("damage", run_damage, lambda: 500, 1),
    Stage("index", run_index_damage, lambda: 500, 1),
    Stage("machine", run_machine, lambda: 200, 1.5),
    Stage("simulation", run_simulation, lambda: 500, 1.5),
    Stage("threads", run_threads, lambda: 20, 1),
    Stage("soak", run_soak, lambda: 1, 1, full_seconds=600, why_not=why_no_soak),
]
