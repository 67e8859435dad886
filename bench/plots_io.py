"""Plots of the suites on reading and writing, and on llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Figures = Mapping[str, Any]
_TTFT = {
    "cold": "no cache",
    "disk_cache": "LlamaDiskCache",
    "ram_cache": "LlamaRAMCache",
    "raw": "raw state file",
    "kvtier_hdd": "kvtier, hard disk (model)",
    "kvtier": "kvtier, SSD",
    "kvtier_ram": "kvtier, RAM",
    "limit": "limit",
}


def warm_ttft(figure: Any, figures: Figures) -> None:
    rows = figures["rows"]
    figure.set_size_inches(10, 4.5)
    axes = figure.add_subplot(yscale="log", ylabel="seconds to the first token")
    arms = [arm for arm in _TTFT if any(arm in row["ttft_s"] for row in rows)]
    width = 0.85 / len(arms)
    for number, arm in enumerate(arms):
        there = [(at, row["ttft_s"][arm]["median"]) for at, row in enumerate(rows) if arm in row["ttft_s"]]
        axes.bar([at + number * width for at, _ in there], [took for _, took in there], width, label=_TTFT[arm])
    names = [f"{row['model']}\n{row['tokens']:,} tokens" for row in rows]
    axes.set_xticks([at + 0.42 - width / 2 for at in range(len(rows))], names, fontsize="small")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")


def chat(figure: Any, figures: Figures) -> None:
    rows = figures["rows"]
    figure.set_size_inches(10, 4)
    written = figure.add_subplot(1, 2, 1, xlabel="turn", ylabel="bytes written / new K and V")
    stall = figure.add_subplot(1, 2, 2, xlabel="turn", ylabel="ms in captures", yscale="log")
    for row in rows:
        turns = range(1, len(row["turns"]) + 1)
        written.plot(turns, [turn["written_to_new"] for turn in row["turns"]], marker=".", label=row["model"])
        stall.plot(turns, [turn["stall_s"] * 1e3 for turn in row["turns"]], marker=".", label=row["model"])
    written.axhline(1.05, color="black", linestyle="--", label="goal")
    for axes in (written, stall):
        axes.legend(fontsize="small")


def block_io(figure: Any, figures: Figures) -> None:
    """Rates against the size of blocks, of what reads or writes a disk: one block at a time, and many."""
    figure.set_size_inches(12, 5)
    for place, title in enumerate(("one block", "many blocks"), 1):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in figures["rows"]:
            if _PANELS.get(row["operation"]) == title:
                name = f"{row['operation']} {row['arm']}".strip()
                lines.setdefault(name, []).append((row["block_bytes"], row["bytes"] / row["call_s"]["median"]))
        axes = figure.add_subplot(1, 2, place, xscale="log", yscale="log", title=title, xlabel="bytes of a block")
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set_ylabel("bytes a second")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="x-small")


_PANELS = {
    **dict.fromkeys(("put", "put give", "from ssd", "from cold ssd", "from hdd"), "one block"),
    **dict.fromkeys(("put and flush", "get many", "prefetch", "compact"), "many blocks"),
}


def threads(figure: Any, figures: Figures) -> None:
    figure.set_size_inches(8, 4.5)
    axes = figure.add_subplot(xscale="log", xlabel="threads", ylabel="rate / that of one thread")
    for row in figures["rows"]:
        rates = {int(n): rate["median"] for n, rate in row["rates"].items()}
        axes.plot(list(rates), [rate / rates[1] for rate in rates.values()], marker="o", label=row["what"])
    axes.set_xticks(list(rates), [str(n) for n in rates])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")


def index_entries(figure: Any, figures: Figures) -> None:
    figure.set_size_inches(7, 4)
    rows = figures["rows"]
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="blocks in the store", ylabel="seconds")
    blocks = [row["blocks"] for row in rows]
    for what in rows[0]["call_s"]:
        axes.plot(blocks, [row["call_s"][what]["median"] for row in rows], marker="o", label=what)
    axes.plot(blocks, [row["open_s"] for row in rows], marker="o", label="open, cold")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")


def compression(figure: Any, figures: Figures) -> None:
    figure.set_size_inches(7, 4)
    rows, codec = figures["rows"], figures["codec"]
    axes = figure.add_subplot(ylabel="of the bytes as they are")
    bars = {
        "entropy of the byte planes": [row["bound_bytes"] / row["bytes"] for row in rows],
        "stored": [row["stored_bytes"][codec] / row["bytes"] for row in rows],
    }
    for number, (label, heights) in enumerate(bars.items()):
        axes.bar([at + 0.4 * number for at in range(len(rows))], heights, 0.4, label=label)
    axes.set_xticks([at + 0.2 for at in range(len(rows))], [row["model"] for row in rows])
    axes.legend(loc="lower right")


TITLES = {
    "warm_ttft": "Time to first token after a restart",
    "chat": "What a turn writes, and how long it holds up the caller",
    "block_io": "Rates by size of blocks",
    "threads": "Threads that get blocks at the same time",
    "compression": "Lossless compression of K and V",
    "index_entries": "Many blocks in one store",
}
MAKERS: dict[str, Callable[[Any, Figures], None]] = {
    "warm_ttft": warm_ttft,
    "chat": chat,
    "block_io": block_io,
    "threads": threads,
    "compression": compression,
    "index_entries": index_entries,
}
