"""Damaged bytes: refused, or harmless. ``python -m tests.fuzz --seconds 60 [--seed S] [--json]``.

Every parser (``tests/fuzz/parsers``) gets mutated inputs, guided by coverage where atheris is installed; a failure is
an exception that it does not document, memory that the input does not account for, or what is accepted and does not
come back the same from a round trip.

And llama.cpp itself gets damaged state. For each kind of memory, a process restores blobs that were flipped, cut,
spliced, or whose counts were edited, and evaluates on behind those that pass the checks. A failure is a process that
dies, an exception that is not the refusal, offsets outside of the blob, or memory beyond a small multiple of it.
Exits 1 if there was one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests import models
from tests.fuzz import parser_runs, plain
from tests.fuzz.parsers.target import NAMES

#: Every kind of memory that is taken apart; cells with more words; and layers without V.
MODELS = ["mha", "qwen2vl", "deepseek2", "gemma3", "mamba", "jamba", "lfm2-swa"]
_DEATHS_MAX = 10  # of one model: then it is given up

Command = Callable[..., Sequence[str]]


@dataclass
class Result:
    """Of one model: what became of the cases, by part, and the cases that failed."""

    model: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    passed: int = 0


def victim(*arguments: object) -> Sequence[str]:
    return [sys.executable, "-m", "tests.fuzz.victim", *map(str, arguments)]


def fuzz(model: str, seed: int, *, until: float = 0, cases: int | None = None, command: Command = victim) -> Result:
    """Run so many cases of one model, or as many as there is time for; a process that dies is started anew.

    ``until``: as ``time.time`` counts.
    """
    result = Result(model)
    first = 0
    for _ in range(_DEATHS_MAX):
        limit = ["--until", until] if cases is None else ["--cases", cases - first]
        last, report, death = _run(command(model, "--seed", seed, "--first", first, *limit))
        ran = last + 1 - first
        if report:
            result.outcomes.update(report["outcomes"])
            result.failures += report["failures"]
            result.passed += ran - len(report["failures"])
            break
        result.failures.append(f"case {last}: {death}")
        result.passed += max(0, ran - 1)
        first = last + 1
        if first >= cases if cases is not None else time.time() >= until:
            break
    return result


def _run(command: Sequence[str]) -> tuple[int, dict[str, Any] | None, str]:
    """The last case that was begun, the report, or how the process died without one."""
    paths = os.pathsep.join([str(models.ROOT), str(models.ROOT / "adapters")])
    done = subprocess.run(
        command,
        cwd=models.ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    numbers = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    last = numbers[-1] if numbers else -1
    if done.returncode == 0:
        return last, json.loads(done.stdout.splitlines()[-1]), ""
    return last, None, f"exit status {done.returncode}: {done.stderr[-500:]}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of all models and parsers together")
    parser.add_argument("--cases", type=int, help="of each model and parser, instead of --seconds; not guided")
    parser.add_argument("--seed", type=int, help="the same seed makes the same cases; default: a random one")
    parser.add_argument("--models", nargs="*", help="only these; none, if --parsers are named")
    parser.add_argument("--parsers", nargs="*", choices=NAMES, help="only these; none, if --models are named")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    names = _chosen(options.models, MODELS, options.parsers), _chosen(options.parsers, NAMES, options.models)
    share = options.seconds / max(1, sum(map(len, names)))
    outcomes = [_parse(name, seed, share, options.cases) for name in names[1]]
    began = time.time()
    results = [
        fuzz(model, seed, until=began + share * number, cases=options.cases) for number, model in enumerate(names[0], 1)
    ]
    failed = sum(len(result.failures) for result in results) + sum(len(outcome.failures) for outcome in outcomes)
    passed = sum(result.passed for result in results) + sum(o.executions - len(o.failures) for o in outcomes)
    if options.json:
        found = [{**vars(result), "outcomes": dict(result.outcomes)} for result in results]
        totals = {"seed": seed, "passed": passed, "failed": failed}
        print(json.dumps({**totals, "models": found, "parsers": [vars(outcome) for outcome in outcomes]}))
    else:
        for outcome in outcomes:
            print("\n  ".join([str(outcome), *(f"{place}: {what}" for place, what in outcome.failures.items())]))
        for result in results:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(result.outcomes.items()))
            print("\n  ".join([f"{result.model}: {counts}", *result.failures]))
        print(f"{passed} passed, {failed} failed, seed {seed}")
    return 1 if failed else 0


def _chosen(named: list[str] | None, every: list[str], others: list[str] | None) -> list[str]:
    return every if named is None and others is None else named or []


def _parse(name: str, seed: int, seconds: float, cases: int | None) -> plain.Outcome:
    return plain.run(name, seed, executions=cases) if cases is not None else parser_runs.run(name, seed, seconds)


if __name__ == "__main__":
    sys.exit(main())
