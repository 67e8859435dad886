"""Entries of the suites on the store and on llama.cpp, made of small figures."""

from __future__ import annotations

from typing import Any

from bench import goals
from bench.scoreboard import IDS, scoreboard


def arm(median: float) -> dict[str, float]:
    return {"median": median, "min": median, "max": median, "runs": 5}


def ttft(**arms: float) -> dict[str, Any]:
    return {"model": "m", "tokens": 1024, "ttft_s": {name: arm(s) for name, s in arms.items()}}


def test_a_restart_is_held_against_the_limit_and_peers() -> None:
    rows = [
        ttft(kvtier=1.1, kvtier_ram=0.5, limit=1.0, raw=1.2, disk_cache=2.0, ram_cache=0.4),
        {**ttft(kvtier=1.1, kvtier_ram=0.5, limit=1.0, ram_cache=0.6), "tokens": 4096, "failed": {"raw": "it crashed"}},
    ]
    limit, raw = goals.entries({"warm_ttft": {"rows": rows}})
    assert (limit["value"], limit["met"], "beaten_by" in limit) == (1.1, True, False)
    assert list(raw["arms"]) == ["m, 1,024 tokens"]  # what failed is no arm
    assert raw["beaten_by"] == ["LlamaRAMCache: 1 of 2, up to 1.25 times"]


def test_a_restore_is_held_against_fio_where_there_is_one() -> None:
    ram = {"memcpy": arm(1.0), "get_into": arm(1.25), "memcpy_to_get_into": 0.8}
    cold = {"get_into": arm(96), "get_many_once": arm(98), "preadv_reused": arm(200)}
    figures = {"block_bytes": 1000, "ram": {**ram, "get_copies_bytes": {"RAM": 999}}, "read_cold": cold}
    by_hand, rate, copies = goals.entries({"storage": figures})
    assert (by_hand["value"], by_hand["met"]) == (0.48, False)
    assert (rate["value"], rate["met"], copies["value"], copies["met"]) == (0.8, True, 0, True)
    fio, *_ = goals.entries({"storage": {**figures, "read_cold": {**cold, "fio": arm(100)}}})
    assert (fio["value"], fio["met"]) == (0.96, True)
    figures["ram"] = {**ram, "get_copies_bytes": {"RAM": 1000}}
    assert [e["met"] for e in goals.entries({"storage": figures})] == [False, True, False]


def test_a_rate_that_falls_with_more_threads_is_seen() -> None:
    def row(what: str, *growth: float) -> dict[str, Any]:
        steps = ("2 / 1", "4 / 2", "8 / 4")
        return {
            "what": what,
            "rates": {"1": arm(1), "8": arm(1)},
            "growth": {s: arm(g) for s, g in zip(steps, growth, strict=True)},
        }

    rows = [row("get", 1.9, 1.0, 0.97), row("memcpy", 1.5, 0.9, 1.0)]
    (entry,) = goals.entries({"threads": {"rows": rows}})
    assert (entry["value"], entry["met"], entry["limit"]) == (0.97, True, 0.9)
    rows[0] = row("get", 1.9, 0.9, 1.1)
    (entry,) = goals.entries({"threads": {"rows": rows}})
    assert (entry["value"], entry["met"]) == (0.9, False)


def test_the_scoreboard_has_every_goal() -> None:
    turns = [{"written_to_new": 1.01}, {"written_to_new": 1.2}]
    entries = goals.entries({"chat": {"rows": [{"model": "m", "turns": turns}]}})
    lines = list(scoreboard({"entries": entries, "failed": {"hdd": "OSError: no disk"}}))
    rows = [line for line in lines if line.startswith("| P")]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(IDS)
    assert "**1.2** | ≤ 1.05 | **no** | 1 |" in rows[3]
    assert all("not measured" in row for row in rows if not row.startswith("| P4"))
    assert "`hdd` failed" in lines[-1]
    assert "no disk" in lines[-1]
