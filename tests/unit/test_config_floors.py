"""Floors of free space and memory, and shares: what they come to, and what contradicts them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kvtier.config import Config, RamConfig, TierConfig
from kvtier.config import floors as module
from kvtier.errors import ConfigError
from kvtier.memory import Memory, memory
from kvtier.units import GIB, MIB, Percent


def raw(folder: Path, **changes: object) -> dict[str, Any]:
    tier = {"name": "a", "kind": "ssd", "bytes_max": "1GiB", **changes}
    return {"store": {"path": folder}, "tier": [tier]}


def problems(source: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(source)
    return {p.path: str(p) for p in caught.value.problems}


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every disk has 100 GiB."""
    usage = shutil.disk_usage("/")._replace(total=100 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has 8 GiB."""
    monkeypatch.setattr(module, "memory", lambda: Memory(8 * GIB, 8 * GIB))


@pytest.mark.parametrize(
    ("floor", "nbytes"), [("10GiB", 10 * GIB), ("5%", 5 * GIB), (0, 0), ("0", 0), (None, GIB)], ids=str
)
@pytest.mark.usefixtures("small_disk")
def test_a_floor_in_bytes(tmp_path: Path, floor: object, nbytes: int) -> None:
    given = {} if floor is None else {"free_bytes_min": floor}
    assert Config.from_dict(raw(tmp_path, **given)).tier[0].free_bytes_min_resolved() == nbytes


def test_the_default_suits_small_disks_and_memories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = Config.from_dict(raw(tmp_path)).tier[0]
    for total, floor in ((10 * GIB, GIB // 10), (4000 * GIB, GIB)):
        usage = shutil.disk_usage("/")._replace(total=total)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        assert tier.free_bytes_min_resolved() == floor
    assert RamConfig().available_bytes_min_resolved(GIB) == GIB // 20
    assert RamConfig().available_bytes_min_resolved(64 * GIB) == 512 * MIB
    assert RamConfig(available_bytes_min="10%").available_bytes_min_resolved(64 * GIB) == 64 * GIB // 10
    assert RamConfig(available_bytes_min=7).available_bytes_min_resolved(64 * GIB) == 7


@pytest.mark.parametrize(
    ("changes", "at", "says"),
    [
        ({"free_bytes_min": "200GiB"}, "free_bytes_min", "200GiB of a disk of 100GiB leaves no room for one segment"),
        ({"free_bytes_min": "200GiB"}, "free_bytes_min", "at most 99.75GiB"),
        ({"free_bytes_min": "100%"}, "free_bytes_min", "100% (100GiB) of a disk of 100GiB leaves no room"),
        ({"free_bytes_min": "10GiB", "bytes_max": "95GiB"}, "free_bytes_min", "are more than the disk: 100GiB"),
        ({"free_bytes_min": "10GiB", "bytes_max": "95GiB"}, "free_bytes_min", "bytes_max at most 90GiB"),
        ({"free_bytes_min": "10%", "bytes_max": "95%"}, "free_bytes_min", "10% (10GiB) and bytes_max (95% (95GiB))"),
        ({"free_bytes_min": "0%"}, "free_bytes_min", "not a share"),
        ({"free_bytes_min": "some"}, "free_bytes_min", "not a byte size"),
        ({"free_bytes_min": None}, "free_bytes_min", "not a byte size"),
        ({"free_bytes_min": -1}, "free_bytes_min", "negative"),
        ({"free_byte_min": 1}, "free_byte_min", "did you mean 'free_bytes_min'"),
    ],
)
@pytest.mark.usefixtures("small_disk")
def test_a_floor_that_cannot_be(tmp_path: Path, changes: dict[str, object], at: str, says: str) -> None:
    found = problems(raw(tmp_path, **changes))
    assert list(found) == [f"tier[0].{at}"]
    assert says in found[f"tier[0].{at}"]


@pytest.mark.usefixtures("small_disk")
def test_a_cap_above_the_disk_is_no_contradiction_as_long_as_no_floor_is_set(tmp_path: Path) -> None:
    for floor in ({}, {"free_bytes_min": 0}):
        Config.from_dict(raw(tmp_path, bytes_max="200GiB", **floor))
    Config.from_dict(raw(tmp_path, bytes_max="90GiB", free_bytes_min="10GiB"))


@pytest.mark.parametrize(
    ("ram", "at", "says"),
    [
        ({"available_bytes_min": "9GiB"}, "available_bytes_min", "are more than the memory there is: 8GiB"),
        ({"available_bytes_min": "4GiB", "bytes_max": "5GiB"}, "available_bytes_min", "bytes_max at most 4GiB"),
        ({"available_bytes_min": "75%", "bytes_max": "3GiB"}, "available_bytes_min", "75% (6GiB) and bytes_max (3GiB)"),
        ({"available_bytes_min": "101%"}, "available_bytes_min", "not a share"),
        ({"bytes_max": "0%"}, "bytes_max", "not a share"),
        ({"available_byte_min": 1}, "available_byte_min", "did you mean 'available_bytes_min'"),
    ],
)
@pytest.mark.usefixtures("small_memory")
def test_a_floor_of_memory_that_cannot_be(ram: dict[str, object], at: str, says: str) -> None:
    found = problems({"ram": ram})
    assert list(found) == [f"ram.{at}"]
    assert says in found[f"ram.{at}"]


@pytest.mark.usefixtures("small_memory")
def test_floors_of_memory_that_can_be(tmp_path: Path) -> None:
    Config.from_dict({"ram": {"available_bytes_min": "4GiB", "bytes_max": "4GiB"}})
    Config.from_dict({"ram": {"available_bytes_min": 0, "bytes_max": "9GiB"}})
    Config.from_dict({"ram": {"bytes_max": "9GiB"}})
    Config.from_dict({**raw(tmp_path), "ram": {"available_bytes_min": "9GiB", "bytes_max": 0}})


def test_a_share_of_memory() -> None:
    assert RamConfig(bytes_max="25%").bytes_max_resolved() == Percent(25).of(memory().total)
    assert RamConfig(bytes_max=MIB).bytes_max_resolved() == MIB


def test_a_share_of_a_memory_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Memory:
        raise OSError("memory cannot be asked for: no /proc")

    monkeypatch.setattr(module, "memory", refuse)
    found = problems({"ram": {"bytes_max": "25%"}})
    assert "no /proc" in found["ram.bytes_max"]
    assert "give a size" in found["ram.bytes_max"]
    Config.from_dict({"ram": {"bytes_max": "1GiB", "available_bytes_min": "1GiB"}})


def test_what_is_saved_is_what_was_given(tmp_path: Path) -> None:
    source = raw(tmp_path, bytes_max="12.5%", free_bytes_min="2.5%")
    config = Config.from_dict({**source, "ram": {"bytes_max": "0.5%", "available_bytes_min": "1%"}})
    again = Config.from_dict(json.loads(config.to_json()))
    assert again == config
    assert again.tier[0].free_bytes_min == Percent(2.5)
    assert again.ram.bytes_max == Percent(0.5)
    built = TierConfig(name="a", kind="ssd", bytes_max=Percent(12.5), free_bytes_min=Percent(2.5), path=tmp_path / "a")
    assert config.tier[0] == built
