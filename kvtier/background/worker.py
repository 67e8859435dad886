"""The background worker: the one thread that changes segments and the index.

One mutator means no lock ordering, group commits for free, and tests that run the very same steps by hand
(``background=False``). Urgent jobs (quarantine, pins) run first, then groups of writes, then lazy ones
(promotion, recency), of which the oldest are dropped when there are too many. Only when there is nothing else to do is
``when_idle`` asked (compaction), for one bit of work at a time.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger("kvtier")

Job = Callable[[], None]
_LAZY_MAX = 1024


class Worker:
    """Runs jobs, and ``write_group`` whenever it says that there is something to write. Thread-safe."""

    def __init__(self, write_group: Callable[[], bool], when_idle: Callable[[], float | None] = lambda: None) -> None:
        """``write_group`` writes one group, deals with its errors, and returns whether there was any.

        ``when_idle`` does a bit of work and returns 0.0; or in how many seconds there will be some, None: not before
        something else."""
        self._write_group = write_group
        self._when_idle = when_idle
        self._idle_s: float | None = None
        self._wake = threading.Condition()
        self._stepping = threading.Lock()
        self._urgent: deque[Job] = deque()
        self._lazy: deque[Job] = deque(maxlen=_LAZY_MAX)
        self._work = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="kvtier-worker", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def submit(self, job: Job, *, lazy: bool = False) -> None:
        with self._wake:
            (self._lazy if lazy else self._urgent).append(job)
            self._wake.notify()

    def poke(self) -> None:
        """There is something to write."""
        with self._wake:
            self._work = True
            self._wake.notify()

    def step(self) -> bool:
        """Do the next piece of work on this thread, one thread at a time; False if there was none."""
        with self._stepping:
            return self._step()

    def _step(self) -> bool:
        with self._wake:
            job = self._urgent.popleft() if self._urgent else None
            self._work = False
        if job is None:
            if self._write_group():
                return True
            with self._wake:
                job = self._lazy.popleft() if self._lazy else None
        if job is None and self._stopping:
            return False
        try:
            if job is None:
                self._idle_s = None  # also if it fails
                self._idle_s = self._when_idle()
                return self._idle_s == 0.0
            job()
        except Exception:
            log.exception("kvtier background job failed")
        return job is not None

    def stop(self) -> None:
        """Finish the work there is, then end."""
        with self._wake:
            self._stopping = True
            self._lazy.clear()
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        while not self.is_alive and self.step():
            pass

    def _run(self) -> None:
        while True:
            if self.step():
                continue
            with self._wake:
                if not (self._urgent or self._lazy or self._work or self._stopping):
                    self._wake.wait(self._idle_s)
                if self._stopping and not (self._urgent or self._lazy or self._work):
                    return
