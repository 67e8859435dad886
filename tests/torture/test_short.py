"""The short form of every stage, and what the long form rests on: that a life repeats, and that a wrong one fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from kvtier.clock import StoreTime
from kvtier.testing.power_loss import UndoLog
from tests.crash.oracle import LostBlock, WrongBytes
from tests.direct import why_not_direct
from tests.torture.__main__ import main
from tests.torture.simulation import Simulation
from tests.torture.soak import growth, live, why_no_soak
from tests.torture.stage import MEMORY, Case, Stage, fresh_folder, place, run_stage
from tests.torture.stages import STAGES

#: Of the stages that have no short form elsewhere: how many seeds.
SEEDS = {"damage": 12, "index": 6, "simulation": 4, "threads": 1, "calls": 6, "power": 3}


@pytest.mark.parametrize("name", SEEDS)
def test_stage(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--only", name, "--seed", "1", "--cases", str(SEEDS[name]), "--json", "--seconds", "1e9"])
    said = capsys.readouterr()
    assert code == 0, said.err
    found = json.loads(said.out)["stages"][name]
    assert (found["passed"], found["failed_seeds"]) == (SEEDS[name], [])


#: Of stages that do not always have them: seeds of long blocks.
LONG_SEEDS = {"damage": 15, "simulation": 3, "power": 7}


@pytest.mark.skipif(why_not_direct(place()) is not None, reason=str(why_not_direct(place())))
@pytest.mark.parametrize("name", LONG_SEEDS)
def test_stage_of_long_blocks(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--only", name, "--seed", str(LONG_SEEDS[name]), "--cases", "1", "--json", "--seconds", "1e9"])
    said = capsys.readouterr()
    assert code == 0, said.err
    found = json.loads(said.out)["stages"][name]
    assert found["long_blocks"]
    assert found["direct_writes"]


@pytest.mark.slow
def test_kills_of_an_encrypted_store_that_compacts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "kills", "--seed", "3", "--cases", "1", "--seconds", "1e9"]) == 0, capsys.readouterr().err


def test_every_stage_has_a_short_form() -> None:
    elsewhere = {"kills", "machine", "soak", "syscalls", "lossy"}
    assert {stage.name for stage in STAGES if stage.why_not() is None} <= SEEDS.keys() | elsewhere


def test_the_stages_do_without_libfuse() -> None:
    code = "import sys; sys.modules['mfusepy'] = None; import tests.torture.stages"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


# -- simulation --------------------------------------------------------------------------------------


def simulate(seed: int) -> Simulation:
    with fresh_folder() as folder:
        simulation = Simulation(folder, seed)
        simulation.run()
        return simulation


@pytest.mark.skipif(not MEMORY.is_dir(), reason="elsewhere than in memory, what a file occupies shows up late")
def test_a_simulated_life_repeats() -> None:
    first, second = simulate(5), simulate(5)
    assert first.trace == second.trace
    assert len(first.trace) > 200


def test_simulated_lives_differ_and_have_everything_in_them() -> None:
    lives = [simulate(seed) for seed in range(8)]
    assert len({tuple(life.trace) for life in lives}) == len(lives)
    done = sum((life.done for life in lives), Counter[str]())
    by_clients = ("dedup_blocks", "pin", "hint", "pause", "compact", "not_admitted", "expired")
    by_room = ("demotions", "evictions", "quota_evictions", "compaction_segments", "floor_bytes_evicted", "ram_shrunk")
    by_chance = ("fault", "write_failures", "kill;", "power", "clock", "others:")
    for what in (*by_clients, *by_room, *by_chance):
        assert done[what] > 0, what


def test_a_store_that_does_not_sync_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UndoLog, "after_sync", lambda log, fd: None)
    (simulation,) = [stage for stage in STAGES if stage.name == "simulation"]
    tally = run_stage(simulation, 0, cases=20, seconds=None)
    assert tally.failed
    assert tally.counts["lost_acknowledged"] + tally.counts["wrong_bytes"] > 0
    assert "put" in tally.failures[0]


def test_a_store_that_keeps_blocks_beyond_their_time_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    after = StoreTime.after
    monkeypatch.setattr(StoreTime, "after", lambda time, ttl: after(time, 2 * ttl))
    (simulation,) = [stage for stage in STAGES if stage.name == "simulation"]
    tally = run_stage(simulation, 0, cases=10, seconds=None)
    assert tally.failed > 5
    assert all("expires at" in failure or "has expired at" in failure for failure in tally.failures)


# -- soak --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(why_no_soak() is not None, reason=str(why_no_soak()))
def test_soak_samples_every_round(capsys: pytest.CaptureFixture[str]) -> None:
    with fresh_folder() as folder:
        live(folder, 1, seconds=0, rounds=1)
    samples = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(samples) == 10
    assert all(value > 0 for found in samples for value in found.values())


# -- verdicts ----------------------------------------------------------------------------------------


def failing_from(first: int, error: Exception) -> Stage:
    def run(case: Case) -> Counter[str]:
        if case.seed >= first:
            raise AssertionError("outer") from error
        return Counter(kills=1)

    return Stage("some", run, lambda: 4, 1)


@pytest.mark.parametrize(
    ("error", "counted"),
    [(WrongBytes("x"), "wrong_bytes"), (LostBlock("x"), "lost_acknowledged"), (ValueError("x"), None)],
)
def test_failures_are_counted_by_kind_and_named_by_seed(error: Exception, counted: str | None) -> None:
    tally = run_stage(failing_from(12, error), 10, cases=4, seconds=None)
    found = tally.as_dict()
    assert (found["passed"], found["failed"], found["failed_seeds"], found["kills"]) == (2, 2, [12, 13], 2)
    assert {k: v for k, v in found.items() if k in ("wrong_bytes", "lost_acknowledged") and v} == (
        {counted: 2} if counted else {}
    )
    assert "outer" in tally.failures[0]


@pytest.mark.skipif(why_not_direct(place()) is not None, reason=str(why_not_direct(place())))
def test_long_blocks_that_are_never_written_directly_are_found_out() -> None:
    stage = Stage("some", lambda case: Counter(long_blocks=1, direct_writes=case.seed // 10), lambda: 4, 1)
    told = run_stage(stage, 0, cases=4, seconds=None)
    assert (told.failed, told.failures) == (1, ["no block was written directly in 4 cases of long ones"])
    assert run_stage(stage, 8, cases=4, seconds=None).failed == 0


def test_a_stage_that_cannot_run_says_why() -> None:
    stage = Stage("some", lambda case: Counter(), lambda: 4, 1, why_not=lambda: "no disk")
    tally = run_stage(stage, 0, cases=4, seconds=None)
    assert tally.as_dict()["skipped"] == "no disk"
    assert (tally.passed, tally.failed) == (0, 0)


@pytest.mark.parametrize("what", ["rss_bytes", "descriptors", "threads", "disk_bytes"])
def test_growth_is_found_out(what: str) -> None:
    flat = {"rss_bytes": 50 << 20, "descriptors": 20, "threads": 6, "disk_bytes": 1 << 20}
    step = {"rss_bytes": 1 << 20, "descriptors": 1, "threads": 1, "disk_bytes": 1 << 18}[what]
    assert growth([flat] * 30) == {}
    assert growth([{**flat, what: flat[what] + number * step} for number in range(30)]) == {what: 10 * step}
    assert growth([{**flat, what: flat[what] + min(number, 9) * step} for number in range(30)]) == {}
