"""Entries of the suites on the store and on llama.cpp, made of small figures."""

from __future__ import annotations

from typing import Any

import pytest

from bench import goals
from bench.scoreboard import IDS, scoreboard
from bench.unmeasured import SUITES, unmeasured


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


def test_a_peer_that_saves_sooner_is_named_and_no_goal() -> None:
    row = {**ttft(kvtier=1.0, limit=1.0), "save_s": {"kvtier": 0.6, "raw": 0.2, "disk_cache": 1.0}}
    *_, saved = goals.entries({"warm_ttft": {"rows": [row]}})
    assert (saved["value"], saved["goal"], saved["met"]) == (pytest.approx(3.0), None, None)
    assert saved["beaten_by"] == ["raw state file: 1 of 1, up to 3.00 times"]


def test_a_restore_is_held_against_fio_where_there_is_one() -> None:
    ram = {"memcpy": arm(1.0), "get_into": arm(1.25), "memcpy_to_get_into": 0.8}
    cold = {"get_into": arm(96), "get_many_once": arm(98), "preadv_reused": arm(200)}
    figures = {"block_bytes": 1 << 21, "ram": {**ram, "get_copies_bytes": {"RAM": 900}}, "read_cold": cold}
    by_hand, rate, copies = goals.entries({"storage": figures})
    assert (by_hand["value"], by_hand["met"]) == (0.48, False)
    assert (rate["value"], rate["met"], copies["value"], copies["met"]) == (0.8, True, 900, True)
    fio, *_ = goals.entries({"storage": {**figures, "read_cold": {**cold, "fio": arm(100)}}})
    assert (fio["value"], fio["met"]) == (0.96, True)
    figures["ram"] = {**ram, "get_copies_bytes": {"RAM": 900, "the write queue": 0.99 * (1 << 21)}}
    assert [e["met"] for e in goals.entries({"storage": figures})] == [False, True, False]


def threads(*rows: tuple[str, list[dict[str, float]]]) -> dict[str, Any]:
    counts = ("1", "2", "4", "8")
    found = [{"what": what, "rates": dict(zip(counts, rates, strict=True))} for what, rates in rows]
    return {"threads": {"rows": found}}


MEMCPY = "memcpy", [arm(1), arm(2), arm(2), arm(2)]


def test_each_number_of_threads_is_held_against_the_best_of_fewer() -> None:
    (entry,) = goals.entries(threads(("get", [arm(10), arm(19), arm(18.5), arm(18.8)]), MEMCPY))
    assert entry["arms"] == {"get, 2 threads": 1.9, "get, 4 threads": 18.5 / 19, "get, 8 threads": 18.8 / 19}
    assert (entry["met"], entry["goal"], entry["limit"]) == (False, 1.0, None)
    (entry,) = goals.entries(threads(("get", [arm(10), arm(10), arm(11), arm(12)]), MEMCPY))
    assert (entry["value"], entry["met"]) == (1.0, True)


def test_a_fall_within_the_spread_of_its_own_runs_is_none() -> None:
    wide = {"median": 18.5, "min": 17.0, "max": 20.0, "runs": 4}  # 4 % uncertain
    (entry,) = goals.entries(threads(("get", [arm(10), arm(19), wide, arm(19)]), MEMCPY))
    assert (entry["value"], entry["met"]) == (18.5 / 19, True)
    assert "| ≥ 1 | yes, within noise |" in "".join(scoreboard({"entries": [entry], "figures": {}}))
    other = "get_into", [arm(10), arm(19), arm(18.5), arm(19)]  # whose runs do not spread
    (entry,) = goals.entries(threads(("get", [arm(10), arm(19), wide, arm(19)]), other, MEMCPY))
    assert not entry["met"]


def many(*sizes: int) -> dict[str, Any]:
    return {"index_entries": {"rows": [{"blocks": n, "call_s": {"get": arm(1.0 + i)}} for i, n in enumerate(sizes)]}}


def test_a_get_among_many_needs_the_largest_store() -> None:
    (entry,) = goals.entries(many(10_000, 1_000_000, 10_000_000))
    assert (entry["value"], entry["met"]) == (3.0, True)
    assert goals.entries(many(10_000, 1_000_000)) == []


