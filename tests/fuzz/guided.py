"""The process that fuzzes one parser with atheris, guided by coverage. ``python -m tests.fuzz.guided PARSER FOLDER``.

A line of JSON on stdout for each failure and, from libFuzzer, the number of executions on stderr. In the folder are
the inputs that reach further than those of the repository, and those that ended the process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tracemalloc
from pathlib import Path
from random import Random

import atheris

from tests.fuzz.parsers.target import Target, load
from tests.fuzz.plain import CORPUS, Outcome, corpus, with_word

INPUT_BYTES_MAX = 8192
_WORDS_SHARE = 0.3
_WATCHED = 128  # one execution in so many has its memory watched
_SECONDS_MAX = 10  # of one execution


class Fuzzer:
    """The two functions that libFuzzer calls."""

    def __init__(self, target: Target, outcome: Outcome) -> None:
        self._target = target
        self._outcome = outcome

    def run(self, data: bytes) -> None:
        known = len(self._outcome.failures)
        is_watched = self._outcome.executions % _WATCHED == 0
        if is_watched:
            tracemalloc.start()
        try:
            self._outcome.run(self._target, data)
        finally:
            if is_watched:
                tracemalloc.stop()
        if len(self._outcome.failures) > known:
            print(json.dumps(list(self._outcome.failures.items())[-1]), flush=True)

    def mutate(self, data: bytes, size_max: int, seed: int) -> bytes:
        """libFuzzer's mutation, or one of the words; half of the inputs get the checksums that fit."""
        random = Random(seed)
        if self._target.words and random.random() < _WORDS_SHARE:
            mutated = with_word(random, self._target, data)
        else:
            mutated = atheris.Mutate(data, size_max)
        return (self._target.reseal(mutated) if random.random() < 0.5 else mutated)[:size_max]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parser")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--executions", type=int, help="no more than these, if there is time for them")
    options = parser.parse_args()
    with atheris.instrument_imports(include=["kvtier", "kvtier_adapters", "tomllib", "tomli"]):
        target = load(options.parser)
    found = options.folder / "corpus"
    found.mkdir(parents=True, exist_ok=True)
    fuzzer = Fuzzer(target, Outcome(options.parser, is_guided=True))
    flags = {
        "max_total_time": max(1, options.seconds),
        "runs": options.executions or -1,
        "seed": options.seed or 1,
        "max_len": max(INPUT_BYTES_MAX, *map(len, corpus(options.parser))),
        "timeout": _SECONDS_MAX,
        "rss_limit_mb": 0,  # a process inherits the peak of the one that started it, and that may be above any limit
        "malloc_limit_mb": 2048,
        "print_final_stats": 1,
        "verbosity": 0,
        "artifact_prefix": f"{options.folder}{os.sep}",
    }
    arguments = [f"-{name}={value}" for name, value in flags.items()]
    folders = [str(found), str(CORPUS / options.parser)]
    atheris.Setup([sys.argv[0], *arguments, *folders], fuzzer.run, custom_mutator=fuzzer.mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
