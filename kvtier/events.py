"""Typed events, and the place where they and the counters meet.

Listeners are called on the thread that noticed the event (a reader or the background worker), must be
quick, and must not call the store. A listener that raises is counted and otherwise ignored.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

log = logging.getLogger("kvtier")


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class BlockQuarantined(Event):
    """A check failed on read: the record will never be served, and its key can be stored again."""

    tier: str
    segment: int
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class WriteFailed(Event):
    """A group of blocks could not be made durable; they remain misses after a restart."""

    tier: str
    blocks: int
    error: str


@dataclass(frozen=True, slots=True)
class WriteSkipped(Event):
    """The write queue was full and the configuration says ``skip``. Sent once per episode."""

    pending_bytes: int


@dataclass(frozen=True, slots=True)
class TierSuspended(Event):
    """A tier stopped taking writes after an error; it is tried again by itself."""

    tier: str
    error: str


@dataclass(frozen=True, slots=True)
class TierResumed(Event):
    """A suspended tier took a write again."""

    tier: str


@dataclass(frozen=True, slots=True)
class Recovered(Event):
    """What opening found after an unclean end: records found beyond the last index commit, bytes cut."""

    records: int
    torn_bytes: int
    rebuilt: bool


@dataclass(frozen=True, slots=True)
class SegmentLost(Event):
    """A segment that the index knows is not in its tier's folder; its blocks are misses."""

    tier: str
    segment: int


Listener = Callable[[Event], None]


class Signals:
    """Counters and listeners. Thread-safe."""

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._listeners = list(listeners)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def count(self, name: str, n: int = 1) -> None:
        with self._lock:
            self._counts[name] += n

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def get(self, name: str) -> int:
        return self._counts[name]

    def emit(self, event: Event) -> None:
        log.log(logging.INFO if isinstance(event, (Recovered, TierResumed)) else logging.WARNING, "%s", event)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                self.count("listener_errors")
                log.exception("event listener failed")
