"""A thread that looks once in a while whether something has changed that nobody tells of."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("kvtier")

_PERIOD_S = 1.0
_SOON_S = 0.05


class Watch:
    """Calls ``look`` now, then once a second, or soon if it returns that there is more to do, until :meth:`stop`."""

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvtier-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait for the call that is under way, and make no more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        again = True
        while not self._stopping.wait(_SOON_S if again else _PERIOD_S):
            try:
                again = self._look()
            except Exception:
                again = False
                log.exception("kvtier background look failed")
