"""``python -m bench compare A B [--json]``: two reports against each other, A the older one.

Each is a ``summary.json``, or a git revision, whose ``bench/report/summary.json`` it is then. Figures that are timed
have changed if their medians differ by more than twice what both are uncertain, and by 5 % at least; counted ones, if
they differ at all. The exit code is 1 if a goal that A met is not met by B, beyond noise, or has no figure in B.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from math import hypot
from pathlib import Path
from typing import Any

from bench.entry import uncertainty
from bench.machines import machine_of
from bench.report_text import goal, table
from bench.scoreboard import number

_IN_REVISION = "bench/report/summary.json"
_SURE = 2  #: times the uncertainty
_LEAST = 0.05
#: Parts of the way to a figure below which more is better; all others are seconds.
_RATES = frozenset({"rates", "read_cold", "read_warm", "flush", "after_first", "after_second", "growth", "pairs"})
_RATE_SUITES = frozenset({"peers"})  # all of their figures
#: What of a machine decides how long something takes.
_HARDWARE = ("processor", "memory", "system")
#: What tells the elements of a list apart.
_NAMES = (
    *("model", "name", "kv_type", "tokens", "turn_tokens", "blocks", "disk", "place", "what", "operation", "arm"),
    *("block_bytes", "ram_bytes", "workload", "policy", "ahead"),
)

Found = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """The exit code; prints what was found."""
    parser = argparse.ArgumentParser(prog="python -m bench compare", description="Hold two reports against each other.")
    parser.add_argument("a", metavar="A", help="summary.json or git revision: before")
    parser.add_argument("b", metavar="B", help="the same: after")
    parser.add_argument("--json", action="store_true", help="print all as JSON")
    options = parser.parse_args(arguments)
    try:
        a, b = load(options.a), load(options.b)
    except (OSError, ValueError) as e:
        parser.error(str(e))
    found = compare(a, b)
    sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n" if options.json else text(found))
    return int(any(e["regressed"] for e in found["entries"]) or any(e["met"] for e in found["missing"]))


def load(source: str) -> Mapping[str, Any]:
    """A summary. Raises :class:`ValueError` if there is none under this name, :class:`OSError` if it cannot be read."""
    if Path(source).is_file():
        written = Path(source).read_text(encoding="utf-8")
    else:
        command = ["git", "show", f"{source}:{_IN_REVISION}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
        if done.returncode:
            raise ValueError(f"{source}: neither a file nor a git revision that has {_IN_REVISION}")
        written = done.stdout
    summary = json.loads(written)
    if not isinstance(summary, dict) or not {"entries", "figures"} <= summary.keys():
        raise ValueError(f"{source}: not a summary of python -m bench")
    return summary


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> Found:
    """``entries``: what both have; ``figures``: timed ones that have changed; ``missing``: entries of A only, and
    whether they met their goals."""
    before = {_identity(entry): entry for entry in a["entries"]}
    after = {_identity(entry): entry for entry in b["entries"]}
    medians = dict(_spreads(a["figures"], ())), dict(_spreads(b["figures"], ()))
    figures = [_figure(way, medians[0][way], medians[1][way]) for way in medians[0] if way in medians[1]]
    return {
        "same_machine": all(
            _hardware(a, suite) == _hardware(b, suite) for suite in a["figures"] if suite in b["figures"]
        ),
        "entries": [_entry(entry, after[key]) for key, entry in before.items() if key in after],
        "figures": [figure for figure in figures if figure["change"]],
        "compared": len(figures),
        "missing": [
            {"entry": " ".join(key), "met": bool(entry["met"])} for key, entry in before.items() if key not in after
        ],
    }


def _hardware(summary: Mapping[str, Any], suite: str) -> list[str | None]:
    made_on = machine_of(summary, suite)
    return [made_on.get(part) for part in _HARDWARE]


def _identity(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    return entry["id"], entry["suite"], entry["what"]


def _entry(a: Mapping[str, Any], b: Mapping[str, Any]) -> Found:
    worse = b["value"] - a["value"] if a["sense"] == "≤" else a["value"] - b["value"]
    noise = _SURE * hypot(a.get("noise", 0.0), b.get("noise", 0.0)) * abs(a["value"])
    change = "worse" if worse > noise else "better" if -worse > noise else ""
    arms = {arm: b["arms"][arm] / value for arm, value in a["arms"].items() if value and arm in b["arms"]}
    return {
        **{key: a[key] for key in ("id", "suite", "what", "sense", "goal")},
        "a": a["value"],
        "b": b["value"],
        "ratio": b["value"] / a["value"] if a["value"] else None,
        "noise": noise,
        "change": change,
        "met": [a["met"], b["met"]],
        "regressed": bool(a["met"]) and b["met"] is False and change == "worse",
        "arms": arms,
    }


def _spreads(found: Any, way: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, float]]]:
    """All that has a median, each with the way to it."""
    if isinstance(found, list):
        for position, element in enumerate(found):
            yield from _spreads(element, (*way, _name(element, position)))
    elif isinstance(found, dict) and {"median", "min", "max"} <= found.keys():
        yield way, found
    elif isinstance(found, dict):
        for key, inner in found.items():
            yield from _spreads(inner, (*way, key))


def _name(element: Any, position: int) -> str:
    names = [str(element[key]) for key in _NAMES if key in element] if isinstance(element, dict) else []
    return " ".join(names) or str(position)


def _figure(way: Sequence[str], a: Mapping[str, float], b: Mapping[str, float]) -> Found:
    ratio = b["median"] / a["median"] if a["median"] else 1.0
    noise = _SURE * hypot(uncertainty(a), uncertainty(b))
    is_more = ratio > 1
    changed = abs(ratio - 1) > max(noise, _LEAST)
    is_rate = way[0] in _RATE_SUITES or bool(_RATES & set(way))
    change = ("better" if is_more == is_rate else "worse") if changed else ""
    return {
        "figure": " / ".join(way),
        "a": a["median"],
        "b": b["median"],
        "ratio": ratio,
        "noise": noise,
        "change": change,
    }


def text(found: Found) -> str:
    """Tables of it."""
    lines = [] if found["same_machine"] else ["The machines differ: times tell little.", ""]
    lines += table(
        ["", "figure", "A", "B", "B / A", "goal", "met", ""],
        (
            [
                entry["id"],
                entry["what"],
                number(entry["a"]),
                number(entry["b"]),
                "" if entry["ratio"] is None else f"{entry['ratio']:.2f}",
                goal(entry),
                " -> ".join("yes" if met else "no" for met in entry["met"] if met is not None),
                "**regressed**" if entry["regressed"] else entry["change"],
            ]
            for entry in found["entries"]
        ),
    )
    lines += ["", f"Of {found['compared']} timed figures, {len(found['figures'])} have changed beyond noise."]
    if found["figures"]:
        lines += [""]
        lines += table(
            ["figure", "A", "B", "B / A", "noise", ""],
            (
                [f["figure"], f"{f['a']:.4g}", f"{f['b']:.4g}", f"{f['ratio']:.2f}", f"± {f['noise']:.2f}", f["change"]]
                for f in found["figures"]
            ),
        )
    lines += [f"Not in B: {e['entry']}" + (", **met by A**" if e["met"] else "") for e in found["missing"]]
    return "\n".join(lines) + "\n"
