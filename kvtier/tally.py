"""Hits and misses by namespace, in memory."""

from __future__ import annotations

import threading
from typing import NamedTuple

#: Of how many namespaces statistics speak.
NAMESPACES_MAX = 1024


class Uses(NamedTuple):
    """Blocks that were found when they were asked for, and that were not."""

    hits: int = 0
    misses: int = 0


class Tally:
    """Counts for the first 1,024 namespaces that are used; of further ones nothing is kept. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: dict[bytes, Uses] = {}

    def count(self, namespace: bytes, *, hit: bool) -> None:
        with self._lock:
            uses = self._uses.get(namespace)
            if uses is not None or len(self._uses) < NAMESPACES_MAX:
                old = uses or Uses()
                self._uses[namespace] = Uses(old.hits + hit, old.misses + (not hit))

    def uses(self) -> dict[bytes, Uses]:
        with self._lock:
            return dict(self._uses)
