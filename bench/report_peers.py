"""Tables of the suite that holds kvtier against its peers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.peers.compared import comparisons
from bench.peers.lmcache_left_out import LEFT_OUT
from bench.report_text import Lines, dropped, rate, spread, table

_YES = {True: "yes", False: "no"}


def peers(figures: Mapping[str, Any]) -> Lines:
    yield from (f"## Beside what else there is ({figures['blocks']} blocks of {figures['block_bytes'] >> 20} MiB)", "")
    yield (
        "*Acknowledged*: the call has returned, and a later column says what such a block survives. *Durable*: it "
        "survives a power loss. *Warm*: opened anew, its files in the page cache. "
        f"*Cold*: the page cache dropped, {dropped(figures)}. *Again*: a second time by the process that has loaded "
        "them, its files in the page cache, too; the last column says where a block is then. The last rows are limits: "
        "no index, no checks."
    )
    yield ""
    yield from table(
        ["", *_MEASURED.values(), *_FACTS],
        [_row(row) for row in figures["rows"]],
    )
    lmcache = figures["lmcache"]
    yield from ("", "LMCache's second level, by `lmcache bench l2`, each load in a new process:", "")
    if lmcache["missing"]:
        yield f"Not measured: {lmcache['missing']}."
    else:
        yield from table(
            ["`--l2-adapter`", "store", "load, warm", "load, cold", "checked on read", "a store survives"],
            [_lmcache_row(row) for row in lmcache["rows"]],
        )
    yield ""
    reasons = [f"{', '.join(f'`{name}`' for name in names)} ({why})" for names, why in LEFT_OUT.items()]
    yield f"LMCache's other adapters are left out: {'; '.join(reasons)}."
    yield ""
    yield (
        "kvtier's rate, divided by that of each peer. There is no goal where a peer's acknowledged block survives more "
        "than kvtier's, which is in memory alone:"
    )
    yield ""
    yield from table(
        ["", "slowest comparison", "goal", "faster than kvtier"],
        [
            [c.what, _worst(c.arms), "≥ 1" if c.has_goal else "", ", ".join(c.beaten_by) or "none"]
            for c in comparisons(figures)
        ],
    )


_MEASURED = {
    "acknowledged": "store, acknowledged",
    "durable": "store, durable",
    "warm": "load, warm",
    "cold": "load, cold",
    "again": "load, again",
}
_FACTS = {
    "acknowledged survives": "acknowledged",
    "checked on read": "checks",
    "restarts": "restarts",
    "bounded": "bounded",
    "again from": "keeps",
}


def _row(row: Mapping[str, Any]) -> list[str]:
    if row["facts"] is None:
        return [row["name"], f"left out: {row['missing']}", *[""] * (len(_MEASURED) - 1 + len(_FACTS))]
    name = row["name"] + (f" (then left out: {row['missing']})" if row["missing"] else "")
    facts = [row["facts"][key] for key in _FACTS.values()]
    rates = [_rate(row[key]) for key in _MEASURED]
    return [name, *rates, *(_YES[fact] if isinstance(fact, bool) else fact for fact in facts)]


def _lmcache_row(row: Mapping[str, Any]) -> list[str]:
    if row["missing"]:
        return [row["name"], f"left out: {row['missing']}", "", "", "", ""]
    return [
        row["name"],
        *(_rate(row[key]) for key in ("store", "warm", "cold")),
        _YES[row["checks"]],
        row["acknowledged"],
    ]


def _rate(figure: Mapping[str, float] | None) -> str:
    return spread(figure, rate) if figure else "-"


def _worst(arms: Mapping[str, float]) -> str:
    name = min(arms, key=lambda peer: arms[peer])
    return f"**{arms[name]:.2f}** ({name})"
