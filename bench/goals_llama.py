"""Entries of the suites that run llama.cpp: P3 and P4."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from bench.entry import Entry, Figures, at_least, at_most, ratio_noise
from bench.report_text import seconds

_PEERS = {"raw": "raw state file", "disk_cache": "LlamaDiskCache", "ram_cache": "LlamaRAMCache"}
_AGAINST = {"kvtier": ("raw", "disk_cache"), "kvtier_ram": ("ram_cache",)}  # each from where it keeps what it has


def _warm_ttft(figures: Figures) -> Iterator[Entry]:
    rows = {f"{row['model']}, {row['tokens']:,} tokens": row["ttft_s"] for row in figures["rows"]}
    for other, goal, what in (
        ("limit", 1.15, "warm TTFT after a restart / sequential read, set and decode"),
        ("raw", 1.0, "warm TTFT after a restart / llama_state_seq_load_file"),
    ):
        pairs = {name: (times["kvtier"], times[other]) for name, times in rows.items() if other in times}
        if pairs:
            yield at_most(
                "P3",
                "warm_ttft",
                what,
                {name: ours["median"] / theirs["median"] for name, (ours, theirs) in pairs.items()},
                goal,
                1.0 if other == "limit" else None,
                measured=_range([theirs["median"] for _, theirs in pairs.values()]),
                noise=ratio_noise(*pairs.values()),
                beaten_by=[] if other == "limit" else list(_faster(rows)),
            )
    saves = {f"{row['model']}, {row['tokens']:,} tokens": row.get("save_s", {}) for row in figures["rows"]}
    saved = {name: took["kvtier"] / took["raw"] for name, took in saves.items() if took.get("raw")}
    if saved:
        what = "saving a prompt until it is durable / llama_state_seq_save_file, which syncs nothing"
        yield at_most("P3", "warm_ttft", what, saved, None, None, beaten_by=_beaten("raw", saved.values()))


def _range(took: list[float]) -> str:
    return f"{seconds(min(took))} to {seconds(max(took))}"


def _faster(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Peers that gave the first token sooner, and how often."""
    for ours, peers in _AGAINST.items():
        for peer in peers:
            pairs = [(times[ours], times[peer]) for times in rows.values() if ours in times and peer in times]
            ratios = [mine["median"] / theirs["median"] for mine, theirs in pairs]
            yield from _beaten(peer, ratios)


def _beaten(peer: str, ratios: Collection[float]) -> list[str]:
    """What it says of a peer that did better, if it did: ratios of our time and its."""
    better = sum(ratio > 1 for ratio in ratios)
    return [f"{_PEERS[peer]}: {better} of {len(ratios)}, up to {max(ratios):.2f} times"] if better else []


def _chat(figures: Figures) -> Iterator[Entry]:
    turns = {f"{row['model']}, turn {n}": t for row in figures["rows"] for n, t in enumerate(row["turns"], 1)}
    what = "bytes written in a turn, window checkpoints and index apart / its new K and V"
    yield at_most("P4", "chat", what, {name: turn["written_to_new"] for name, turn in turns.items()}, 1.05, 1.0)
    whole = {
        name: turn["kernel_bytes_written"] / turn["bytes_new_kv"]
        for name, turn in turns.items()
        if turn["kernel_bytes_written"] is not None
    }
    if whole:
        what = "all bytes written in a turn, as the kernel counts them / its new K and V"
        yield at_most("P4", "chat", what, whole, 1.05, None)


def _stall(figures: Figures) -> Iterator[Entry]:
    rows = figures["rows"]
    worst = max(rows, key=lambda row: row["capture_to_memcpy"])
    yield at_most(
        "P4",
        "stall",
        "what a capture holds up the caller / memcpy of its bytes",
        {f"{row['model']}, {row['turn_tokens']:,} tokens": row["capture_to_memcpy"] for row in rows},
        1.5,
        worst["engine_s"]["median"] / worst["memcpy_s"]["median"],
        measured=f"llama.cpp alone: {seconds(worst['engine_s']['median'])}",
        noise=ratio_noise(*((row["capture_s"], row["memcpy_s"]) for row in rows)),
    )


def _decode(figures: Figures) -> Iterator[Entry]:
    cells = {
        f"{row['model']}, from the {counted.removeprefix('after_')} token": row[counted]
        for row in figures["rows"]
        for counted in ("after_first", "after_second")
    }
    yield at_least(
        "P4",
        "decode",
        "decode rate, saving on / off",
        {name: cell["on_to_off"] for name, cell in cells.items()},
        0.99,
        1.0,
        noise=ratio_noise(*((cell["on"], cell["off"]) for cell in cells.values())),
    )


MAKERS: dict[str, Callable[[Figures], Iterator[Entry]]] = {
    "warm_ttft": _warm_ttft,
    "chat": _chat,
    "stall": _stall,
    "decode": _decode,
}
