"""Figures as text: times, sizes, rates, and tables of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Lines = Iterator[str]

_MEANS = {
    "drop_caches": "through `/proc/sys/vm/drop_caches`",
    "posix_fadvise": "by `posix_fadvise(DONTNEED)`",
    "none": "**not at all**: this system has no means",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def spread(arm: Mapping[str, float], shown: Callable[[float], str]) -> str:
    return f"{shown(arm['median'])} ({shown(arm['min'])} - {shown(arm['max'])})"


def dropped(figures: Mapping[str, Any]) -> str:
    return " and ".join(_MEANS[means] for means in figures["page_cache"].split(", "))


def seconds(s: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if s * factor >= 1:
            return f"{s * factor:.3g} {unit}"
    return f"{s * 1e9:.0f} ns"


def goal(entry: Mapping[str, Any]) -> str:
    """Of an entry; empty if it has none."""
    return "" if entry["goal"] is None else f"{entry['sense']} {entry['goal']:g}"


def met(entry: Mapping[str, Any]) -> str:
    """Whether an entry meets its goal, and whether only as what is missing is within noise."""
    if not entry["met"]:
        return "" if entry["met"] is None else "**no**"
    misses = entry["value"] < entry["goal"] if entry["sense"] == "≥" else entry["value"] > entry["goal"]
    return "yes, within noise" if misses else "yes"


def size(nbytes: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes:.0f} B"


def rate(bytes_per_s: float) -> str:
    return f"{size(bytes_per_s)}/s"
