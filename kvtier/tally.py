"""Hits and misses by namespace, in memory."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from kvtier.backlog import Backlog

#: Of how many namespaces statistics speak.
NAMESPACES_MAX = 1024


class Uses(NamedTuple):
    """Blocks that were found when they were asked for, and that were not."""

    hits: int = 0
    misses: int = 0


class Tally:
    """Counts for the first 1,024 namespaces that are used; of further ones nothing is kept. Thread-safe."""

    def __init__(self) -> None:
        self._outcomes: Backlog[tuple[bytes, bool]] = Backlog(threading.Lock(), self._add)
        self._uses: dict[bytes, Uses] = {}

    def count(self, namespace: bytes, *, hit: bool) -> None:
        self._outcomes.note(((namespace, hit),))

    def uses(self) -> dict[bytes, Uses]:
        with self._outcomes.settled():
            return dict(self._uses)

    def _add(self, outcomes: Sequence[tuple[bytes, bool]]) -> None:
        for (namespace, hit), n in Counter(outcomes).items():
            old = self._uses.get(namespace)
            if old is not None or len(self._uses) < NAMESPACES_MAX:
                hits, misses = old or Uses()
                self._uses[namespace] = Uses(hits + n * hit, misses + n * (not hit))
