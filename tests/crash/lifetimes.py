"""When the values of an oracle's keys expire, as exactly as the store has promised to know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from kvtier.segment.format import DAY_S, expiry_day

Name = tuple[bytes, bytes]  # key and value


class Lifetimes:
    """For each value of each key: every second (since 1970, by the store's time) at which it may expire; 0: never."""

    def __init__(self) -> None:
        self._may_be: defaultdict[Name, set[int]] = defaultdict(set)
        self._ever: defaultdict[Name, set[int]] = defaultdict(set)
        self._waiting: dict[bytes, int] = {}

    def put(self, key: bytes, value: bytes, when: int) -> None:
        """A put was asked for."""
        self._may_be[key, value].add(when)
        self._ever[key, value].add(when)
        self._waiting[key] = when

    def flushed(self, key: bytes, value: bytes) -> None:
        """It was acknowledged."""
        self._may_be[key, value] = {self._waiting[key]}

    def saw(self, key: bytes, value: bytes, when: int, *, ever: bool) -> None:
        """The store says when it expires, which has to be one of the allowed times. ``ever``: of all there were."""
        allowed = self._ever[key, value] if ever else self._may_be[key, value]
        assert when in allowed, f"{key!r} expires at {when}, not one of {sorted(allowed)}"
        self._may_be[key, value] = {when}

    def is_over(self, key: bytes, now: float) -> bool:
        """Whether what was put last has expired."""
        return 0 < self._waiting.get(key, 0) <= now

    def of(self, key: bytes, value: bytes) -> set[int]:
        return self._may_be[key, value]

    def only_the_day_is_known(self, keys: Iterable[bytes]) -> None:
        """Of these keys the index was lost, or what it was told last: what is in a record is rounded up to a day."""
        chosen = set(keys)
        for known in (self._may_be, self._ever):
            for (key, _), times in known.items():
                if key in chosen:
                    times |= {expiry_day(when) * DAY_S for when in times}

    def renewals_may_be_undone(self, keys: Iterable[bytes]) -> None:
        """The last commit may be lost, which said of these keys when they expire; to the day, their records say it."""
        for key in keys:
            for name in [name for name in self._may_be if name[0] == key]:
                days = {expiry_day(when) for when in self._may_be[name]}
                self._may_be[name] |= {when for when in self._ever[name] if expiry_day(when) in days}

    def may_be_any_of(self, key: bytes) -> None:
        """Any put that ever was of it may be back."""
        for name in [name for name in self._ever if name[0] == key]:
            self._may_be[name] |= self._ever[name]

    def may_live(self, key: bytes, value: bytes, now: float, *, ever: bool = False) -> bool:
        """Whether it need not have expired yet. ``ever``: by any time that was ever named for it."""
        times = self._ever[key, value] | self._may_be[key, value] if ever else self._may_be[key, value]
        return any(not when or now < when for when in times)

    def may_be_over(self, key: bytes, value: bytes, now: float) -> bool:
        """Whether it may have expired."""
        return any(0 < when <= now for when in self._may_be[key, value])
