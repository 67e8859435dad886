"""The long form of the durability tests. ``python -m tests.torture --seconds 120 [--full] [--seed S] [--json]``.

Every stage runs one case for each seed from ``--seed`` on, for its share of the time. A case that failed is run again,
alone, with ``--only STAGE --seed SEED --cases 1``. Exits 1 if any failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import random
import sys
import time
from collections.abc import Callable, Sequence

from tests.torture.stage import Stage, Tally, run_stage
from tests.torture.stages import STAGES

_HANGS_S = 600.0


def torture(
    stages: Sequence[Stage],
    seed: int,
    *,
    seconds: float,
    full: bool = False,
    cases: int | None = None,
    on_case: Callable[[float], None] = lambda _: None,
) -> list[Tally]:
    """Run the stages one after the other; ``full`` goes by counts instead of time, ``cases`` by this count."""
    shares = sum(stage.share for stage in stages if stage.why_not() is None)
    tallies = []
    for stage in stages:
        count, share = cases, seconds * stage.share / shares if shares else None
        if full:
            count, share = stage.full(), stage.full_seconds or None
        tallies.append(run_stage(stage, seed, cases=count, seconds=share, progress=_tell, on_case=on_case))
        _tell(str(tallies[-1]))
        for failure in tallies[-1].failures:
            _tell(failure)
    return tallies


def watch(until: float) -> None:
    """If the case that begins now has not ended long after it should: print all stacks, and exit with 1."""
    now = time.monotonic()
    faulthandler.dump_traceback_later(max(0.0, until - now if until < float("inf") else 0) + _HANGS_S, exit=True)


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None, on_case: Callable[[float], None] = lambda _: None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="of all stages together")
    parser.add_argument("--full", action="store_true", help="a fixed number of cases instead: takes an hour or more")
    parser.add_argument("--cases", type=int, help="at most so many of each stage")
    parser.add_argument("--seed", type=int, help="the first seed; default: a random one")
    parser.add_argument("--only", help=f"some of {','.join(stage.name for stage in STAGES)}")
    parser.add_argument("--json", action="store_true", help="one line of JSON at the end")
    options = parser.parse_args(arguments)
    only = options.only.split(",") if options.only else [stage.name for stage in STAGES]
    if unknown := set(only) - {stage.name for stage in STAGES}:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 31)
    stages = [stage for stage in STAGES if stage.name in only]
    tallies = torture(stages, seed, seconds=options.seconds, full=options.full, cases=options.cases, on_case=on_case)
    passed, failed = sum(t.passed for t in tallies), sum(t.failed for t in tallies)
    if options.json:
        found = {tally.stage: tally.as_dict() for tally in tallies}
        print(json.dumps({"seed": seed, "passed": passed, "failed": failed, "stages": found}))
    print(f"{passed} passed, {failed} failed, seed {seed}", file=sys.stderr if options.json else sys.stdout)
    return 1 if failed else 0


if __name__ == "__main__":
    logging.disable()  # the store says much of the faults that it is given
    sys.exit(main(on_case=watch))
