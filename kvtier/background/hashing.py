"""Content ids of long blocks, found on a thread of its own while the worker waits for the disk.

A content id is the dearest thing that a block costs the processor on its way to disk. The worker says what is queued,
and takes the ids when it needs them; what the thread has not begun by then, or could not do, the worker does itself. An
id that was found before keys were forgotten may be another one by now, and is not used.

Threads: the worker's only.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable

from kvtier.background.write_behind import Pending
from kvtier.tiers.drafts import content_id_of
from kvtier.tiers.ram import RamBlock
from kvtier.vault import Vault

log = logging.getLogger("kvtier")

#: Shorter blocks are hashed sooner than handed over.
LEAST_BYTES = 256 << 10


class _Job:
    """One block to hash. Guarded by the lock of its :class:`ContentIds`."""

    def __init__(self, block: RamBlock) -> None:
        self.block = block
        self.is_begun = self.is_done = False
        self.content_id: bytes | None = None
        self.era: object = None


class ContentIds:
    """See the module."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._changed = threading.Condition()
        self._jobs: dict[Pending, _Job] = {}
        self._waiting: deque[_Job] = deque()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def expect(self, queued: Iterable[Pending]) -> None:
        """Begin with these, in order; what was expected before and is not among them is no longer queued."""
        with self._changed:
            before = self._jobs
            self._jobs = {
                p: before.get(p) or _Job(p.block) for p in queued if p.block and p.block.nbytes >= LEAST_BYTES
            }
            self._waiting = deque(job for job in self._jobs.values() if not job.is_begun)
            if self._waiting and self._has_thread():
                self._changed.notify_all()

    def of(self, pending: Pending, block: RamBlock) -> bytes:
        """The content id of a queued block. Raises :class:`kvtier.vault.KeyMissing`."""
        with self._changed:
            job = self._jobs.pop(pending, None)
            if job is not None and job.is_begun:
                self._changed.wait_for(lambda: job.is_done)
                if job.content_id is not None and job.era is self._vault.era:
                    return job.content_id
            elif job is not None:
                job.is_begun = True  # here
        return content_id_of(self._vault, block)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _has_thread(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="kvtier-hash", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no more: another time
                return False
            self._thread = thread
        return True

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._is_closed:
                while self._waiting:
                    job = self._waiting.popleft()
                    if not job.is_begun:
                        job.is_begun = True
                        return job
                self._changed.wait()
            return None

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.era = self._vault.era
                job.content_id = content_id_of(self._vault, job.block)
            except Exception:  # the worker comes upon it, too
                log.debug("a block could not be hashed ahead", exc_info=True)
            finally:
                with self._changed:
                    job.is_done = True
                    self._changed.notify_all()
            del job  # which keeps the block's memory
