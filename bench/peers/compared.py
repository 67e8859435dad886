"""kvtier held against the peers: only against those that do the same, and each that is faster by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bench.peers import lmcache, registry

#: Key of a row, and in words what kvtier's rate of it is divided by the others'.
_STORES_AND_LOADS = {
    "durable": "store until durable",
    "acknowledged": "store until acknowledged (what it survives then differs)",
    "warm": "load from the page cache",
    "cold": "load from the disk",
}
_LMCACHE = {
    "store": "LMCache: store",
    "warm": "LMCache: load from the page cache",
    "cold": "LMCache: load from the disk",
}


class Comparison(NamedTuple):
    """``arms``: kvtier's rate divided by each peer's. ``limit``: the fastest limit divided by the fastest peer."""

    what: str
    arms: dict[str, float]
    limit: float | None

    @property
    def beaten_by(self) -> list[str]:
        """The peers that are faster."""
        return [name for name, ratio in self.arms.items() if ratio < 1]


def comparisons(figures: Mapping[str, Any]) -> Iterator[Comparison]:
    """One for each thing that kvtier and at least one peer have a figure of."""
    rows = figures["rows"]
    for key, what in _STORES_AND_LOADS.items():
        ours = next((r for r in rows if r["name"] == registry.OURS), None)
        limits = [r[key]["median"] for r in rows if r["kind"] == "limit" and r[key]]
        yield from _compare(f"2 MiB blocks, {what}", key, ours, [r for r in rows if r["kind"] == "peer"], limits)
    rows = figures["lmcache"]["rows"]
    ours = next((r for r in rows if r["name"] == lmcache.OURS), None)
    others = [r for r in rows if r["kind"] == "peer"]
    for key, what in _LMCACHE.items():
        yield from _compare(what, key, ours, others, [])


def _compare(
    what: str, key: str, ours: Mapping[str, Any] | None, peers: Sequence[Mapping[str, Any]], limits: Sequence[float]
) -> Iterator[Comparison]:
    rates = {peer["name"]: peer[key]["median"] for peer in peers if peer[key]}
    if ours is None or not ours[key] or not rates:
        return
    limit = max(limits) / max(rates.values()) if limits else None
    yield Comparison(what, {name: ours[key]["median"] / rate for name, rate in rates.items()}, limit)
