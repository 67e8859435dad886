"""kvtier held against the peers, and each that is faster by name.

A rate of storing is held against a goal only where the peer's acknowledged block survives no more than kvtier's does:
with the others it is shown beside it, without a goal. So is what a process loads a second time: kvtier has that in
memory of its own, and peers have it in the system's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from bench.entry import ratio_noise
from bench.peers import lmcache, registry
from bench.peers.peer import Survives

Row = Mapping[str, Any]

_LOADS = {"warm": "load from the page cache", "cold": "load from the disk"}
_AGAIN = {registry.OURS: "`get_into` from RAM", registry.OURS_GET: "`get`, which copies nothing"}
_STRENGTH: Sequence[str] = get_args(Survives)  # in this order


class Comparison(NamedTuple):
    """``arms``: kvtier's rate divided by each peer's. ``limit``: the fastest limit divided by the fastest peer; None
    where a peer is faster. ``noise``: how far the arms are uncertain, as a share. ``has_goal``: whether the peers do
    the same."""

    what: str
    arms: dict[str, float]
    limit: float | None
    noise: float
    has_goal: bool

    @property
    def beaten_by(self) -> list[str]:
        """The peers that are faster."""
        return [name for name, ratio in self.arms.items() if ratio < 1]


def comparisons(figures: Mapping[str, Any]) -> Iterator[Comparison]:
    """One for each thing that kvtier and at least one peer have a figure of."""
    rows = figures["rows"]
    peers = [r for r in rows if r["kind"] == "peer"]
    limits = [r for r in rows if r["kind"] == "limit"]
    for ours in (r for r in rows if r["name"] == registry.OURS):
        yield from _compare("2 MiB blocks, store until durable", "durable", ours, peers, limits)
        yield from _acknowledged("2 MiB blocks, store until acknowledged", "acknowledged", ours, peers, limits)
        for key, what in _LOADS.items():
            yield from _compare(f"2 MiB blocks, {what}", key, ours, peers, limits)
    for ours in (r for r in rows if r["name"] == registry.OURS_MANY):
        for key, what in _LOADS.items():
            yield from _compare(f"2 MiB blocks, {what}, in one call", key, ours, peers, limits)
    for name, call in _AGAIN.items():
        for ours in (r for r in rows if r["name"] == name):
            what = f"2 MiB blocks, loaded again in the same process, {call}"
            yield from _compare(what, "again", ours, peers, limits, has_goal=False)
    rows = figures["lmcache"]["rows"]
    peers = [r for r in rows if r["kind"] == "peer"]
    for ours in (r for r in rows if r["kind"] == "ours"):
        yield from _acknowledged("LMCache: store" + ours["name"].removeprefix(lmcache.OURS), "store", ours, peers, [])
        if ours["name"] == lmcache.OURS:  # the others load as it does
            for key, what in _LOADS.items():
                yield from _compare(f"LMCache: {what}", key, ours, peers, [])


def _acknowledged(what: str, key: str, ours: Row, peers: Sequence[Row], limits: Sequence[Row]) -> Iterator[Comparison]:
    """With those whose block survives no more then, and with the others."""
    known = [peer for peer in peers if peer[key]]
    same = [peer for peer in known if _strength(peer) <= _strength(ours)]
    yield from _compare(what, key, ours, same, limits)
    others = [peer for peer in known if peer not in same]
    yield from _compare(f"{what}, by peers whose block survives more then", key, ours, others, [], has_goal=False)


def _strength(row: Row) -> int:
    return _STRENGTH.index((row.get("facts") or row)["acknowledged"])


def _compare(
    what: str, key: str, ours: Row, peers: Sequence[Row], limits: Sequence[Row], *, has_goal: bool = True
) -> Iterator[Comparison]:
    theirs = {peer["name"]: peer[key] for peer in peers if peer[key]}
    if not ours[key] or not theirs:
        return
    fastest = max((row[key]["median"] for row in limits if row[key]), default=0.0)
    limit = fastest / max(rate["median"] for rate in theirs.values())
    yield Comparison(
        what,
        {name: ours[key]["median"] / rate["median"] for name, rate in theirs.items()},
        limit if limit >= 1 else None,
        ratio_noise(*((ours[key], rate) for rate in theirs.values())),
        has_goal,
    )
