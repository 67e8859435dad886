"""Plots of a replay: hit ratio, and recompute time missed, against capacity. Needs the extra ``plots``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvtier.replay import belady
from kvtier.replay.measure import Row

_PLOTS = (
    ("hit_ratio", "hit ratio (prefix-correct)", "hit-ratio.png"),
    ("recompute_missed_ratio", "recompute time missed / without a cache", "recompute-missed.png"),
)


def check() -> None:
    """Raises ModuleNotFoundError without matplotlib."""
    import matplotlib  # noqa: F401


def draw(title: str, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the plots into ``folder``, which is made; returns the files. Raises ModuleNotFoundError, OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for attribute, label, name in _PLOTS:
        figure = Figure(figsize=(8, 5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xlabel="capacity (blocks)", ylabel=label, title=title, xscale="log", ylim=(0, 1))
        for policy in dict.fromkeys(row.policy for row in rows):
            points = sorted(
                (r.capacity_blocks, getattr(r, attribute)) for r in rows if r.policy == policy and not r.error
            )
            curve(axes, policy, points)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        files.append(folder / name)
        figure.savefig(files[-1], dpi=120)
    return files


def curve(axes: Any, policy: str, points: Sequence[tuple[float, float]], label: str = "") -> None:
    """Draw one policy; the bound looks different from the others."""
    style: dict[str, Any] = {"color": "black", "linestyle": "--"} if policy == belady.NAME else {"marker": "o"}
    axes.plot(*zip(*points, strict=True) if points else ((), ()), label=label or policy, **style)
