"""What the suites share: alternating arms, medians, folder sizes, and room on the disk."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

#: A suite: whether to be quick, and where to say what it is doing.
Suite = Callable[[bool, Callable[[str], None]], dict[str, Any]]


def alternate(arms: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Each arm ``repeats`` times, in turns, so that what disturbs the machine disturbs all of them."""
    samples: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            samples[name].append(arm())
    return samples


def alternate_with_peers(
    arms: Mapping[str, Callable[[], float]], peers: Collection[str], repeats: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """As :func:`alternate`; a peer that raises is left out from then on. The samples, and why peers have none."""
    samples: dict[str, list[float]] = {name: [] for name in arms}
    failed: dict[str, str] = {}
    for _ in range(repeats):
        for name in [n for n in arms if n not in failed]:
            try:
                samples[name].append(arms[name]())
            except Exception as e:
                if name not in peers:
                    raise
                failed[name] = reason_of(e)
    return {name: found for name, found in samples.items() if name not in failed}, failed


def reason_of(error: BaseException) -> str:
    """What the report says of an error: its type, and its first line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def too_little_disk(folder: Path, nbytes: int) -> str | None:
    """Why there is no room for so many bytes and as many again, or None."""
    free = shutil.disk_usage(folder).free
    return f"too little disk: {free:,} bytes free, {2 * nbytes:,} wanted" if free < 2 * nbytes else None


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, least and most; what the report shows of one arm."""
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples), "runs": len(samples)}


def folder_bytes(path: Path) -> int:
    """What a file or folder occupies on disk (holes do not count)."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_blocks * 512 for f in files if f.is_file())


def read_files(folder: Path) -> None:
    """Have all files of a folder in the page cache, whatever way they were written."""
    for file in [f for f in folder.rglob("*") if f.is_file()]:
        with file.open("rb", buffering=0) as opened:
            while opened.read(1 << 20):
                pass


def kernel_bytes_written() -> int | None:
    """Bytes that this process caused to be written, as Linux counts them; None elsewhere."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))
