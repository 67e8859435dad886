"""Tables of the suites on policies: the parts of docs/policies.md that are figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bench.eviction import OURS
from bench.report_text import Lines, goal, met, size, table
from kvtier.replay import belady

Figures = Mapping[str, Any]


def goals(entries: Iterable[Mapping[str, Any]]) -> Lines:
    yield from table(
        ["", "figure", "worst arm", "median of the arms", "goal", "met", "command"],
        (
            [
                e["id"],
                e["what"],
                f"**{_number(e['value'])}**",
                _number(e["median"]),
                goal(e),
                met(e),
                f"`python -m bench {e['suite']}`",
            ]
            for e in entries
        ),
    )


def eviction(figures: Figures) -> Lines:
    for trace in figures["traces"]:
        yield (
            f"{_code(trace['name'])}: {trace['requests']:,} requests, {trace['references']:,} blocks, "
            f"{trace['unique_blocks']:,} of them different, reuse {trace['reuse']:.1%}:"
        )
        yield ""
        shares = figures["capacities"]
        parts = ("hit ratio", "recompute time missed", "of the gap")
        yield from table(
            ["policy", "hints", *(f"{part} at {shares[0]}, {', '.join(shares[1:])}" for part in parts), "CPU"],
            ([s["policy"], s["hints"], *_outcome(s)] for s in trace["series"]),
        )
        yield ""
    yield f"*CPU*: time in the policy, of leaf-lru's, least and most of the cells. *{belady.NAME}* is the bound."


def _outcome(series: Mapping[str, Any]) -> list[str]:
    hits = " ".join(f"{v:.3f}".removeprefix("0") for v in series["hit_ratio"])
    missed = " ".join(f"{100 * v:.1f}" for v in series["recompute_missed"]) + " %"
    if "of_gap" not in series:
        return [hits, missed, "", ""]
    gap = " ".join("-" if v is None else f"{v:.2f}" for v in series["of_gap"])
    cpu = f"{min(series['of_lru_cpu']):.1f} - {max(series['of_lru_cpu']):.1f}"
    return [hits, missed, f"**{gap}**" if series["policy"] == OURS else gap, cpu]


def footprint(figures: Figures) -> Lines:
    yield "Bytes of index a block, with keys of 32 bytes:"
    yield ""
    yield from table(
        ["blocks", "written", "entries alone", "in use", "`blocks`", "`contents`", "file", "goal"],
        (
            [
                f"{row['blocks']:,}",
                row["way"],
                f"{row['entries']:.0f}",
                f"**{row['live']:.0f}**",
                *(f"{row['tables'][name]['live']:.0f}" for name in ("blocks", "contents")),
                f"**{row['file']:.0f}**",
                "≤ 200",
            ]
            for row in figures["index"]
        ),
    )
    yield from ("", "Bytes of memory a block:", "")
    names = list(figures["memory"][0]["policies"])
    yield from table(
        ["blocks", "store", *names, "goal"],
        (
            [
                f"{row['blocks']:,}",
                f"**{row['store']:.0f}**",
                *(f"{row['policies'][name]:.0f}" for name in names),
                "≤ 64",
            ]
            for row in figures["memory"]
        ),
    )


def churn(figures: Figures) -> Lines:
    yield f"A tier of {size(figures['bytes_max'])}:"
    yield ""
    keys = ("written_to_admitted", "disk_to_live", "live_to_cap")
    yield from table(
        ["blocks go by, file system, `compaction`", "written / admitted", "disk / live", "live / cap"],
        ([name, *(f"{arm[key]:.2f}" for key in keys)] for name, arm in figures["arms"].items()),
    )


def hdd(figures: Figures) -> Lines:
    arms = ("restore", "sequential", "unaided")
    yield from table(
        ["disk", "the tier is", *arms, "of sequential", "of unaided", "goal"],
        (
            [
                row["disk"],
                row["place"],
                *(_reads(row[arm]) for arm in arms),
                f"**{row['of_sequential']:.2f}**",
                f"**{row['of_unaided']:.2f}**",
                f"≥ {figures['goal']}",
            ]
            for row in figures["rows"]
        ),
    )
    if figures["no_throttle"]:
        yield from ("", f"Not measured on a throttled disk: {figures['no_throttle']}.")


def _reads(arm: Figures) -> str:
    seeks = f", {arm['seeks']} seeks" if "seeks" in arm else ""
    return f"{arm['s']['median']:.2f} s, {arm['reads']} reads{seeks}, {size(arm['bytes'])}"


def prefetch(figures: Figures) -> Lines:
    queued = figures["queued"]
    yield (
        f"Requests that are known ahead, chains of {size(queued['chain_bytes'])}, "
        f"which the disk reads in {queued['read_s'] * 1000:.0f} ms:"
    )
    yield ""
    hidden, wasted = f"≥ {figures['goal_hidden']}", f"≤ {figures['goal_wasted']}"
    yield from table(
        ["known ahead by", "wait", "hidden", "goal", "wasted / useful", "goal"],
        (
            [
                f"{row['ahead']:g} of that",
                f"{row['wait_s']['median'] * 1000:.1f} ms",
                f"**{row['hidden']:.2f}**",
                hidden,
                f"**{row['wasted']:.2f}**",
                wasted,
            ]
            for row in queued["rows"]
        ),
    )
    yield from ("", "The next turn, simulated:", "")
    yield from table(
        ["workload", "RAM", "policy", "hidden", "wasted / useful", "goal", "blocks used"],
        (
            [
                _code(row["workload"]),
                f"{row['ram_bytes'] / 2**30:.0f} GiB",
                row["policy"],
                f"{row['hidden']:.2f}",
                f"**{row['wasted']:.2f}**",
                wasted,
                f"{row['useful_blocks']:,}",
            ]
            for row in figures["next_turn"]
        ),
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def _code(name: str) -> str:
    return f"`{name}`"
