"""Entries of the suites on the store alone: P1, P2, P8, P9, P12."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from bench.entry import Entry, Figures, at_least, at_most, ratio_noise, uncertainty
from bench.report_text import rate, seconds

_OBJECTS_BYTES_MAX = 16 << 10  #: of what a get allocates beside the bytes of a block
MANY = 10_000_000  #: blocks that the goal of a get is about


def _storage(figures: Figures) -> Iterator[Entry]:
    cold, ram = figures["read_cold"], figures["ram"]
    limits = [arm for arm in ("fio", "fio_direct") if arm in cold] or ["preadv_reused"]
    limit = max(limits, key=lambda arm: cold[arm]["median"])
    restores = {"get_into": "get_into", "get_many(keep=False)": "get_many_once"}
    yield at_least(
        "P1",
        "storage",
        "cold SSD restore / sequential reading, through the page cache or past it, whichever is faster",
        {name: cold[arm]["median"] / cold[limit]["median"] for name, arm in restores.items()},
        0.95,
        1.0,
        measured=f"{limit}: {rate(cold[limit]['median'])}",
        noise=ratio_noise(*((cold[arm], cold[limit]) for arm in restores.values())),
    )
    yield at_least(
        "P2",
        "storage",
        "get_into from RAM / memcpy, as rates",
        {"2 MiB": ram["memcpy_to_get_into"]},
        0.8,
        1.0,
        measured=seconds(ram["memcpy"]["median"]),
        noise=ratio_noise((ram["memcpy"], ram["get_into"])),
    )
    if "get_copies_bytes" in ram:
        what = "bytes that get of a block in memory allocates: none of the block's"
        yield at_most("P2", "storage", what, ram["get_copies_bytes"], _OBJECTS_BYTES_MAX, None)


def _compression(figures: Figures) -> Iterator[Entry]:
    rows = figures["rows"]
    yield at_most(
        "P8",
        "compression",
        "lossless size / order-0 entropy of the byte planes",
        {row["model"]: row["stored_to_bound"] for row in rows},
        1.03,
        None,
        measured=", ".join(f"{row['bytes'] / row['bound_bytes']:.3f} times smaller" for row in rows),
    )
    yield at_most(
        "P8",
        "compression",
        "compressed restore / raw restore, from a cold SSD",
        {row["model"]: row["cold"]["compressed_to_raw"] for row in rows},
        1.0,
        None,
        noise=ratio_noise(*((row["cold"][figures["codec"]], row["cold"]["none"]) for row in rows)),
    )


def _index_entries(figures: Figures) -> Iterator[Entry]:
    rows = figures["rows"]
    if len(rows) < 2 or rows[-1]["blocks"] < MANY:
        return
    first, *others = rows
    base = first["call_s"]["get"]
    yield at_most(
        "P9",
        "index_entries",
        f"get from a store of up to {MANY:,} blocks / of {first['blocks']:,}, median",
        {f"{row['blocks']:,} blocks": row["call_s"]["get"]["median"] / base["median"] for row in others},
        4.0,
        1.0,
        measured=seconds(base["median"]),
        noise=ratio_noise(*((row["call_s"]["get"], base) for row in others)),
    )


def _opening(figures: Figures) -> Iterator[Entry]:
    killed = figures["open_s"]["killed"]
    yield at_most(
        "P9",
        "opening",
        "seconds to open a store after SIGKILL",
        {f"{figures['blocks']:,} blocks": killed["median"]},
        1.0,
        None,
        measured=f"after close: {seconds(figures['open_s']['closed']['median'])}",
        noise=uncertainty(killed),
    )


def _threads(figures: Figures) -> Iterator[Entry]:
    rates = {row["what"]: row["rates"] for row in figures["rows"]}
    machine = rates.pop("memcpy")
    steps = {f"{what}, {n}": pair for what, by_count in rates.items() for n, pair in _steps(by_count)}
    spreads = {name: ratio_noise(pair) for name, pair in steps.items()}
    first, *_, last = machine
    yield at_least(
        "P12",
        "threads",
        "rate of so many threads / the best of fewer",
        {name: more["median"] / best["median"] for name, (more, best) in steps.items()},
        1.0,
        None,
        measured=f"memcpy, {first} to {last} threads: {rate(machine[first]['median'])} to "
        f"{rate(machine[last]['median'])}",
        noise=max(spreads.values()),
        tolerance=spreads,
    )


def _steps(rates: Mapping[str, Figures]) -> Iterator[tuple[str, tuple[Figures, Figures]]]:
    """Each number of threads but the first: its rate, and the best one of fewer."""
    (_, best), *more = rates.items()
    for threads, found in more:
        yield f"{threads} threads", (found, best)
        best = max(best, found, key=lambda spread: spread["median"])


MAKERS: dict[str, Callable[[Figures], Iterator[Entry]]] = {
    "storage": _storage,
    "compression": _compression,
    "index_entries": _index_entries,
    "opening": _opening,
    "threads": _threads,
}
