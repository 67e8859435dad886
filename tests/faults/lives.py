"""What child processes do with a store while the system fails under it, and how they tell: each sends what the oracle
must know over a pipe before it acts, so that a kill at any moment leaves the parent with the truth."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from kvtier import Config, FlushError, Store
from kvtier.fs import OsFileSystem
from tests.crash.oracle import Oracle, check_usable, reopen, tell_of_losses
from tests.crash.scale import SCALES, Scale
from tests.crash.workload import QuickClock, Workload
from tests.direct import counted
from tests.stores import names

RAISED, DIRECT = "raised", "direct"


class TellingOracle(Oracle):
    """Sends every call to the parent as well, ahead of what it is about."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def set(self, key: bytes, value: bytes | None, expires_at: int = 0) -> None:
        self._pipe.send(("set", key, value, expires_at))
        super().set(key, value, expires_at)

    def flushed(self) -> None:
        self._pipe.send(("flushed",))
        super().flushed()

    def failed(self) -> None:
        self._pipe.send(("failed",))
        super().failed()

    def dropped(self, keys: Iterable[bytes]) -> None:
        keys = list(keys)
        self._pipe.send(("dropped", keys))
        super().dropped(keys)


def live(folder: Path, scale: Scale, pipe: Connection) -> None:
    """The canonical workload, on the operating system's own file system."""
    with telling(pipe):
        workload = Workload(scale, folder, OsFileSystem())
        workload.oracle = TellingOracle(pipe)
        workload.run()


def persist(folder: Path, scale: Scale, pipe: Connection) -> None:
    """A store that is not opened again after an error: it loses one group to it, and no more."""
    with telling(pipe), _opened(scale.settings(folder)) as store:
        oracle = TellingOracle(pipe)
        losses = 0
        for key in names(10):
            oracle.set(key, scale.block(key))
            store.put(key, scale.block(key))
            try:
                store.flush()
            except FlushError:
                losses += 1
                oracle.failed()
            else:
                oracle.flushed()
        assert losses <= 1, f"{losses} losses"
        oracle.check(store)


def _opened(settings: Config) -> Store:
    try:
        return Store.open(settings, clock=QuickClock(), background=False)
    except OSError:  # the error came at once: then this is about nothing
        return Store.open(settings, clock=QuickClock(), background=False)


def recover(folder: Path, scale: Scale, pipe: Connection) -> None:
    with telling(pipe), reopen(scale.settings(folder)) as store:
        assert store._back is not None
        with store._back.parts.index.read() as view:
            keys = {block_id: entry.key for block_id, entry in view.blocks()}
        # Its caps are kept from now on.
        tell_of_losses(store, lambda block_id: pipe.send(("dropped", [keys[block_id]])))


def verify(folder: Path, scale: Scale, pipe: Connection, oracle: Oracle) -> None:
    """Every answer is one that the oracle allows, and the store is of use again."""
    settings = scale.settings(folder)
    with telling(pipe):
        with reopen(settings) as store:
            oracle.check(store, damage=True)
        check_usable(settings, oracle)


@contextmanager
def telling(pipe: Connection) -> Iterator[None]:
    """An exception is told to the parent and goes no further; so is each direct read or write."""
    with counted(lambda what: pipe.send((DIRECT, what))):
        try:
            yield
        except Exception:
            pipe.send((RAISED, traceback.format_exc()))


def hear(pipe: Connection, oracle: Oracle, direct: Counter[str]) -> str | None:
    """Tell the oracle all that comes over the pipe until its other end is closed, and count what was read and written
    directly; the exception that came, if any."""
    raised = None
    calls: dict[str, Callable[..., None]] = {
        name: getattr(oracle, name) for name in ("set", "flushed", "failed", "dropped")
    }
    while True:
        try:
            what, *about = pipe.recv()
        except EOFError:
            return raised
        if what == RAISED:
            (raised,) = about
        elif what == DIRECT:
            direct.update(about)
        else:
            calls[what](*about)


if __name__ == "__main__":
    life = {"live": live, "persist": persist}[sys.argv[1]]
    life(Path(sys.argv[2]), SCALES[sys.argv[3]], Connection(int(sys.argv[4]), readable=False))
