"""What a server could tell a policy after each request, made from the trace.

``sessions``: that a session is over, after its last request. ``full``: also when it comes back, if it does: the true
time to its next request, wrong by a factor that is lognormal with sigma 0.5. Priorities are those of namespaces.

That it is over is told of the blocks that no other session has used so far; when it comes back, of the whole chain.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from kvtier.policy.base import Hint
from kvtier.replay.sessions import sessions_of
from kvtier.replay.trace import Trace

NOISE_SIGMA = 0.5
_ENDED = Hint(ended=True)


class HintKind(str, Enum):
    """How much a server tells."""

    NONE = "none"
    SESSIONS = "sessions"
    FULL = "full"


@dataclass(frozen=True)
class Hints:
    """By request: the hint, if there is one, and from which block of the chain on it holds."""

    hints: list[Hint | None]
    since: array[int]


def make_hints(trace: Trace, kind: HintKind, seed: int) -> Hints | None:
    """The hints of a trace, the same for the same seed."""
    if kind is HintKind.NONE:
        return None
    sessions = sessions_of(trace)
    own = _own_from(trace, sessions)
    noise = random.Random(seed)
    hints: list[Hint | None] = [None] * len(trace)
    next_time: dict[int, float] = {}
    for request in range(len(trace) - 1, -1, -1):
        session, time = sessions[request], trace.times[request]
        if session not in next_time:
            hints[request] = _ENDED
        elif kind is HintKind.FULL:
            wait = (next_time[session] - time) * math.exp(noise.gauss(0, NOISE_SIGMA))
            hints[request] = Hint(returns_at=time + wait)
            own[request] = 0
        next_time[session] = time
    return Hints(hints, own)


def with_priorities(trace: Trace, hints: Hints | None, priorities: Mapping[str, int]) -> Hints | None:
    """The hints, which also say what priority chains have, by namespace."""
    if not any(priorities.values()):
        return hints
    found: list[Hint | None] = [*hints.hints] if hints else [None] * len(trace)
    for request, number in enumerate(trace.namespaces):
        if priority := priorities.get(trace.namespace_names[number], 0):
            found[request] = (found[request] or Hint())._replace(priority=priority)
    return Hints(found, hints.since if hints else array("I", bytes(4 * len(trace))))


def _own_from(trace: Trace, sessions: array[int]) -> array[int]:
    """By request: how many leading blocks of its chain another session has used so far."""
    several = -2
    user = array("q", [-1]) * (trace.unique + 1)
    result = array("I")
    for request in range(len(trace)):
        session, shared = sessions[request], 0
        for depth, block in enumerate(trace.chain(request), 1):
            if user[block] in (-1, session):
                user[block] = session
            else:
                user[block] = several
                shared = depth
        result.append(shared)
    return result