def test_all_that_a_turn_writes_is_shown_beside_its_rows() -> None:
    turn = {"written_to_new": 1.01, "bytes_new_kv": 100, "kernel_bytes_written": 600}
    rows, whole = goals.entries({"chat": {"rows": [{"model": "m", "turns": [turn]}]}})
    assert (rows["value"], rows["met"]) == (1.01, True)
    assert (whole["value"], whole["met"]) == (6.0, False)
    unknown = {**turn, "kernel_bytes_written": None}
    assert len(goals.entries({"chat": {"rows": [{"model": "m", "turns": [unknown]}]}})) == 1


def test_what_is_timed_is_uncertain() -> None:
    wide = {"median": 2.0, "min": 1.8, "max": 2.2, "runs": 4}
    of_disk = {"restore": {"s": wide}, "sequential": {"s": arm(2.0)}, "unaided": {"s": arm(2.0)}}
    disk = {"disk": "throttled", "place": "alone", **of_disk, "of_sequential": 1.0, "of_unaided": 1.0}
    (entry,) = goals.entries({"hdd": {"rows": [disk], "goal": 0.8}})
    assert entry["noise"] == pytest.approx(0.05)
    queued = [
        {"ahead": 0.0, "wait_s": {**wide, "min": 2.0, "max": 2.0}, "hidden": 0.0, "wasted": 0.0},
        {"ahead": 2.0, "wait_s": wide, "hidden": 0.9, "wasted": 0.0},
    ]
    next_turn = [{"workload": "w", "ram_bytes": 1 << 30, "policy": "p", "wasted": 0.1}]
    figures = {"queued": {"rows": queued}, "next_turn": next_turn, "goal_hidden": 0.9, "goal_wasted": 0.2}
    hidden, *counted = goals.entries({"prefetch": figures})
    assert hidden["noise"] == pytest.approx(0.05 / 9)
    assert not any("noise" in entry for entry in counted)


def test_the_scoreboard_has_every_goal() -> None:
    turns = [{"written_to_new": ratio, "kernel_bytes_written": None} for ratio in (1.01, 1.2)]
    figures = {"chat": {"rows": [{"model": "m", "turns": turns}]}}
    failed = {"hdd": "OSError: no disk"}
    lines = list(scoreboard({"entries": goals.entries(figures), "figures": figures, "failed": failed}))
    rows = [line for line in lines if line.startswith("| P")]
    assert list(dict.fromkeys(row.split(" | ")[0].removeprefix("| ") for row in rows)) == list(IDS)
    assert "**1.2** | ≤ 1.05 | **no** | 1 |" in rows[3]
    assert all("not measured" in row for row in rows if "`chat`" not in row)
    assert "| P12 | not measured: the suite was not run |  |  |  |  |  |  | `threads` |" in rows
    assert "| P5 | not measured: the suite failed: OSError: no disk |  |  |  |  |  |  | `hdd` |" in rows
    assert "`hdd` failed" in lines[-1]


def test_what_a_suite_left_out_is_not_measured() -> None:
    peers = {
        "rows": [{"name": "kvtier", "missing": None}, {"name": "diskcache", "missing": "not installed"}],
        "lmcache": {"missing": "no environment", "rows": []},
    }
    index = {"rows": [{"blocks": 1_000_000}], "left_out": {"10,000,000 blocks": "too little disk"}}
    figures = {"peers": peers, "index_entries": index, "hdd": {"no_throttle": "no root"}}
    found = [left for left in unmeasured({"figures": figures}) if left.what]
    assert [(left.id, left.what, left.reason) for left in found] == [
        ("P5", "restore after churn / sequential, throttled disk", "no root"),
        (
            "P9",
            "get from a store of up to 10,000,000 blocks",
            "10,000,000 blocks: too little disk; the largest had 1,000,000",
        ),
        ("P11", "diskcache", "not installed"),
        ("P11", "LMCache", "no environment"),
    ]


def test_every_suite_with_a_goal_is_missed() -> None:
    assert {suite for suites in SUITES.values() for suite in suites} == set(goals._MAKERS)
