"""How much a tier may use of its disk, as others fill it: on a disk whose free space is a number."""

from __future__ import annotations

from kvtier.events import Event, Signals, TierGrown, TierShrunk
from kvtier.tiers.room import Disk, Floor, Room
from tests.clocks import HandClock

GIB = 1 << 30
_MINUTE_S = 61.0


class Setting:
    """A disk of ``total`` bytes, with tiers and others on it."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.others = 0
        self.used: dict[str, int] = {}
        self.asked = 0
        self.broken = False
        self.clock = HandClock()
        self.events: list[Event] = []
        self.signals = Signals([self.events.append])
        self.disk = Disk(self._free, self.clock, self.signals)

    def _free(self) -> int:
        self.asked += 1
        if self.broken:
            raise OSError("cannot be asked")
        return self.total - self.others - sum(self.used.values())

    def tier(self, name: str, bytes_max: int, free_bytes_min: int) -> Room:
        room = Room(name, bytes_max, self.signals)
        room.floor = Floor(self.disk, free_bytes_min)
        self.used[name] = 0
        self.disk.add(lambda: self.used[name])
        return room


def test_the_cap_holds_as_long_as_there_is_room() -> None:
    setting = Setting(1000)
    room = setting.tier("a", 500, 100)
    assert room.look(0, 500) == 500
    setting.others = 400
    assert room.look(0, 500) == 500
    assert not setting.events
    assert not room.is_short


def test_what_others_take_is_taken_from_the_tier() -> None:
    setting = Setting(1000)
    room = setting.tier("a", 500, 100)
    setting.used["a"] = 450
    setting.others = 500
    assert room.look(450, 0) == 400
    setting.others = 800
    assert room.look(450, 0) == 100
    setting.used["a"] = 100  # evicted
    assert room.look(100, 1) == 100
    setting.others = 999
    assert room.look(100, 0) == 0
    assert setting.events == [TierShrunk("a", 400, 50)]


def test_it_grows_again_after_a_calm_minute() -> None:
    setting = Setting(1000)
    room = setting.tier("a", 500, 100)
    setting.others, setting.used["a"] = 500, 450
    assert room.look(450, 0) == 400
    setting.used["a"] = 400
    setting.others = 200
    assert room.look(400, 10) == 400
    setting.clock.now += _MINUTE_S / 2
    setting.others = 450  # back, and gone again: no block is lost for it
    assert room.look(400, 0) == 400
    setting.others = 200
    setting.clock.now += _MINUTE_S
    assert room.look(400, 10) == 500
    assert [type(e) for e in setting.events] == [TierShrunk, TierGrown]


def test_a_clock_that_jumps_back_ends_the_wait() -> None:
    setting = Setting(1000)
    room = setting.tier("a", 500, 100)
    setting.others, setting.used["a"] = 500, 450
    assert room.look(450, 0) == 400
    setting.others = 0
    setting.clock.now = 0.0
    assert room.look(450, 0) == 500


def test_going_down_further_starts_the_wait_anew() -> None:
    setting = Setting(1000)
    room = setting.tier("a", 500, 100)
    setting.others, setting.used["a"] = 500, 450
    room.look(450, 0)
    setting.clock.now += _MINUTE_S - 2
    setting.others = 600
    assert room.look(450, 0) == 300
    setting.others = 0
    setting.clock.now += _MINUTE_S - 2
    assert room.look(450, 0) == 300
    setting.clock.now += 3
    assert room.look(450, 0) == 500


def test_two_tiers_do_not_take_the_same_room() -> None:
    setting = Setting(1000)
    fast, slow = setting.tier("fast", 800, 100), setting.tier("slow", 800, 100)
    assert fast.look(0, 600) == 800
    setting.used["fast"] = 600
    assert slow.cap(0) == 300  # known without asking again
    assert slow.look(0, 300) == 300
    setting.used["slow"] = 300
    assert (fast.cap(600), slow.cap(300)) == (600, 300)
    setting.used["slow"] = 100  # what one gives back the other may have
    assert fast.cap(600) == 800


def test_each_tier_has_its_own_floor() -> None:
    setting = Setting(1000)
    low, high = setting.tier("low", 900, 100), setting.tier("high", 900, 300)
    assert (low.look(0, 900), high.look(0, 900)) == (900, 700)


def test_far_from_the_floor_the_disk_is_asked_once_a_second() -> None:
    setting = Setting(100 * GIB)
    room = setting.tier("a", 50 * GIB, GIB)
    for _ in range(1000):
        room.look(setting.used["a"], 1 << 20)
        setting.used["a"] += 1 << 20
    assert setting.asked == 1
    setting.clock.now += 1
    for _ in range(1000):
        room.look(setting.used["a"], 1 << 20)
    assert setting.asked == 2


def test_near_the_floor_each_append_asks() -> None:
    setting = Setting(5 * GIB)
    room = setting.tier("a", 5 * GIB, GIB)
    for _ in range(10):
        room.look(0, 4096)
    assert setting.asked == 10


def test_nothing_shrinks_for_what_is_not_known() -> None:
    setting = Setting(1000)
    room = setting.tier("a", 500, 100)
    setting.broken = True
    setting.others = 1000
    assert room.look(0, 500) == room.cap(0) == 500
    assert room.free_bytes() is None
    setting.broken = False
    assert room.look(0, 500) == 0
    setting.broken = True  # what was known last stays
    assert room.look(0, 500) == 0
    assert setting.signals.counts()["free_space_errors"] == 2


def test_without_a_floor_the_disk_is_not_asked() -> None:
    setting = Setting(1000)
    room = setting.tier("a", 500, 0)
    setting.others = 1000
    assert room.look(0, 500) == room.cap(0) == 500
    assert setting.asked == 0
