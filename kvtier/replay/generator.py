"""Made-up traces by class of workload, the same for the same seed: ``generate:conversation?seed=1&requests=5000``.

Blocks have 256 tokens; what does not fill one at the end of a prompt makes none. A request's answer is part of the
next prompt of its session, and counts there.
"""

from __future__ import annotations

import heapq
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import parse_qsl

from kvtier.errors import ConfigError, ConfigProblem
from kvtier.policy.base import NO_PARENT
from kvtier.replay.trace import Chains, Request, Trace, make_trace

PREFIX = "generate:"
BLOCK_TOKENS = 256
_REQUESTS_MAX = 10_000_000
_SHARED_MAX = 10_000


class Session:
    """A prompt that grows."""

    def __init__(self, chains: Chains, number: int, prefix: list[int]) -> None:
        self._chains = chains
        self.number = number
        self.blocks = list(prefix)
        self.tokens = len(prefix) * BLOCK_TOKENS

    def grow(self, tokens: int) -> None:
        self.tokens += tokens
        while len(self.blocks) < self.tokens // BLOCK_TOKENS:
            self.blocks.append(self._chains.extend(self.blocks[-1] if self.blocks else NO_PARENT))

    def request(self, time: float) -> Request:
        return Request(time, self.tokens, tuple(self.blocks), self.number)


@dataclass(frozen=True)
class Workload(ABC):
    """One class of workload. ``rate`` is in new sessions a second; what lognormal values are given by is the median."""

    seed: int = 1
    requests: int = 5000
    rate: float = 0.2

    def trace(self, name: str) -> Trace:
        """Make the trace: sessions come at random times, and each goes on for itself."""
        chance, chains = random.Random(self.seed), Chains()
        prefixes = self._prefixes(chance, chains)
        made: list[Request] = []
        waiting: list[tuple[float, int, Iterator[tuple[float, Request]]]] = []
        arrival, number = 0.0, 0
        while len(made) < self.requests:
            while not waiting or arrival <= waiting[0][0]:
                session = Session(chains, number, _popular(chance, prefixes))
                heapq.heappush(waiting, (arrival, number, self._session(chance, session, arrival)))
                arrival, number = arrival + chance.expovariate(self.rate), number + 1
            _, who, turns = heapq.heappop(waiting)
            if (turn := next(turns, None)) is not None:
                made.append(turn[1])
                heapq.heappush(waiting, (turn[0], who, turns))
        return make_trace(name, BLOCK_TOKENS, made, chains.parents)

    @abstractmethod
    def _prefixes(self, chance: random.Random, chains: Chains) -> list[list[int]]:
        """What sessions share, the most popular first."""

    @abstractmethod
    def _session(self, chance: random.Random, session: Session, time: float) -> Iterator[tuple[float, Request]]:
        """The requests of a session, each with the time when the next one is due."""


@dataclass(frozen=True)
class Conversations(Workload):
    """People who chat: a shared system prompt, a first message that may bring a text, turns with pauses to think."""

    turns: float = 5.0  #: mean; geometric
    think: float = 60.0  #: seconds, lognormal
    prompts: int = 50  #: system prompts, in use by Zipf's law

    def _prefixes(self, chance: random.Random, chains: Chains) -> list[list[int]]:
        return _shared(chance, chains, self.prompts, median=1500)

    def _session(self, chance: random.Random, session: Session, time: float) -> Iterator[tuple[float, Request]]:
        session.grow(_lognormal(chance, 800, 1.4))
        yield from _turns(chance, session, time, self.turns, (300, 0.8), self.think, (80, 1.0))


@dataclass(frozen=True)
class Agents(Workload):
    """Programs that call tools in a loop: a shared prompt with the tools, a task, then many short steps."""

    rate: float = 0.05
    steps: float = 20.0  #: mean; geometric
    tool: float = 3.0  #: seconds that a tool takes, lognormal
    repos: int = 20  #: shared prefixes, in use by Zipf's law

    def _prefixes(self, chance: random.Random, chains: Chains) -> list[list[int]]:
        return _shared(chance, chains, self.repos, median=4000)

    def _session(self, chance: random.Random, session: Session, time: float) -> Iterator[tuple[float, Request]]:
        session.grow(_lognormal(chance, 500, 0.8))
        yield from _turns(chance, session, time, self.steps, (150, 0.6), self.tool, (400, 1.3))


