"""What the clients of a simulated store may be told: now, by what was put, and after a crash, by what was promised."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from kvtier import Hit, Miss, MissReason
from tests.crash.oracle import LostBlock, Oracle, WrongBytes
from tests.stores import value_of


class Model:
    """One for the whole life of a store, through all its crashes."""

    def __init__(self) -> None:
        self.oracle = Oracle()
        self.reads_fail = False
        self._values: defaultdict[bytes, list[bytes | None]] = defaultdict(lambda: [None])
        self._changes: defaultdict[bytes, int] = defaultdict(int)

    def set(self, key: bytes, value: bytes | None) -> None:
        """A put, or (None) a deletion."""
        self.oracle.set(key, value)
        self._values[key].append(value)
        self._changes[key] += 1

    def dropped(self, keys: Iterable[bytes]) -> None:
        """The store gives these up."""
        for key in keys:
            self.oracle.dropped([key])
            self._changes[key] += 1

    def write_failed(self) -> None:
        """Some of what is not durable yet is lost; which, ``flush`` will not say either."""
        self.dropped(list(self.oracle.waiting))

    def settled(self) -> None:
        """The store was opened anew, and asked for everything: what it said is the truth."""
        for key, allowed in self.oracle.may_be.items():
            self._values[key] = list(allowed)

    def now(self, key: bytes) -> Moment:
        """To be asked for before a read begins."""
        return Moment(len(self._values[key]) - 1, self._changes[key])

    def check(self, key: bytes, outcome: Hit | Miss, since: Moment) -> None:
        if isinstance(outcome, Hit):
            self.check_bytes(key, value_of(outcome), since)
        elif not (self.reads_fail and outcome.reason is MissReason.UNAVAILABLE):
            self.check_absent(key, since)

    def check_bytes(self, key: bytes, value: bytes, since: Moment) -> None:
        """The value is the one put last, or one that was put since the read began."""
        if value not in self._values[key][since.version :]:
            raise WrongBytes(f"{key!r}: {value[:4].hex()}, {len(value)} bytes")

    def check_absent(self, key: bytes, since: Moment) -> None:
        """It was deleted or given up, or changed while the read was under way."""
        is_gone = self._values[key][-1] is None or key in self.oracle.given_up
        if not is_gone and self._changes[key] == since.changes:
            raise LostBlock(f"{key!r}")


class Moment:
    """Of one key: the place of its value among all that it had, and how often it changed."""

    def __init__(self, version: int, changes: int) -> None:
        self.version = version
        self.changes = changes
