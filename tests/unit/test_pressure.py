"""How much the RAM tier may use as memory gets short, and back."""

from __future__ import annotations

from kvtier.events import Event, RamGrown, RamShrunk, Signals
from kvtier.memory import Memory
from kvtier.tiers.pressure import Pressure
from tests.clocks import HandClock

CAP, FLOOR, TOTAL = 320, 100, 10_000
_CALM_S = 11.0


class Setting:
    """A machine on which as much is available as a test says."""

    def __init__(self) -> None:
        self.available = TOTAL
        self.broken = False
        self.clock = HandClock()
        self.events: list[Event] = []
        self.signals = Signals([self.events.append])
        self.pressure = Pressure(CAP, lambda total: FLOOR, self._ask, self.signals, self.clock)

    def _ask(self) -> Memory:
        if self.broken:
            raise OSError("cannot be asked")
        return Memory(TOTAL, self.available)

    def look(self, used: int, available: int) -> int:
        self.available = available
        return self.pressure.look(used)


def test_with_enough_memory_the_cap_is_whole() -> None:
    setting = Setting()
    assert setting.look(0, TOTAL) == CAP
    assert setting.look(CAP, FLOOR) == CAP
    assert setting.events == []


def test_what_is_missing_is_given_back() -> None:
    setting = Setting()
    assert setting.look(300, 40) == 240
    assert setting.look(240, 90) == 230
    assert setting.look(200, 0) == 100
    assert setting.look(50, 0) == 0
    assert setting.events == [RamShrunk(240, 40)]


def test_what_is_not_above_the_floor_is_not_taken() -> None:
    setting = Setting()
    assert setting.look(50, FLOOR + 70) == 120
    assert setting.look(50, TOTAL) == CAP  # nobody was ever short
    assert setting.events == []


def test_it_grows_back_slowly_once_it_is_calm() -> None:
    setting = Setting()
    setting.look(CAP, 0)
    assert setting.look(220, TOTAL) == 220
    setting.clock.now += _CALM_S
    assert [setting.look(220, TOTAL) for _ in range(3)] == [230, 240, 250]
    assert setting.look(250, FLOOR - 1) == 249  # short again: it waits anew
    assert setting.look(249, TOTAL) == 249
    setting.clock.now += _CALM_S
    for _ in range(8):
        setting.look(249, TOTAL)
    assert setting.look(249, TOTAL) == CAP
    assert [type(e) for e in setting.events] == [RamShrunk, RamGrown]
    assert setting.signals.counts()["ram_shrunk"] == 1


def test_nothing_shrinks_for_what_is_not_known() -> None:
    setting = Setting()
    setting.broken = True
    assert setting.look(CAP, 0) == CAP
    setting.broken = False
    assert setting.look(CAP, 0) == CAP - FLOOR
    setting.broken = True
    assert setting.look(0, TOTAL) == CAP - FLOOR
    assert setting.signals.counts()["memory_errors"] == 2
