"""Tables of the suites on the store alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.report_text import Lines, dropped, rate, seconds, size, spread, table


def storage(figures: Mapping[str, Any]) -> Lines:
    put, ram, flush = figures["put"], figures["ram"], figures["flush"]
    yield from (f"## Blocks of {figures['block_bytes'] >> 20} MiB", "", "One block:", "")
    yield from table(
        ["", "time", "ratio"],
        [
            ["`put`", spread(put["put"], seconds), ""],
            [
                "memcpy into new memory",
                spread(put["memcpy_new"], seconds),
                f"**{put['put_to_memcpy_new']:.2f}** (put / it)",
            ],
            [
                "memcpy into warm memory",
                spread(put["memcpy_warm"], seconds),
                f"{put['put_to_memcpy_warm']:.2f} (put / it)",
            ],
            ["`get` from RAM", spread(ram["get"], seconds), "copies nothing"],
            ["`get_into` from RAM", spread(ram["get_into"], seconds), ""],
            [
                "memcpy into the same memory",
                spread(ram["memcpy"], seconds),
                f"{ram['memcpy_to_get_into']:.2f} (it / get_into)",
            ],
        ],
    )
    yield from ("", f"{figures['blocks']} blocks; page cache dropped {dropped(figures)} for “cold”:", "")
    warm, cold = figures["read_warm"], figures["read_cold"]

    def reads(arm: str) -> list[str]:
        return [spread(cold[arm], rate), spread(warm[arm], rate)]

    by_fio = spread(cold["fio"], rate) if "fio" in cold else f"not measured: {figures.get('no_fio') or 'no fio'}"

    yield from table(
        ["", "cold", "warm"],
        [
            ["`get_many`", *reads("get_many")],
            ["preadv into new memory", *reads("preadv_new")],
            ["`get_many` / preadv", *(f"**{r['get_many_to_preadv_new']:.2f}**" for r in (cold, warm))],
            ["`get_many(keep=False)`", *reads("get_many_once")],
            ["`get_into`, one by one", *reads("get_into")],
            ["preadv into reused memory", *reads("preadv_reused")],
            ["fio, sequential", by_fio, ""],
            [
                "`get_many(keep=False)` / preadv",
                *(f"**{r['get_many_once_to_preadv_reused']:.2f}**" for r in (cold, warm)),
            ],
            ["`get_into` / preadv", *(f"**{r['get_into_to_preadv_reused']:.2f}**" for r in (cold, warm))],
        ],
    )
    yield ""
    yield (
        f"`put` and `flush` of them: {spread(flush['kvtier'], rate)}; writing them to one file with one fsync: "
        f"{spread(flush['plain'], rate)}; ratio **{flush['kvtier_to_plain']:.2f}**."
    )


def protection(figures: Mapping[str, Any]) -> Lines:
    yield from (f"## What checks and encryption cost ({size(figures['block_bytes'])} blocks)", "")
    yield (
        f"{figures['blocks']} blocks by `get_many(keep=False)`; page cache dropped {dropped(figures)} for “cold”. "
        "Unchecked: the payloads' checksums are not computed, in this benchmark only."
    )
    yield ""
    states = [figures["cold"], figures["warm"]]
    yield from table(
        ["", "cold", "warm", "goal"],
        [
            *([arm, *(spread(s["rates"][arm], rate) for s in states), ""] for arm in states[0]["rates"]),
            ["checked / unchecked", *(f"**{s['checked_to_unchecked']:.2f}**" for s in states), "≥ 0.90"],
            ["encrypted / checked", *(f"**{s['encrypted_to_checked']:.2f}**" for s in states), "≥ 0.85"],
        ],
    )


def opening(figures: Mapping[str, Any]) -> Lines:
    yield from (f"## Opening a store of {figures['blocks']:,} blocks", "")
    ends = figures["open_s"]
    yield from table(
        ["", "`Store.open`", "goal"],
        [
            ["after `close()`", spread(ends["closed"], seconds), "≤ 1 s"],
            ["after SIGKILL", spread(ends["killed"], seconds), "≤ 1 s"],
        ],
    )
    yield from (
        "",
        f"Page cache dropped {dropped(figures)}. Index: {figures['index_bytes_per_block']:.0f} bytes a block.",
    )


def operations(figures: Mapping[str, Any]) -> Lines:
    yield from ("## Single calls", "")
    yield from table(["call", "time"], ([name, seconds(s["median"])] for name, s in figures["call_s"].items()))
