"""What the clients of a simulated store may be told: now, by what was put, and after a crash, by what was promised."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from kvtier import Hit, Miss, MissReason
from tests.crash.oracle import LostBlock, Oracle, WrongBytes
from tests.stores import value_of
from tests.torture.simulated import SimulatedClock
from tests.torture.store_time import StoreTime

Keys = set[bytes]


class Version(NamedTuple):
    """A value that a key has had (None: it was absent), and when that expires; 0: never."""

    value: bytes | None
    expires_at: int = 0


class Moment(NamedTuple):
    """Of one key: the place of its value among all that it had, how often it changed, and what time it was."""

    version: int
    changes: int
    now: float


class Model:
    """One for the whole life of a store, through all its crashes."""

    def __init__(self, clock: SimulatedClock) -> None:
        self.time = StoreTime(clock)
        self.oracle = Oracle(self.time.now)
        self.reads_fail = False
        self.just_committed: Keys = set()  # what the latest commit has stored or renewed
        self._versions: defaultdict[bytes, list[Version]] = defaultdict(lambda: [Version(None)])
        self._changes: defaultdict[bytes, int] = defaultdict(int)

    def set(self, key: bytes, value: bytes | None, expires_at: int = 0) -> None:
        """A put, or (None) a deletion."""
        self.oracle.set(key, value, expires_at)
        self._versions[key].append(Version(value, expires_at))
        self._changes[key] += 1

    # -- what the store says of itself ----------------------------------------------------------------

    def dropped(self, keys: Iterable[bytes]) -> None:
        """The store gives these up."""
        for key in keys:
            self.oracle.dropped([key])
            self._changes[key] += 1

    def was_refused(self, key: bytes) -> None:
        """No tier has taken it in."""
        self.oracle.was_refused(key)
        self._changes[key] += 1

    def begins_commit(self) -> Keys:
        """Give it what it stores and renews."""
        self.time.may_commit()
        self.just_committed = set()
        return self.just_committed

    def committed(self) -> None:
        self.time.committed()
        for key in self.just_committed:
            self.oracle.was_taken_in(key)

    def write_failed(self) -> None:
        """Some of what is not durable yet is lost; which, ``flush`` will not say either."""
        self.oracle.lifetimes.only_the_day_is_known(self.oracle.waiting)
        self.dropped(list(self.oracle.waiting))

    # -- crashes ------------------------------------------------------------------------------------

    def died(self) -> None:
        self.oracle.was_killed()

    def lost_the_last_commit(self) -> None:
        """It may be lost."""
        self.oracle.lost_the_last_commit(self.just_committed)
        self.time.lost_the_last_commit()

    def lost_the_index(self) -> None:
        self.time.lost_the_index()
        self.index_is_new()

    def index_is_new(self) -> None:
        """It is being made anew."""
        self.oracle.lost_the_index()

    def settled(self) -> None:
        """The store was opened anew, and asked for everything: what it said is the truth."""
        for key, values in self.oracle.may_be.items():
            self._versions[key] = []
            for value in sorted(values, key=lambda v: v is None):  # what is current, if it is not known, comes last
                times = {0} if value is None else self.oracle.lifetimes.of(key, value)
                self._versions[key] += [Version(value, when) for when in sorted(times)]

    # -- reads --------------------------------------------------------------------------------------

    def now(self, key: bytes) -> Moment:
        """To be asked for before a read begins."""
        return Moment(len(self._versions[key]) - 1, self._changes[key], self.time.now())

    def check(self, key: bytes, outcome: Hit | Miss, since: Moment) -> None:
        if isinstance(outcome, Hit):
            self.check_bytes(key, value_of(outcome), since)
        elif not (self.reads_fail and outcome.reason is MissReason.UNAVAILABLE):
            self.check_absent(key, since)

    def check_bytes(self, key: bytes, value: bytes, since: Moment) -> None:
        """The value is the one put last, or one that was put since the read began, when it had not expired."""
        found = [version for version in self._versions[key][since.version :] if version.value == value]
        if not any(not version.expires_at or since.now < version.expires_at for version in found):
            what = f"has expired at {[v.expires_at for v in found]}, now {since.now}" if found else "wrong"
            raise WrongBytes(f"{key!r}: {value[:4].hex()}, {len(value)} bytes: {what}")

    def check_absent(self, key: bytes, since: Moment) -> None:
        """It was deleted or given up, has expired, or changed while the read was under way."""
        value, expires_at = self._versions[key][-1]
        is_gone = value is None or key in self.oracle.given_up or 0 < expires_at <= self.time.now()
        if not is_gone and self._changes[key] == since.changes:
            raise LostBlock(f"{key!r}")

    def current(self, key: bytes) -> bytes | None:
        """The value put last, if it was not deleted."""
        return self._versions[key][-1].value
