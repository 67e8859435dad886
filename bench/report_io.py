"""Tables of the suites on reading and writing: sizes of blocks, threads, many blocks, compression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.report_text import Lines, dropped, rate, seconds, size, spread, table


def block_io(figures: Mapping[str, Any]) -> Lines:
    rows = figures["rows"]
    sizes = sorted({row["block_bytes"] for row in rows})
    cells = {(_name(row), row["block_bytes"]): row for row in rows}
    yield from ("## By size of blocks", "")
    yield (
        f"Page cache dropped {dropped(figures)} where it says “cold”. The hard disk is a model, not a measurement. "
        "Median time of one call, and bytes a second that it moves:"
    )
    yield ""
    yield from table(
        ["", *(_size(n) for n in sizes)],
        ([name, *(_cell(cells.get((name, n))) for n in sizes)] for name in dict.fromkeys(map(_name, rows))),
    )
    yield from left_out(figures)


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['operation']}: {row['arm']}" if row["arm"] else str(row["operation"])


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes >> 20 else f"{nbytes >> 10} KiB"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    took = row["call_s"]["median"]
    return seconds(took) + (f", {rate(row['bytes'] / took)}" if row["bytes"] else "")


def left_out(figures: Mapping[str, Any]) -> Lines:
    """What was not measured, and why."""
    for name, reason in figures.get("left_out", {}).items():
        yield from ("", f"Not measured: {name}: {reason}")


def threads(figures: Mapping[str, Any]) -> Lines:
    rows = figures["rows"]
    counts = list(rows[0]["rates"])
    yield from ("## Threads that get blocks at the same time", "")
    yield (
        f"Blocks of {size(figures['block_bytes'])}; what all threads get together. Page cache dropped "
        f"{dropped(figures)} for “cold”. Ratios are medians of neighbours in time:"
    )
    yield ""
    yield from table(
        ["", *(f"{n} threads" for n in counts), *rows[0]["growth"]],
        (
            [
                row["what"],
                *(
                    rate(row["rates"][n]["median"]) if row["unit"] == "bytes" else _calls(row["rates"][n])
                    for n in counts
                ),
                *(f"**{grown['median']:.2f}**" for grown in row["growth"].values()),
            ]
            for row in rows
        ),
    )


def _calls(rates: Mapping[str, float]) -> str:
    return f"{rates['median']:,.0f} calls/s"


def index_entries(figures: Mapping[str, Any]) -> Lines:
    rows = figures["rows"]
    yield from ("## Many blocks in one store", "")
    yield (
        f"{figures['real']:,} blocks of 512 bytes that are read; all others are entries of the index alone, written by "
        f"its own transactions. Page cache dropped {dropped(figures)} before opening:"
    )
    yield ""
    yield from table(
        ["blocks", "index", "making it", "open, cold", *rows[0]["call_s"]],
        (
            [
                f"{row['blocks']:,}",
                size(row["index_bytes"]),
                seconds(row["build_s"]),
                seconds(row["open_s"]),
                *(spread(call, seconds) for call in row["call_s"].values()),
            ]
            for row in rows
        ),
    )
    yield from ("", "*match*: for each block of 64; *put and flush*: of 64 blocks.")
    yield from left_out(figures)


def compression(figures: Mapping[str, Any]) -> Lines:
    codec = figures["codec"]
    yield from (f'## Lossless compression (`codec = "{codec}"`)', "")
    yield f"K and V in f16 as the adapter stores them. Page cache dropped {dropped(figures)} for “cold”."
    yield ""
    yield from table(
        ["model", "tokens", "bytes", "stored", "entropy of the byte planes", "stored / entropy", "goal", "smaller by"],
        (
            [
                row["model"],
                f"{row['tokens']:,}",
                size(row["bytes"]),
                size(row["stored_bytes"][codec]),
                size(row["bound_bytes"]),
                f"**{row['stored_to_bound']:.3f}**",
                "≤ 1.03",
                f"{row['bytes'] / row['stored_bytes'][codec]:.2f} times",
            ]
            for row in figures["rows"]
        ),
    )
    yield ""
    yield from table(
        ["model", "restore", "raw", "compressed", "compressed / raw", "goal"],
        (
            [
                row["model"],
                state,
                spread(row[state]["none"], seconds),
                spread(row[state][codec], seconds),
                f"**{row[state]['compressed_to_raw']:.2f}**",
                "≤ 1.0" if state == "cold" else "",
            ]
            for row in figures["rows"]
            for state in ("cold", "warm")
        ),
    )
