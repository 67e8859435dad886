"""Parsers under mutated inputs, in this process and without knowledge of coverage: the same seed, the same inputs."""

from __future__ import annotations

import time
import traceback
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

from tests.fuzz.mutations import mutate
from tests.fuzz.parsers.target import Target, load

CORPUS = Path(__file__).parent / "corpus"
_SHOWN_MAX = 2048


@dataclass
class Outcome:
    """Of one parser. ``failures``: one for each place in the code, with an input that leads there."""

    parser: str
    is_guided: bool = False
    executions: int = 0
    accepted: int = 0
    seconds: float = 0
    failures: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        how = "guided by coverage" if self.is_guided else "by chance"
        return f"{self.parser}: {self.executions} executions, {self.executions / max(self.seconds, 1e-9):.0f}/s, {how}"

    def run(self, target: Target, data: bytes) -> None:
        self.executions += 1
        try:
            self.accepted += target.accepts(data)
        except Exception as error:
            self.failures.setdefault(place_of(error), f"{type(error).__name__}: {error}; {data.hex()[:_SHOWN_MAX]}")


def place_of(error: BaseException) -> str:
    """Where it was raised; of what a target found, where the target did."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name != "target.py"]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"


def corpus(name: str) -> list[bytes]:
    """The inputs that are kept in the repository."""
    return [file.read_bytes() for file in sorted((CORPUS / name).iterdir())]


def mutated(random: Random, target: Target, inputs: Sequence[bytes]) -> bytes:
    """One of the inputs, damaged; half of them with checksums that fit again."""
    data = random.choice(inputs)
    fields = [4 * random.randrange(len(data) // 4 + 1) + data[0] % 2 for _ in range(4)] if data else []
    if target.words and random.random() < 0.5:
        data = with_word(random, target, data)
    else:
        data = mutate(random, data, inputs, fields)
    return target.reseal(data) if random.random() < 0.5 else data


def with_word(random: Random, target: Target, data: bytes) -> bytes:
    """The input with a word of its language in it, between or in place of others."""
    at = random.randint(0, len(data))
    return data[:at] + random.choice(target.words) + data[at + random.choice([0, 0, 1, 8]) :]


def run(name: str, seed: int, *, executions: int | None = None, seconds: float = 0) -> Outcome:
    """Replay the corpus, then so many executions, or as many as there is time for. Memory is watched."""
    target, outcome, began = load(name), Outcome(name), time.monotonic()
    tracemalloc.start()
    try:
        for data in _inputs(name, target, seed):
            if outcome.executions >= executions if executions is not None else time.monotonic() - began >= seconds:
                break
            outcome.run(target, data)
    finally:
        tracemalloc.stop()
    outcome.seconds = time.monotonic() - began
    return outcome


def _inputs(name: str, target: Target, seed: int) -> Iterator[bytes]:
    kept = corpus(name)
    yield from kept
    for number in count():
        yield mutated(Random(f"{seed}/{name}/{number}"), target, kept)
