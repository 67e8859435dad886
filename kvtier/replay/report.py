"""Rows as JSON and as a table of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvtier.replay.measure import Row
from kvtier.replay.tier_model import TierModel
from kvtier.replay.trace import Trace
from kvtier.units import format_size

_HEAD = ("policy", "capacity", "blocks", "hit ratio", "missed", "moved", "written", "us/ref", "B/block")


def as_json(trace: Trace, model: TierModel, hints: str, seed: int, rows: Sequence[Row]) -> dict[str, Any]:
    """The whole report, for ``json.dumps``."""
    return {
        "trace": {
            "name": trace.name,
            "requests": len(trace),
            "references": trace.references,
            "unique_blocks": trace.unique,
            "seconds": trace.times[-1] if len(trace) else 0.0,
            "reuse": trace.reuse,
            "block_tokens": trace.block_tokens,
            "lines_skipped": trace.skipped,
        },
        "model": model.cost.name,
        "block_bytes": model.bytes_of_block(trace.block_tokens),
        "hints": hints,
        "seed": seed,
        "results": [row.as_dict() for row in rows],
    }


def as_text(trace: Trace, rows: Sequence[Row]) -> str:
    """A table; below it, policies that failed with their errors, and what became of blocks where tiers refuse some."""
    title = (
        f"{trace.name}: {len(trace):,} requests, {trace.references:,} blocks, {trace.unique:,} of them different, "
        f"reuse {trace.reuse:.1%}"
    )
    cells = [_HEAD, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [_line(row, widths) for row in cells]
    lines[1:1] = ["  ".join("-" * width for width in widths)]
    failed = [f"failed: {row.policy} at {row.capacity}: {row.error}" for row in rows if row.error]
    return "\n".join([title, *lines, *failed, *(line for row in rows for line in _details(row))])


_TOLD = ("written", "not_admitted", "expired", "quota_evicted", "over_quota")


def _details(row: Row) -> list[str]:
    where = f"{row.policy} at {row.capacity}"
    lines = []
    for tier in row.tiers:
        told = {name: tier[f"bytes_{name}"] for name in _TOLD if f"bytes_{name}" in tier}
        if len(told) > 1:
            shown = ", ".join(f"{name.replace('_', ' ')} {format_size(nbytes)}" for name, nbytes in told.items())
            lines.append(f"{where}: {tier['name']}: {shown}")
    lines += [f"{where}: namespace {n['name']!r}: hit ratio {n['hit_ratio']:.4f}" for n in row.namespaces]
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    seconds = row.policy_seconds_per_reference
    return (
        row.policy,
        row.capacity,
        f"{row.capacity_blocks:,}",
        "failed" if row.error else _shown(row.hit_ratio, ".4f"),
        _shown(row.recompute_missed_ratio, ".1%"),
        "-" if row.bytes_moved is None else format_size(row.bytes_moved),
        "-" if row.bytes_written is None else format_size(row.bytes_written),
        _shown(None if seconds is None else seconds * 1e6, ".2f"),
        _shown(row.policy_bytes_per_block, ".0f"),
    )


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return "  ".join([first, *rest])
