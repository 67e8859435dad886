"""One life on the lossy file system, by seed: the canonical workload until the power fails, a recovery in which it may
fail again, and the check of what is left. ``run_seed`` is the whole of it; a longer run is a loop over it."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

from kvtier.running import RUNNING_FILE
from tests.crash.oracle import Oracle
from tests.crash.scale import SCALES, Scale
from tests.faults import lives

_RECOVERY_STEPS = 60  # about what an opening after a crash makes


class Result(NamedTuple):
    """What a seed did: where the workload and the recovery died (None: they came to their end), what was lost, what
    was wrong afterwards (None: nothing), whether there were long blocks, and what was read and written directly."""

    seed: int
    died_in: int | None
    recovery_died_in: int | None
    lost: list[str]
    failure: str | None
    is_long: bool
    direct: Counter[str]


class Loss(NamedTuple):
    """What became of one mount: the changes and syncs asked for, whether it died in one, and what was lost."""

    steps: int
    died: bool
    lost: list[str]


class Mount:
    """The lossy file system over a folder, for one child process; :meth:`lose` ends it."""

    def __init__(self, base: Path, die_at: int, seed: int, keep_probability: float) -> None:
        from tests.faults.lossy import serve  # which cannot be imported where there is no libfuse

        self.folder = base / "mount"
        self._backing = base / "backing"
        for folder in (self.folder, self._backing):
            folder.mkdir(exist_ok=True)
        self._pipe, process = _spawn(serve, str(self._backing), str(self.folder), die_at, seed, keep_probability)
        self._process = process
        self._pipe.recv()

    def lose(self) -> Loss:
        """Unmount, once nobody uses it any more; what was not synced is lost, and the machine comes up anew."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        loss = self._pipe.recv()
        self._process.join()
        assert isinstance(loss, Loss)
        running = self._backing / "store" / RUNNING_FILE
        if running.exists():
            running.write_bytes(b"an earlier boot")
        return loss

    def detach(self) -> None:
        """If anything went wrong: leave no mount behind."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False, capture_output=True)
        self._process.kill()
        self._process.join()


def run_seed(seed: int, scales: Mapping[str, Scale] = SCALES) -> Result:
    """One life of one of these scales, the same for the same seed.

    Needs :func:`tests.faults.needs.why_no_fuse` to be None.
    """
    rng = random.Random(seed)
    scale = rng.choice(list(scales.values()))
    keep = rng.choice([0, 0.5, 0.9])
    oracle, direct = Oracle(), Counter[str]()
    with _base() as base:
        first, raised = _on_mount(base, lives.live, scale, (oracle, direct), (rng.randint(1, steps(scale)), seed, keep))
        oracle.deletions_may_be_undone()
        second, raised_again = _on_mount(
            base, lives.recover, scale, (oracle, direct), (rng.randint(1, _RECOVERY_STEPS), seed, 0.5)
        )
        _, wrong = _on_mount(base, lives.verify, scale, (oracle, direct), (0, seed, 1), oracle)
    return Result(
        seed,
        first.steps if first.died else None,
        second.steps if second.died else None,
        first.lost + second.lost,
        raised or raised_again or wrong,
        scale.is_long,
        direct,
    )


@cache
def steps(scale: Scale) -> int:
    """Changes and syncs that the whole workload asks of the file system."""
    with _base() as base:
        loss, raised = _on_mount(base, lives.live, scale, (Oracle(), Counter()), (0, 0, 1))
    assert raised is None, raised
    return loss.steps


def _on_mount(
    base: Path,
    life: Callable[..., None],
    scale: Scale,
    told: tuple[Oracle, Counter[str]],
    death: tuple[int, int, float],
    *more: Any,
) -> tuple[Loss, str | None]:
    """One child process on one mount: what was lost, and what went wrong in it."""
    mount = Mount(base, *death)
    try:
        pipe, process = _spawn(life, mount.folder, scale, *more, pipe_at=2)
        raised = lives.hear(pipe, *told)
        process.join()
        loss = mount.lose()
    except BaseException:
        mount.detach()
        raise
    if process.exitcode != (-signal.SIGKILL if loss.died else 0):
        raised = raised or f"the process ended with {process.exitcode}"
    return loss, raised


def _spawn(target: Callable[..., None], *args: Any, pipe_at: int | None = None) -> tuple[Connection, Any]:
    """A process that gets the other end of a pipe as its last argument, or at this place."""
    context = _context()
    here, there = context.Pipe(duplex=False)
    place = len(args) if pipe_at is None else pipe_at
    process = context.Process(target=target, args=(*args[:place], there, *args[place:]), daemon=True)
    process.start()
    there.close()
    return here, process


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.lives", "tests.faults.lossy"])
    return context


@contextmanager
def _base() -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="kvtier-lossy-", dir="/dev/shm"))
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)
