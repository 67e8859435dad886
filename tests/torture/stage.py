"""What a stage of the ladder is, and how one is run: a case for one seed after another, until time or count is up."""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.crash.oracle import LostBlock, WrongBytes
from tests.direct import why_not_direct

_LONG_CASES = 3  # one may end before its first write
_FAILURES_MAX = 20  # then the stage is given up
MEMORY = Path("/dev/shm")


class Case(NamedTuple):
    """What a case is given: its seed, an empty folder, and when to end (as ``time.monotonic`` counts) if it may
    choose."""

    seed: int
    folder: Path
    until: float


@dataclass(frozen=True)
class Stage:
    """``run`` raises if a promise was broken, and returns what it counted (kills, calls, ...).

    ``full``: how many cases make the full form; 0: one, which lasts ``full_seconds``. ``share``: of the time, if it is
    limited. ``why_not``: why it cannot run here, or None. What counts ``long_blocks`` has cases of blocks that are
    written directly: it fails if there were some, and none was.
    """

    name: str
    run: Callable[[Case], Counter[str]]
    full: Callable[[], int]
    share: float
    full_seconds: float = 0
    why_not: Callable[[], str | None] = lambda: None


@dataclass
class Tally:
    """What became of one stage. ``failures``: in words, one for each of ``failed_seeds``."""

    stage: str
    skipped: str | None = None
    passed: int = 0
    failed: int = 0
    seconds: float = 0
    counts: Counter[str] = field(default_factory=Counter)
    failed_seeds: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        always = ("kills", "calls", "wrong_bytes", "lost_acknowledged")
        return {
            "passed": self.passed,
            "failed": self.failed,
            "seeds": self.passed + self.failed,
            "seconds": round(self.seconds, 1),
            **{name: self.counts[name] for name in always},
            **self.counts,
            "failed_seeds": self.failed_seeds,
            "skipped": self.skipped,
        }

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.stage}: skipped: {self.skipped}"
        counts = "".join(f", {name} {count}" for name, count in sorted(self.counts.items()))
        return f"{self.stage}: {self.passed} passed, {self.failed} failed in {self.seconds:.0f} s{counts}"


def run_stage(
    stage: Stage,
    first_seed: int,
    *,
    cases: int | None,
    seconds: float | None,
    progress: Callable[[str], None] = lambda _: None,
    on_case: Callable[[float], None] = lambda _: None,
) -> Tally:
    """At least one case, then more until ``cases`` are done or ``seconds`` are over (None: no such limit).

    ``progress`` is told of the stage now and then, ``on_case`` of each case that begins: until when it may last.
    """
    tally = Tally(stage.name, skipped=stage.why_not())
    began = told = time.monotonic()
    until = began + seconds if seconds is not None else float("inf")
    seed = first_seed
    while tally.skipped is None:
        on_case(until)
        _run_case(stage, seed, until, tally)
        seed += 1
        now = time.monotonic()
        tally.seconds = now - began
        if now >= until or (cases is not None and seed - first_seed >= cases) or tally.failed >= _FAILURES_MAX:
            break
        if now - told >= 10:
            told = now
            progress(str(tally))
    count = tally.counts["long_blocks"]
    if count >= _LONG_CASES and not tally.counts["direct_writes"] and why_not_direct(place()) is None:
        tally.failed += 1
        tally.failures.append(f"no block was written directly in {count} cases of long ones")
    return tally


def place() -> Path | None:
    """Where cases have their folders; None: where temporary files are."""
    return MEMORY if MEMORY.is_dir() else None


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """An empty folder, in memory where the platform has such a place."""
    folder = Path(tempfile.mkdtemp(prefix="kvtier-torture-", dir=place()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_case(stage: Stage, seed: int, until: float, tally: Tally) -> None:
    try:
        with fresh_folder() as folder:
            tally.counts.update(stage.run(Case(seed, folder, until)))
        tally.passed += 1
    except Exception as e:
        tally.failed += 1
        tally.failed_seeds.append(seed)
        tally.failures.append(f"seed {seed}: {''.join(traceback.format_exception(e))}")
        tally.counts["wrong_bytes"] += _is_due_to(e, WrongBytes)
        tally.counts["lost_acknowledged"] += _is_due_to(e, LostBlock)


def _is_due_to(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__
    return False
