"""Fuzzing of one parser for some time: guided by coverage where atheris is installed, else by chance."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests import models
from tests.fuzz import plain
from tests.fuzz.plain import Outcome

FOLDER = models.ROOT / ".cache" / "fuzz"
"""What was found stays here, and later runs begin with it: inputs that reach further, and those that end a process."""
_DEATHS_MAX = 3  # of one parser: then it is given up
_COUNT = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)

Command = Callable[..., Sequence[str]]


def fuzzer(*arguments: object) -> Sequence[str]:
    return [sys.executable, "-m", "tests.fuzz.guided", *map(str, arguments)]


def run(name: str, seed: int, seconds: float, *, folder: Path = FOLDER) -> Outcome:
    if importlib.util.find_spec("atheris") is None:
        return plain.run(name, seed, seconds=seconds)
    return run_guided(name, seed, seconds, folder=folder / name)


def run_guided(name: str, seed: int, seconds: float, *, folder: Path, command: Command = fuzzer) -> Outcome:
    """A process that dies is a failure; another one goes on."""
    outcome, began = Outcome(name, is_guided=True), time.monotonic()
    for death in range(_DEATHS_MAX):
        left = int(seconds - (time.monotonic() - began))
        if left < 1 and death:
            break
        paths = os.pathsep.join([str(models.ROOT), str(models.ROOT / "adapters")])
        done = subprocess.run(
            command(name, folder, "--seconds", max(1, left), "--seed", (seed + death) % (1 << 32)),
            cwd=models.ROOT,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        for line in filter(lambda text: text.startswith("["), done.stdout.splitlines()):
            place, failure = json.loads(line)
            outcome.failures.setdefault(place, failure)
        outcome.executions += sum(map(int, _COUNT.findall(done.stderr)))
        if done.returncode == 0:
            break
        outcome.failures[f"death {death}"] = f"exit status {done.returncode}: {done.stderr[-1000:]}"
    outcome.seconds = time.monotonic() - began
    return outcome
