"""Plots of the suites, one SVG and one PNG each, from their figures; here those of the suites on policies. Needs
matplotlib, of the extra ``plots``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import plots_io
from bench.eviction import OURS
from kvtier.replay.plots import curve

TITLES = {
    "eviction": "Hit ratio against capacity, by trace",
    "footprint": "Bytes a block, on disk and in memory",
    "churn": "Bytes written and kept under churn",
    "hdd": "Restores from a hard disk, of sequential reading",
    "prefetch": "Wait that prefetching hides",
    "peers": "Blocks of 2 MiB stored and loaded",
    **plots_io.TITLES,
}
Figures = Mapping[str, Any]
_IMAGES: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kvtier",
}  # text as text, and the same file for the same figures


def draw(figures: Figures, folder: Path) -> list[Path]:
    """Two files for each suite that has a plot; none at all without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    files = []
    for name, make in _MAKERS.items():
        if name in figures:
            figure = Figure(layout="constrained")
            make(figure, figures[name])
            figure.suptitle(TITLES[name])
            with rc_context(_IMAGES):
                for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
                    files.append(folder / f"{name}.{kind}")
                    figure.savefig(files[-1], metadata=metadata)
    return files


def _eviction(figure: Any, figures: Figures) -> None:
    traces = figures["traces"]
    columns = min(3, len(traces))
    rows = -(-len(traces) // columns)
    figure.set_size_inches(5 * columns, 4 * rows)
    for number, trace in enumerate(traces, 1):
        title = trace["name"].removeprefix("generate:")
        axes = figure.add_subplot(rows, columns, number, title=title, ylim=(0, 1))
        axes.set(xscale="log", ylabel="hit ratio (prefix-correct)")
        axes.set_xlabel(f"capacity, of {trace['unique_blocks']:,} different blocks")
        axes.set_xticks(trace["capacity_blocks"], figures["capacities"])
        axes.minorticks_off()
        for series in trace["series"]:
            policy = series["policy"]
            label = f"{policy}, hints: {series['hints']}" if policy == OURS else policy
            curve(axes, policy, list(zip(trace["capacity_blocks"], series["hit_ratio"], strict=True)), label)
        axes.grid(visible=True, alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)


def _footprint(figure: Any, figures: Figures) -> None:
    figure.set_size_inches(12, 4)
    rows = figures["index"]
    index = {what: [row[key] for row in rows] for what, key in _INDEX.items()}
    _bars(figure.add_subplot(1, 2, 1), [f"{r['blocks']:,}, {r['way']}" for r in rows], index, "bytes of index", 200)
    memory = {f"{r['blocks']:,} blocks": [r["store"], *r["policies"].values()] for r in figures["memory"]}
    names = ["store", *figures["memory"][0]["policies"]]
    _bars(figure.add_subplot(1, 2, 2), names, memory, "bytes of memory", 64)


_INDEX = {"entries alone": "entries", "in use": "live", "file": "file"}


def _churn(figure: Any, figures: Figures) -> None:
    figure.set_size_inches(8, 4)
    arms = figures["arms"]
    keys = {"written / admitted (goal 1.10)": "written_to_admitted", "disk / live (goal 1.15)": "disk_to_live"}
    bars = {label: [arm[key] for arm in arms.values()] for label, key in keys.items()}
    axes = figure.add_subplot()
    _bars(axes, list(arms), bars, "ratio", 1.10)
    axes.axhline(1.15, color="black", linestyle=":")
    axes.set_ylim(0.9)


def _hdd(figure: Any, figures: Figures) -> None:
    figure.set_size_inches(8, 4)
    rows = figures["rows"]
    bars = {f"of {arm}": [row[f"of_{arm}"] for row in rows] for arm in ("sequential", "unaided")}
    names = [f"{row['disk']}, {row['place']}" for row in rows]
    _bars(figure.add_subplot(), names, bars, "speed of a restore", figures["goal"])


def _prefetch(figure: Any, figures: Figures) -> None:
    figure.set_size_inches(7, 4)
    rows = figures["queued"]["rows"]
    axes = figure.add_subplot(
        xlabel="known ahead, of the time that the disk needs", ylabel="wait hidden", ylim=(0, 1.05)
    )
    axes.plot([row["ahead"] for row in rows], [row["hidden"] for row in rows], marker="o")
    axes.axhline(figures["goal_hidden"], color="black", linestyle="--", label="goal")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()


def _peers(figure: Any, figures: Figures) -> None:
    figure.set_size_inches(12, 9)
    kinds = {"ours": "tab:blue", "peer": "tab:gray", "limit": "lightgray"}
    for number, (key, title) in enumerate(_PEERS.items(), 1):
        rows = [row for row in figures["rows"] if row[key]]
        axes = figure.add_subplot(2, 2, number, title=title, xlabel="GB/s")
        names = [row["name"].replace("`", "") for row in rows]
        colours = [kinds[row["kind"]] for row in rows]
        axes.barh(names, [row[key]["median"] / 1e9 for row in rows], color=colours)
        axes.invert_yaxis()
        axes.grid(visible=True, axis="x", alpha=0.3)


_PEERS = {
    "acknowledged": "store, until acknowledged",
    "durable": "store, until durable",
    "warm": "load, from the page cache",
    "cold": "load, from the disk",
}


def _bars(axes: Any, names: list[str], bars: Mapping[str, list[float]], label: str, goal: float) -> None:
    """Groups of bars, one group for each name, and a line at the goal."""
    width = 0.8 / len(bars)
    for number, (what, heights) in enumerate(bars.items()):
        axes.bar([at + number * width for at in range(len(names))], heights, width, label=what)
    axes.set_xticks(
        [at + 0.4 - width / 2 for at in range(len(names))], names, rotation=30, ha="right", fontsize="small"
    )
    axes.axhline(goal, color="black", linestyle="--", label=f"goal: {goal:g}")
    axes.set_ylabel(label)
    axes.legend(fontsize="small", loc="lower right")


_MAKERS: dict[str, Callable[[Any, Figures], None]] = {
    "eviction": _eviction,
    "footprint": _footprint,
    "churn": _churn,
    "hdd": _hdd,
    "prefetch": _prefetch,
    "peers": _peers,
    **plots_io.MAKERS,
}
