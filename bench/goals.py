"""The figures that have a goal, each with what it was found to be: made of the figures of the suites.

An entry's ``value`` is that of its worst arm, and is what the goal is held against; ``arms`` are all of them, and
``limit`` is the best that any implementation could reach, where that is known; :mod:`bench.entry` has the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import hypot, sqrt
from statistics import mean, stdev

from bench import goals_llama, goals_store
from bench.entry import Arms, Entry, Figures, at_least, at_most, ratio_noise, uncertainty
from bench.eviction import OURS
from bench.peers.compared import comparisons


def entries(figures: Figures) -> list[Entry]:
    """Of all suites that were run, in the order of their ids."""
    found = [entry for suite, make in _MAKERS.items() if suite in figures for entry in make(figures[suite])]
    return sorted(found, key=lambda entry: int(entry["id"][1:]))


# -- one function a suite on policies -------------------------------------------------------------------------


def _hdd(figures: Figures) -> Iterator[Entry]:
    for disk in dict.fromkeys(row["disk"] for row in figures["rows"]):
        rows = [row for row in figures["rows"] if row["disk"] == disk]
        arms = {f"{row['place']}, {arm}": row[f"of_{arm}"] for row in rows for arm in ("sequential", "unaided")}
        what = f"restore after churn / sequential, {disk} disk"
        pairs = [(row["restore"]["s"], row[arm]["s"]) for row in rows for arm in ("sequential", "unaided")]
        yield at_least("P5", "hdd", what, arms, figures["goal"], 1.0, noise=ratio_noise(*pairs))


def _eviction(figures: Figures) -> Iterator[Entry]:
    def cells(what: str, *hints: str, talks: bool = False) -> Arms:
        """Of our policy; a trace at a capacity is an arm."""
        return {
            f"{trace['name']}, {share}, hints {series['hints']}": value
            for trace in figures["traces"]
            if not (talks and trace["name"].startswith("generate:documents"))
            for series in trace["series"]
            if series["policy"] == OURS and series["hints"] in hints
            for share, value in zip(figures["capacities"], series[what], strict=True)
            if value is not None
        }

    for hints, goal in (("none", 0.25), ("full", 0.5)):
        what = f"gap to the bound closed, hints: {hints}"
        yield at_least("P6", "eviction", what, cells("of_gap", hints, talks=True), goal, 1.0)
    every = ("none", "sessions", "full")
    yield at_least("P6", "eviction", "hits / leaf-LRU's", cells("of_lru_hits", *every), 0.99, None)
    recompute = {arm: value for arm, value in cells("of_bound_recompute", "full").items() if ", 5%," in arm}
    yield at_most("P6", "eviction", "recompute time missed / the bound's, at 5 %, hints: full", recompute, 1.15, None)
    cpu = {
        trace["name"]: [v for s in trace["series"] if s["policy"] == OURS for v in s["of_lru_cpu"]]
        for trace in figures["traces"]
    }
    yield at_most(
        "P6",
        "eviction",
        "CPU time / leaf-LRU's, mean of a trace's cells",
        {name: mean(ratios) for name, ratios in cpu.items()},
        3.4,
        None,
        noise=_error_of_mean(max(cpu.values(), key=mean)),  # cells are timed once each
    )


def _error_of_mean(values: Sequence[float]) -> float:
    """As a share of it."""
    return stdev(values) / sqrt(len(values)) / mean(values) if len(values) > 1 else 0.0


def _churn(figures: Figures) -> Iterator[Entry]:
    for key, what, goal in (
        ("written_to_admitted", "bytes written / admitted", 1.10),
        ("disk_to_live", "space / live bytes", 1.15),
    ):
        arms = {name: arm[key] for name, arm in figures["arms"].items()}
        yield at_most("P7", "churn", what, arms, goal, 1.0)


def _footprint(figures: Figures) -> Iterator[Entry]:
    for key, what in (("live", "in use"), ("file", "in the file, free pages included")):
        arms = {f"{row['blocks']:,} blocks, {row['way']}": row[key] for row in figures["index"]}
        entries_alone = min(row["entries"] for row in figures["index"])
        yield at_most("P9", "footprint", f"bytes of index a block, {what}", arms, 200, entries_alone)
    policies = {
        f"{name}, {row['blocks']:,} blocks": nbytes
        for row in figures["memory"]
        for name, nbytes in row["policies"].items()
    }
    yield at_most("P9", "footprint", "bytes of memory a block, of a policy", policies, 64, None)
    stores = {f"{row['blocks']:,} blocks": row["store"] for row in figures["memory"]}
    yield at_most("P9", "footprint", "bytes of memory a block, of a store", stores, 64, None)


def _prefetch(figures: Figures) -> Iterator[Entry]:
    rows = figures["queued"]["rows"]
    hidden = {f"known {row['ahead']:g} times as long before": row["hidden"] for row in rows if row["ahead"] > 1}
    yield at_least(
        "P10",
        "prefetch",
        "wait hidden, of requests known 1.5 times the disk's time before, or longer",
        hidden,
        figures["goal_hidden"],
        1.0,
        noise=max((_hidden_noise(row, rows[0]) for row in rows if row["ahead"] > 1), default=0.0),
    )
    queued = {f"known {row['ahead']:g} times as long before": row["wasted"] for row in rows if row["ahead"]}
    yield at_most("P10", "prefetch", "wasted / useful, of queued requests", queued, figures["goal_wasted"], 0.0)
    turns = {
        f"{row['workload']}, {row['ram_bytes'] / 2**30:.0f} GiB, {row['policy']}": row["wasted"]
        for row in figures["next_turn"]
    }
    yield at_most("P10", "prefetch", "wasted / useful, of next turns", turns, figures["goal_wasted"], 0.0)


def _hidden_noise(row: Figures, unaided: Figures) -> float:
    """How far the share of a wait that is hidden is uncertain: by the wait that is left, as a share of the whole."""
    hidden = float(row["hidden"])
    return abs((1 - hidden) / hidden) * hypot(uncertainty(row["wait_s"]), uncertainty(unaided["wait_s"]))


def _peers(figures: Figures) -> Iterator[Entry]:
    for compared in comparisons(figures):
        what, goal = f"{compared.what}, kvtier / a peer", 1.0 if compared.has_goal else None
        more = {"noise": compared.noise, "beaten_by": compared.beaten_by}
        yield at_least("P11", "peers", what, compared.arms, goal, compared.limit, **more)


_MAKERS: dict[str, Callable[[Figures], Iterator[Entry]]] = {
    "hdd": _hdd,
    "eviction": _eviction,
    "churn": _churn,
    "footprint": _footprint,
    "prefetch": _prefetch,
    "peers": _peers,
    **goals_store.MAKERS,
    **goals_llama.MAKERS,
}
