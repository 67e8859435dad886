"""Tables of the suites on tiers: :mod:`bench.hdd` and :mod:`bench.prefetch`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Lines = Iterator[str]


def hdd(figures: Mapping[str, Any]) -> Lines:
    yield from ("## Restores from a hard disk after churn", "")
    yield "Half of the tier's blocks were replaced. Chains that are there as a whole, against plain files as long:"
    yield ""
    yield "| disk | the tier is | restore | sequential | unaided | of sequential | of unaided | goal |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in figures["rows"]:
        arms = (_arm(row[arm]) for arm in ("restore", "sequential", "unaided"))
        ratios = f"**{row['of_sequential']:.2f}** | **{row['of_unaided']:.2f}** | ≥ {figures['goal']}"
        yield f"| {row['disk']} | {row['place']} | {' | '.join(arms)} | {ratios} |"
    if figures["no_throttle"]:
        yield from ("", f"Not measured on a throttled disk: {figures['no_throttle']}.")


def _arm(arm: Mapping[str, Any]) -> str:
    seeks = f", {arm['seeks']} seeks" if "seeks" in arm else ""
    return f"{arm['s']['median']:.2f} s, {arm['reads']} reads{seeks}, {arm['bytes'] / 1e6:.0f} MB"


def prefetch(figures: Mapping[str, Any]) -> Lines:
    queued = figures["queued"]
    yield from ("## Prefetch", "")
    yield (
        f"Requests that are known ahead, chains of {queued['chain_bytes'] / 1e6:.0f} MB, "
        f"which the disk reads in {queued['read_s'] * 1000:.0f} ms:"
    )
    yield from ("", "| known ahead by | wait | hidden | goal | wasted / useful | goal |", "|---|---|---|---|---|---|")
    goals = figures["goal_hidden"], figures["goal_wasted"]
    for row in queued["rows"]:
        wait = f"{row['wait_s']['median'] * 1000:.1f} ms"
        yield (
            f"| {row['ahead']:g} of that | {wait} | **{row['hidden']:.2f}** | ≥ {goals[0]} "
            f"| **{row['wasted']:.2f}** | ≤ {goals[1]} |"
        )
    yield from ("", "The next turn, simulated:", "")
    yield "| workload | RAM | policy | hidden | wasted / useful | goal | blocks used |"
    yield "|---|---|---|---|---|---|---|"
    for row in figures["next_turn"]:
        name = f"`{row['workload']}` | {row['ram_bytes'] / 2**30:.0f} GiB | {row['policy']}"
        shares = f"{row['hidden']:.2f} | **{row['wasted']:.2f}** | ≤ {goals[1]} | {row['useful_blocks']:,}"
        yield f"| {name} | {shares} |"
