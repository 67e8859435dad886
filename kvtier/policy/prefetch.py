"""Policies that bring chains up before anyone asks for them."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

_ENDS_MAX = 1 << 16
_OPEN_MAX = 4096
_CLASSES_MAX = 4096
_SAMPLES = 64
_SAMPLES_MIN = 8
_TURNS_MAX = 4
_HORIZON_S = 900.0
#: Chains that are expected to come up in vain for each that is used, at most. Both the chance and the time in RAM are
#: guesses: what was in vain indeed is bounded by who brings them up.
WASTE_MAX = 0.2


class ChainOnly:
    """Nothing comes up but what is asked for, ahead of whom it is asked by."""

    def asked(self, group: bytes, chain: Sequence[int]) -> None:
        pass

    def answered(self, group: bytes, chain: Sequence[int], stays_s: float) -> bool:
        return False


@dataclass(slots=True)
class _End:
    """Where a conversation stood after an answer; ``gap_s`` is how long it took to go on, if it did."""

    turn: int
    at: float
    gap_s: float = inf


class _Class:
    """How soon conversations of one kind go on."""

    def __init__(self) -> None:
        self._open: deque[_End] = deque(maxlen=_OPEN_MAX)
        self._gaps_s: deque[float] = deque(maxlen=_SAMPLES)

    def add(self, end: _End) -> None:
        self._open.append(end)

    def pays(self, now: float, within_s: float) -> bool:
        """Whether what is used within such a time outweighs what is not, by the last answers that are as old."""
        while self._open and now - self._open[0].at >= within_s:
            self._gaps_s.append(self._open.popleft().gap_s)
        used = sum(gap_s <= within_s for gap_s in self._gaps_s)
        return used >= _SAMPLES_MIN and len(self._gaps_s) - used <= WASTE_MAX * used


class NextTurn:
    """A conversation's chain comes up after its answer, if such conversations are known to go on before it would leave
    RAM again: so often that for five at most one comes up in vain.

    It learns from the last 64 answers of each class that are long enough ago; a class is a namespace and the number of
    the turn, from the fourth on the same. Until eight are known to have gone on it brings nothing up. It knows the last
    65,536 conversations.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._ends: OrderedDict[int, _End] = OrderedDict()
        self._classes: dict[tuple[bytes, int], _Class] = {}

    def asked(self, group: bytes, chain: Sequence[int]) -> None:
        """A request names this chain: the conversation goes on that ended in its deepest block that is an end."""
        end = self._end_in(chain)
        if end is not None:
            end.gap_s = min(end.gap_s, self._now() - end.at)

    def answered(self, group: bytes, chain: Sequence[int], stays_s: float) -> bool:
        """The chain has its answer now; what comes up stays in RAM for ``stays_s``. Whether it should come up."""
        before = self._end_in(chain)
        end = _End(1 if before is None else min(before.turn + 1, _TURNS_MAX), self._now())
        self._ends[chain[-1]] = end
        self._ends.move_to_end(chain[-1])
        if len(self._ends) > _ENDS_MAX:
            self._ends.popitem(last=False)
        if len(self._classes) > _CLASSES_MAX:
            self._classes.clear()
        known = self._classes.setdefault((group, end.turn), _Class())
        known.add(end)
        return known.pays(end.at, min(stays_s, _HORIZON_S))

    def _end_in(self, chain: Sequence[int]) -> _End | None:
        return next((self._ends[block] for block in reversed(chain) if block in self._ends), None)
