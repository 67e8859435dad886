"""Entries of the suites on the store alone: P1, P2, P8, P9, P12."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.entry import Entry, Figures, at_least, at_most, ratio_noise, uncertainty
from bench.report_text import rate, seconds

_STEADY = 0.95  #: of a rate that has not fallen: a run is not more exact than that


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
        copies = {place: nbytes // figures["block_bytes"] for place, nbytes in ram["get_copies_bytes"].items()}
        yield at_most("P2", "storage", "copies of a block that get makes, by what it allocates", copies, 0, 0)


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
    if len(rows) < 2:
        return
    first, *others = rows
    base = first["call_s"]["get"]
    yield at_most(
        "P9",
        "index_entries",
        f"get of {rows[-1]['blocks']:,} blocks / of {first['blocks']:,}, median",
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
        f"seconds to open a store of {figures['blocks']:,} blocks after SIGKILL",
        {"killed": killed["median"]},
        1.0,
        None,
        measured=f"after close: {seconds(figures['open_s']['closed']['median'])}",
        noise=uncertainty(killed),
    )


def _threads(figures: Figures) -> Iterator[Entry]:
    rows = {row["what"]: row for row in figures["rows"]}
    machine = rows.pop("memcpy")
    yield at_least(
        "P12",
        "threads",
        "rate of 2, 4, 8 threads / of half as many",
        {f"{what}, {step}": grown["median"] for what, row in rows.items() for step, grown in row["growth"].items()},
        _STEADY,
        min(grown["median"] for grown in machine["growth"].values()),
        measured=f"memcpy, 1 to 8 threads: {rate(machine['rates']['1']['median'])} to "
        f"{rate(machine['rates']['8']['median'])}",
        noise=max(uncertainty(grown) for row in rows.values() for grown in row["growth"].values()),
    )


MAKERS: dict[str, Callable[[Figures], Iterator[Entry]]] = {
    "storage": _storage,
    "compression": _compression,
    "index_entries": _index_entries,
    "opening": _opening,
    "threads": _threads,
}
