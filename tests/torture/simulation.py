"""A store in a world without chance: several clients, the worker's steps, faults, crashes and losses of power, a clock
that jumps, and others who fill the disk and the memory, in an order that follows from a seed. The same seed makes the
same life, call by call (in a folder in memory: elsewhere, what a file occupies shows up late, and the caps go by that).
"""

from __future__ import annotations

import errno
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kvtier import Config, KeyProvider, KvtierError, Store, single_key
from kvtier.check import verify
from kvtier.compacting import compact
from kvtier.events import Event, RebuildProgress
from kvtier.fs import FileSystem, OsFileSystem, PortableFileSystem
from kvtier.testing import FaultyFileSystem, SimulatedCrash
from tests.crash.oracle import check_usable, die
from tests.crash.power import index_copied_to, new_boot
from tests.direct import counted
from tests.stores import KIB, MIB, settle
from tests.torture import clients
from tests.torture.drawn import TIMES, Settings
from tests.torture.model import Model
from tests.torture.simulated import (
    OneThread,
    SharedDisk,
    SharedMemory,
    SimulatedClock,
    identities_from,
    with_one_reader,
)
from tests.torture.watch import watch

STEPS = 400
_DAY = 86_400.0


class Simulation:
    """One life. ``trace``: what happened, in words; ``done``: how often what did. ``is_long``: of blocks many of which
    are written directly."""

    def __init__(self, folder: Path, seed: int, *, is_long: bool = False) -> None:
        self.rng = random.Random(seed)
        self.trace: list[str] = []
        self.done: Counter[str] = Counter()
        self.clock = SimulatedClock()
        self.model = Model(self.clock)
        self.parents: dict[bytes, bytes | None] = {}
        self.disk = SharedDisk(folder / "store" / "top", folder / "store" / "low")
        self.memory = SharedMemory()
        self._folder = folder
        self._index_before = folder / "index before"
        self._punches = self.rng.random() < 0.7 or is_long
        self._keys: KeyProvider | None = single_key(bytes(32)) if self.rng.random() < 0.3 else None
        self.times = TIMES if is_long else 1
        self._settings = Settings(folder, self.rng, is_long=is_long)
        self._config: Config = self._settings.drawn()
        self.store: Store
        self._fs: FaultyFileSystem
        self._reader: OneThread
        self._clients: list[clients.Client]
        self._failures = 0

    def run(self, steps: int = STEPS) -> None:
        """Raises :class:`AssertionError` if the store broke a promise."""
        with identities_from(self.rng), index_copied_to(self._index_before), counted(self._count):
            self._open()
            for _ in range(steps):
                try:
                    self._step()
                    self._reader.wait()
                except SimulatedCrash:
                    self._fs.crash()
                if self._fs.crashed:
                    self._die()
                else:
                    self._note_failures()
                assert not self.disk.below_floor, "what was written has taken from the floor"
            self._say("close")
            self._fs.heal()
            self._close()
            if not self.done["power"]:  # which may take a commit, but not the marks that came after it
                assert verify(self._config).is_sound
            check_usable(self._settings.plain(), self.model.oracle, self._keys, self.clock)

    def _count(self, what: str) -> None:
        self.done[what] += 1

    # -- steps --------------------------------------------------------------------------------------

    def _step(self) -> None:
        kinds: list[tuple[Callable[[], None], int]] = [
            (self._let_a_client, 100),
            (self._let_the_worker, 50),
            (self._move_the_clock, 4),
            (self._let_others_write, 3),
            (self._look_around, 6),
            (self._plan_a_fault, 3),
            (self._heal, 4),
            (self._plan_a_crash, 2),
            (self._crash, 1),
            (self._close_and_open, 1),
        ]
        (step,) = self.rng.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
        step()

    def _say(self, what: str) -> None:
        self.trace.append(what)
        self.done[what.split(" ", 1)[0]] += 1

    def _let_a_client(self) -> None:
        self._say(next(self.rng.choice(self._clients)))

    def _let_the_worker(self) -> None:
        assert self.store._back is not None
        before = self._fs.calls
        if self.store._back._worker.step():
            self._say(f"worker: {self._fs.calls - before} calls")

    def _move_the_clock(self) -> None:
        if self.rng.random() < 0.7:
            self.clock.advance(seconds := self.rng.choice([0.1, 1, 60, 3600]))
        else:
            self.clock.jump(seconds := self.rng.choice([-4000 * _DAY, -_DAY, _DAY, 4000 * _DAY]))
        self._say(f"clock {seconds:+}")

    def _let_others_write(self) -> None:
        """They need room, or give some back; on the disk more often than in memory."""
        if self.rng.random() < 0.7:
            self.disk.others = self.rng.choice([0, 0, 2 * MIB, 2 * MIB + 256 * KIB, 2 * MIB + 640 * KIB, 3 * MIB])
        else:
            self.memory.left = self.rng.choice([16 * MIB, 10 * KIB, -(16 * MIB)])
        self._say(f"others: {self.disk.others // KIB} KiB on disk, {self.memory.left // KIB} KiB of memory left")

    def _look_around(self) -> None:
        """What a thread of the store does once a second."""
        self._say(f"look: {self.store._headroom.look()}")

    def _plan_a_fault(self) -> None:
        code = self.rng.choice([errno.ENOSPC, errno.EIO])
        after = self.rng.randint(1, 8)
        match self.rng.randrange(4):
            case 0:
                self._fs.fail_at(self._fs.calls + after, code)
            case 1:
                self._fs.fail_at(self._fs.calls + after, code, lasting=True)
            case 2:
                self._fs.short_write_at(
                    self._fs.counts["write_at"] + after, self.rng.randrange(self.times * 20 * KIB), code
                )
            case _:
                self.model.reads_fail = True
                self._fs.fail_at(self._fs.counts["read_at"] + after, code, op="read_at")
        self._say(f"fault {errno.errorcode[code]} planned")

    def _heal(self) -> None:
        self._fs.heal()
        self._say("heal")

    def _plan_a_crash(self) -> None:
        self._fs.crash_at(self._fs.calls + self.rng.randint(1, 20))
        self._say("death planned")

    def _crash(self) -> None:
        self._fs.crash()

    def _close_and_open(self) -> None:
        self._say("close")
        self._close()
        if self.rng.random() < 0.3:
            self._compact_by_hand()
        self._settle()
        self._open()

    def _compact_by_hand(self) -> None:
        """To its end, or until it dies."""
        fs = self._disk()
        fs.crash_at(self.rng.randint(1, 40))
        try:
            gain = compact(self._config, fs=fs, clock=self.clock, keys=self._keys, listeners=[self._listen])
            self._say(f"compact {[t.segments_dropped for t in gain.tiers]}")
        except (SimulatedCrash, OSError, KvtierError) as e:
            self._say(f"compact: {type(e).__name__}")
            self.model.died()
        fs.reap()
        self.model.time.may_have_opened()

    # -- lives --------------------------------------------------------------------------------------

    def _inner(self) -> FileSystem:
        return self.disk.holds(OsFileSystem() if self._punches else PortableFileSystem())

    def _disk(self) -> FaultyFileSystem:
        return FaultyFileSystem(self._inner(), power_loss=True)

    def _open(self) -> None:
        if self.rng.random() < 0.5:
            self._config = self._settings.drawn()
        self._fs = self._disk()
        self.store = self._opened(self._fs)
        self._fs.on_call = self.disk.watch if self._settings.has_floor else None
        self._reader = with_one_reader(self.store)
        self._clients = [kind(self) for kind in clients.ALL]
        self._failures = 0
        self.model.reads_fail = False

    def _opened(self, fs: FileSystem) -> Store:
        store = Store.open(
            self._config,
            fs=fs,
            clock=self.clock,
            background=False,
            keys=self._keys,
            memory=self.memory,
            listeners=[self._listen],
        )
        watch(store, clients.KEYS, self.model)
        return store

    def _listen(self, event: Event) -> None:
        if isinstance(event, RebuildProgress):
            self.model.index_is_new()

    def _note_failures(self) -> None:
        failures = self.store._signals.counts().get("write_failures", 0)
        if failures > self._failures:
            self.model.write_failed()
        self._failures = failures

    def _close(self) -> None:
        """An error of the disk may be raised; the store is closed nevertheless."""
        self._leave_clients()
        signals, failures = self.store._signals, self._failures
        self.done.update(signals.counts())
        try:
            self.store.close()
            failed = signals.counts().get("write_failures", 0) > failures
        except (OSError, KvtierError) as e:
            self._say(f"close: {type(e).__name__}")
            failed = True
        (self.model.oracle.failed if failed else self.model.oracle.flushed)()

    def _leave_clients(self) -> None:
        for client in self._clients:
            with suppress(SimulatedCrash):
                client.close()  # type: ignore[attr-defined]

    def _die(self) -> None:
        """By a kill, or with the power; the index may be lost, too. Then recover, as often as it takes."""
        self.done.update(self.store._signals.counts())
        die(self.store, self._fs)
        self.model.died()
        self._leave_clients()
        power = self.rng.random() < 0.5
        lost = self.rng.choice(["nothing", "nothing", "the last commit", "all"] if power else ["nothing"] * 3 + ["all"])
        self._say(f"{'power loss' if power else 'kill'}; of the index: {lost}")
        if power:
            self._lose_power(self._fs)
        index = self._folder / "store" / "index"
        if lost == "all":
            shutil.rmtree(index, ignore_errors=True)
            self.model.lost_the_index()
        elif lost == "the last commit" and self._index_before.exists():
            shutil.copyfile(self._index_before, index / "data.mdb")
            self.model.lost_the_last_commit()
        self._recover_in_vain(power)
        if self.rng.random() < 0.1:
            self._compact_by_hand()
        self._settle(stale=lost == "all", damage=power)
        self._open()

    def _settle(self, *, stale: bool = False, damage: bool = False) -> None:
        """Hold the store to what it promised, on a disk that is well; what it says then is the truth."""
        with self._opened(self._inner()) as store:
            settle(store)
            self.model.oracle.check(store, stale=stale, damage=damage)
            self.model.oracle.saw(store, stale=stale)
        self.model.settled()

    def _lose_power(self, fs: FaultyFileSystem) -> None:
        fs.lose_unsynced(self.rng.randrange(1 << 30), keep_probability=self.rng.choice([0, 0.5, 0.9]))
        new_boot(self._folder / "store")

    def _recover_in_vain(self, power: bool) -> None:
        """Openings that end in a crash or in an error."""
        for _ in range(self.rng.choice([0, 0, 1, 2])):
            fs = self._disk()
            call = self.rng.randint(1, 12)
            fs.crash_at(call) if self.rng.random() < 0.7 else fs.fail_at(call, errno.ENOSPC)
            with suppress(SimulatedCrash, OSError, KvtierError):
                self._opened(fs).close()
                self._say("recovery in spite of a fault")
            fs.reap()
            self.model.time.may_have_opened()
            if power:
                self._lose_power(fs)
