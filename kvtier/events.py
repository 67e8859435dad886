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
    """A group of blocks could not be made durable; they remain misses after a restart. Not sent for what is lost
    while the tier is suspended: ``stats()`` counts it."""

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
class TierShrunk(Event):
    """Others have filled a tier's disk up to its floor: the tier is kept to ``bytes_max``, below its cap, and evicts
    down to it. Sent once an episode."""

    tier: str
    bytes_max: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class TierGrown(Event):
    """Such a tier may use all of its cap again."""

    tier: str


@dataclass(frozen=True, slots=True)
class RamShrunk(Event):
    """Less memory is available than ``ram.available_bytes_min``: the RAM tier is kept to ``bytes_max``, below its cap.
    Sent once an episode."""

    bytes_max: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class RamGrown(Event):
    """The RAM tier may use all of its cap again."""


@dataclass(frozen=True, slots=True)
class Recovered(Event):
    """What opening found after an unclean end: records found beyond the last index commit, bytes cut."""

    records: int
    torn_bytes: int
    rebuilt: bool


@dataclass(frozen=True, slots=True)
class RebuildProgress(Event):
    """An index is being made anew: how far it is with a tier. Each segment counts twice, as it is walked twice."""

    tier: str
    segments_done: int
    segments_total: int


@dataclass(frozen=True, slots=True)
class SegmentLost(Event):
    """A segment that the index knows is not in its tier's folder; its blocks are misses."""

    tier: str
    segment: int


@dataclass(frozen=True, slots=True)
class AccessNarrowed(Event):
    """Other users could read a folder of the store or files in it, or its group could use them: now only the owner can.
    ``modes``: how many were changed."""

    folder: str
    modes: int


@dataclass(frozen=True, slots=True)
class FolderExposed(Event):
    """Every user can write to ``parent``, which has no sticky bit, and so put another folder in this one's place; or
    ``parent`` is the folder itself: others can use it, and its mode could not be narrowed."""

    folder: str
    parent: str


@dataclass(frozen=True, slots=True)
class PolicyDisabled(Event):
    """A policy raised, or gave away what it must not: until the store is opened again the default of its kind does its
    work. Nothing is lost, but what the policy had learnt. ``tier``: whose it was, ``ram``, or ``prefetch``."""

    tier: str
    policy: str
    reason: str


@dataclass(frozen=True, slots=True)
class WriteBudgetSpent(Event):
    """A block was not written to a tier, because as much was as may be in a day. Sent at most once a day."""

    tier: str
    bytes_per_day: int


@dataclass(frozen=True, slots=True)
class SegmentsCompacted(Event):
    """So many segments of a tier were removed after what lived in them was copied. ``bytes_reclaimed``: what they had
    occupied, less the copies."""

    tier: str
    segments: int
    bytes_copied: int
    bytes_reclaimed: int


Listener = Callable[[Event], None]

_LEVELS: dict[type[Event], int] = {
    Recovered: logging.INFO,
    RebuildProgress: logging.DEBUG,
    SegmentsCompacted: logging.DEBUG,
    TierResumed: logging.INFO,
    WriteBudgetSpent: logging.INFO,
    TierGrown: logging.INFO,
    RamGrown: logging.INFO,
}


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

    def emit(self, event: Event, *, quiet: bool = False) -> None:
        """Log it (``quiet``: only for debugging, as another event has just said so) and tell the listeners."""
        log.log(logging.DEBUG if quiet else _LEVELS.get(type(event), logging.WARNING), "%s", event)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                self.count("listener_errors")
                log.exception("event listener failed")
