"""Blocks of 2 MiB stored and loaded by kvtier and by what a user would take instead, in turns, beside the limits."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from bench.measure import spread
from bench.peers import lmcache
from bench.peers.fio import fio
from bench.peers.fleet import Fleet, Left
from bench.peers.peer import Facts, Load
from bench.peers.registry import ENTRIES
from bench.workloads import MIB

BLOCK_BYTES = 2 * MIB
_FIO_BYTES = 256 * MIB
_FIO_FACTS = Facts("a power loss", durable=True, checks=False, restarts=False, bounded=False, keeps="nothing")
_QUICK_ADAPTERS = (lmcache.OURS, "fs_native")

#: Bytes a second by name, then by what was measured; a peer that left has those up to then.
Samples = dict[str, dict[str, list[float]]]
MEASURED = ("acknowledged", "durable", *get_args(Load))


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Bytes a second of 32 blocks (quick: 16), one row a peer, or the reason why there are none."""
    count, repeats = (16, 2) if quick else (32, 7)
    means: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch:
        say(f"starting {len(ENTRIES)} processes")
        with Fleet(list(ENTRIES), Path(scratch), count, BLOCK_BYTES) as fleet:
            samples: Samples = {name: {what: [] for what in MEASURED} for name in ENTRIES}
            _stores(fleet, samples, repeats, count * BLOCK_BYTES, say)
            for how in get_args(Load):
                _loads(fleet, samples, how, repeats, count * BLOCK_BYTES, means, say)
            rows = [_row(fleet, name, samples[name]) for name in ENTRIES]
        rows.append(_fio_row(Path(scratch), repeats, say))
    adapters = _QUICK_ADAPTERS if quick else tuple(lmcache.ADAPTERS)
    return {
        "block_bytes": BLOCK_BYTES,
        "blocks": count,
        "page_cache": ", ".join(sorted(means)) or "none",
        "rows": rows,
        "lmcache": lmcache.measure(adapters, count, BLOCK_BYTES, 1 if quick else 5, say),
    }


def _stores(fleet: Fleet, samples: Samples, repeats: int, nbytes: int, say: Callable[[str], None]) -> None:
    """A batch of new blocks each, in turns; the first turn is to warm up."""
    for batch in range(repeats + 1):
        say(f"store, {batch} of {repeats}")
        for name in ENTRIES:
            try:
                seconds = fleet.store(name, batch)
            except Left:
                continue
            for what, s in seconds.items():
                if batch and not ENTRIES[name].loads_only:
                    samples[name][what].append(nbytes / s)


def _loads(
    fleet: Fleet,
    samples: Samples,
    how: Load,
    repeats: int,
    nbytes: int,
    means: set[str],
    say: Callable[[str], None],
) -> None:
    """The last batch, by peers that are opened anew, in turns; the first turn is to warm up."""
    for turn in range(repeats + 1):
        say(f"load, {how}, {turn} of {repeats}")
        for name, entry in ENTRIES.items():
            if entry.in_memory and how == "cold":
                continue
            try:
                answer = fleet.load(name, repeats, how)
            except Left:
                continue
            if turn:
                samples[name][how].append(nbytes / answer["s"])
            if answer["page_cache"]:
                means.add(answer["page_cache"])


def _row(fleet: Fleet, name: str, samples: dict[str, list[float]]) -> dict[str, Any]:
    child = fleet.children[name]
    rates = {what: spread(rates) if rates else None for what, rates in samples.items()}
    return {
        "name": name,
        "kind": ENTRIES[name].kind,
        "facts": child.facts or None,
        "missing": child.missing,
        **rates,
    }


def _fio_row(scratch: Path, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    say("fio")
    samples: dict[str, list[float]] = {what: [] for what in MEASURED}
    missing = None
    try:
        for _ in range(repeats):
            samples["durable"].append(fio(scratch, _FIO_BYTES, "write"))
            samples["cold"].append(fio(scratch, _FIO_BYTES, "read"))
    except Left as e:
        missing = str(e)
    rates = {what: spread(rates) if rates else None for what, rates in samples.items()}
    return {"name": "fio, `O_DIRECT`", "kind": "limit", "facts": asdict(_FIO_FACTS), "missing": missing, **rates}