@dataclass(frozen=True)
class Documents(Workload):
    """Long texts in batches: most are read once and never again, some are asked several questions in a row."""

    once: float = 0.6  #: share of the documents that are read once
    questions: float = 4.0  #: mean, of the others; geometric
    instructions: int = 5  #: shared prefixes, in use by Zipf's law

    def _prefixes(self, chance: random.Random, chains: Chains) -> list[list[int]]:
        return _shared(chance, chains, self.instructions, median=1000)

    def _session(self, chance: random.Random, session: Session, time: float) -> Iterator[tuple[float, Request]]:
        session.grow(_lognormal(chance, 15_000, 0.8))
        text, tokens = list(session.blocks), session.tokens
        more = 0.0 if chance.random() < self.once else 1 - 1 / self.questions
        while True:
            session.blocks, session.tokens = list(text), tokens
            session.grow(_lognormal(chance, 60, 0.5))
            request = session.request(time)
            time += _lognormal(chance, 20_000, 1.0) / 1000
            yield time, request
            if chance.random() >= more:
                return


CLASSES: dict[str, type[Workload]] = {"agents": Agents, "conversation": Conversations, "documents": Documents}


def generate(name: str) -> Trace:
    """The trace that ``generate:CLASS?key=value&...`` stands for; keys are the class's fields. Raises ConfigError."""
    kind, _, query = name.removeprefix(PREFIX).partition("?")
    if kind not in CLASSES:
        hint = f"one of {', '.join(PREFIX + k for k in CLASSES)}"
        raise ConfigError([ConfigProblem(name, f"unknown class of workload {kind!r}", hint)])
    types = {f.name: type(f.default) for f in fields(CLASSES[kind])}
    values: dict[str, Any] = {}
    problems = []
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in types:
            problems.append(ConfigProblem(name, f"unknown key {key!r}", f"one of {', '.join(types)}"))
        elif (value := _parse(text, types[key], key)) is None:
            problems.append(ConfigProblem(name, f"{key}={text} is out of range", _RANGES.get(key, "above 0")))
        else:
            values[key] = value
    if problems:
        raise ConfigError(problems)
    return CLASSES[kind](**values).trace(name)


_MOST = {
    "requests": _REQUESTS_MAX,
    "prompts": _SHARED_MAX,
    "repos": _SHARED_MAX,
    "instructions": _SHARED_MAX,
    "once": 1,
}
_RANGES = {
    "seed": "a whole number from 0",
    "requests": f"a whole number from 1 to {_REQUESTS_MAX}",
    **dict.fromkeys(("prompts", "repos", "instructions"), f"a whole number from 1 to {_SHARED_MAX}"),
    "once": "from 0 to 1",
    "turns": "from 1",
    "steps": "from 1",
    "questions": "from 1",
}


def _parse(text: str, kind: type, key: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        return None
    least = 1 if _RANGES.get(key) == "from 1" else 0
    ok = math.isfinite(value) and least <= value <= _MOST.get(key, 1e12) and (value > 0 or key in ("seed", "once"))
    return value if ok else None


def _turns(
    chance: random.Random,
    session: Session,
    time: float,
    mean: float,
    answer: tuple[float, float],
    pause_s: float,
    message: tuple[float, float],
) -> Iterator[tuple[float, Request]]:
    """Requests that grow by an answer and what came then: tokens, as median and sigma; 50 a second are answered."""
    while True:
        request = session.request(time)
        made = _lognormal(chance, *answer)
        time += made / 50 + _lognormal(chance, pause_s * 1000, 1.2) / 1000
        yield time, request
        if chance.random() < 1 / mean:
            return
        session.grow(made + _lognormal(chance, *message))


def _lognormal(chance: random.Random, median: float, sigma: float) -> int:
    return max(1, round(median * math.exp(chance.gauss(0, sigma))))


def _shared(chance: random.Random, chains: Chains, count: int, median: int) -> list[list[int]]:
    made = []
    for _ in range(count):
        prefix = Session(chains, 0, [])
        prefix.grow(_lognormal(chance, median, 0.6))
        made.append(prefix.blocks)
    return made


def _popular(chance: random.Random, prefixes: list[list[int]]) -> list[int]:
    """One of them: the nth in proportion to 1/n."""
    return chance.choices(prefixes, [1 / n for n in range(1, len(prefixes) + 1)])[0]
