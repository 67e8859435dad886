"""How much of a disk, and of memory, is left to others: what that is by default, and what contradicts it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from kvtier.errors import ConfigProblem
from kvtier.memory import memory
from kvtier.units import GIB, MIB, Percent, disk_total, format_size

if TYPE_CHECKING:
    from kvtier.config.sections import RamConfig, TierConfig


class DefaultFloor(NamedTuple):
    """The smaller one of a size and a share."""

    size: int
    share: Percent


#: Enough for the rest of the machine to go on, and not so much that a large disk is kept half empty.
FREE_BYTES_MIN = DefaultFloor(GIB, Percent(1))
AVAILABLE_BYTES_MIN = DefaultFloor(512 * MIB, Percent(5))


def floor_bytes(floor: int | Percent | None, total: int, default: DefaultFloor) -> int:
    """A floor in bytes, of a disk or memory of ``total`` bytes. None: the default."""
    if floor is None:
        return min(default.size, default.share.of(total))
    return floor.of(total) if isinstance(floor, Percent) else floor


def disk_floor_problem(tier: TierConfig) -> tuple[str, str] | None:
    """What is wrong with a tier's floor, as text and hint, if it was set."""
    if not tier.free_bytes_min or not tier.path.is_absolute():  # store.path is missing then, which is reported
        return None
    try:
        total, floor, cap = disk_total(tier.path), tier.free_bytes_min_resolved(), tier.bytes_max_resolved()
    except OSError as e:
        return f"the disk that holds {tier.path} cannot be asked: {e.strerror}", "0 for none"
    shown = _shown(tier.free_bytes_min, floor)
    if floor + tier.segment_bytes > total:
        message = f"{shown} of a disk of {format_size(total)} leaves no room for one segment"
        return message, f"at most {format_size(max(0, total - tier.segment_bytes))}"
    if floor + cap > total:
        message = f"{shown} and bytes_max ({_shown(tier.bytes_max, cap)}) are more than the disk: {format_size(total)}"
        return message, f"bytes_max at most {format_size(total - floor)}, or a floor of 0"
    return None


def memory_problems(ram: RamConfig) -> Iterator[ConfigProblem]:
    """What is wrong with shares and floor of memory, if they were set."""
    floor_set = bool(ram.available_bytes_min) and bool(ram.bytes_max)
    if not floor_set and not isinstance(ram.bytes_max, Percent):
        return
    try:
        total, cap = memory().total, ram.bytes_max_resolved()
    except OSError as e:
        if isinstance(ram.bytes_max, Percent):
            yield ConfigProblem("ram.bytes_max", str(e), "give a size")
        return
    floor = ram.available_bytes_min_resolved(total)
    if floor_set and floor + cap > total:
        shown = f"{_shown(ram.available_bytes_min, floor)} and bytes_max ({_shown(ram.bytes_max, cap)})"
        message = f"{shown} are more than the memory there is: {format_size(total)}"
        hint = f"bytes_max at most {format_size(max(0, total - floor))}, or a floor of 0"
        yield ConfigProblem("ram.available_bytes_min", message, hint)


def _shown(value: int | Percent | None, nbytes: int) -> str:
    return f"{value} ({format_size(nbytes)})" if isinstance(value, Percent) else format_size(nbytes)
