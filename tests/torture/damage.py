"""Files that were tampered with, by seed: what is damaged is a miss and is counted, and can be stored again."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from kvtier import Config, Hit, KeyProvider, Store, StoreError, running, single_key
from kvtier.errors import ConfigError
from kvtier.events import BlockQuarantined, Event, Recovered, SegmentLost
from kvtier.fs import OsFileSystem
from kvtier.running import RUNNING_FILE
from tests.crash.oracle import LostBlock, Oracle, WrongBytes
from tests.crash.scale import BLOCK_BYTES
from tests.direct import counted
from tests.stores import KIB, MIB, config, flip, names, noise, settle, tier, value_of
from tests.torture.stage import Case

KEYS = names(24)
_SIGNS = ("segments_short", "segments_unreadable", "blocks_lost", "corrupt_on_move")
_UNIT = 64  # where records may begin


class Damaged:
    """A store of two tiers with a history; its oracle; and what may be done to its files."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder = folder / "store"
        self.rng = rng
        self.oracle = Oracle()
        self.keys: KeyProvider | None = single_key(bytes(32)) if rng.random() < 0.3 else None
        codec = rng.choice(["none", "zstd"])
        self.times = rng.choice([1, 1, 1, 1, 33])  # many blocks are so long that they are written directly
        segment_bytes, page_cache = self.times * 96 * KIB, rng.random() < 0.3
        self.settings: Config = config(
            folder,
            tier("top", bytes_max=self.times * 640 * KIB, segment_bytes=segment_bytes, page_cache=page_cache),
            tier("low", bytes_max=self.times * 16 * MIB, segment_bytes=segment_bytes, codec=codec),
            value_bytes_max=self.times * 64 * KIB,
        )
        self.index_is_older = False
        self.index_is_spoilt = False  # in its pages, which have no checksums: what is newer may be hidden

    def open(self, events: list[Event] | None = None) -> Store:
        listeners = [] if events is None else [events.append]
        return Store.open(self.settings, background=False, listeners=listeners, keys=self.keys)

    def live(self) -> None:
        """Fill it, copy the index, and go on."""
        self._write(KEYS)
        shutil.copytree(self.folder / "index", self.folder / "older index")
        self._write(self.rng.sample(KEYS, 6))

    def _write(self, keys: list[bytes]) -> None:
        with self.open() as store:
            for key in keys:
                value = None if self.rng.random() < 0.15 else noise(self.rng.randrange(40), self._size())
                self.oracle.set(key, value)
                if value is None:
                    store.delete(key)
                else:
                    store.put(key, value)
            store.flush()
            self.oracle.flushed()
            settle(store)

    def _size(self) -> int:
        size = self.rng.choice([0, 100, 5000, BLOCK_BYTES, 3 * BLOCK_BYTES])
        return size if self.times == 1 else size * self.times + size // 7  # such that no group ends with a page

    # -- harm ---------------------------------------------------------------------------------------

    def harm(self) -> str:
        """One kind, by chance; its name."""
        kinds: list[Callable[[], None]] = [
            self.flip_bits,
            self.cut_segment,
            self.swap_ranges,
            self.copy_range,
            self.append_range,
            self.swap_segments,
            self.copy_segment,
            self.delete_segment,
            self.delete_index,
            self.bring_back_index,
            self.damage_label,
            self.damage_config,
            self.change_running,
        ]
        kind = self.rng.choice(kinds)
        if self._segments():
            kind()
        return kind.__name__

    def _segments(self) -> list[Path]:
        return sorted(file for file in self.folder.glob("*/*.seg") if file.stat().st_size > 4 * _UNIT)

    def _segment(self) -> Path:
        return self.rng.choice(self._segments())

    def flip_bits(self) -> None:
        file = self._segment()
        for _ in range(self.rng.choice([1, 1, 8])):
            flip(file, self.rng.randrange(file.stat().st_size))

    def cut_segment(self) -> None:
        file = self._segment()
        os.truncate(file, self.rng.randrange(file.stat().st_size))

    def _range(self, size: int) -> slice:
        length = self.rng.randint(1, size // _UNIT // 2) * _UNIT
        start = self.rng.randrange(0, size - length + 1, _UNIT)
        return slice(start, start + length)

    def swap_ranges(self) -> None:
        """Of one length: whole records, or anything else."""
        file = self._segment()
        raw = bytearray(file.read_bytes())
        one = self._range(len(raw) // 2)
        two = slice(one.start + len(raw) // 2 // _UNIT * _UNIT, one.stop + len(raw) // 2 // _UNIT * _UNIT)
        raw[one], raw[two] = raw[two], raw[one]
        file.write_bytes(raw)

    def copy_range(self) -> None:
        """A write that went astray, over something else."""
        source, target = self._segment(), self._segment()
        raw, over = source.read_bytes(), bytearray(target.read_bytes())
        what = raw[self._range(len(raw))][: len(over)]
        at = self.rng.randrange(0, len(over) - len(what) + 1, _UNIT)
        over[at : at + len(what)] = what
        target.write_bytes(over)

    def append_range(self) -> None:
        raw = self._segment().read_bytes()
        with self._segment().open("ab") as file:
            file.write(raw[self._range(len(raw))])

    def swap_segments(self) -> None:
        one, two = self._segment(), self._segment()
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)

    def copy_segment(self) -> None:
        copied = self._segment().read_bytes()
        self._segment().with_name(f"{self.rng.randint(1, 40):08d}.seg").write_bytes(copied)

    def delete_segment(self) -> None:
        self._segment().unlink()

    def delete_index(self) -> None:
        shutil.rmtree(self.folder / "index", ignore_errors=True)
        self.index_is_older = True

    def bring_back_index(self) -> None:
        """As it was before the latest writes."""
        shutil.rmtree(self.folder / "index", ignore_errors=True)
        shutil.copytree(self.folder / "older index", self.folder / "index")
        self.index_is_older = True

    def damage_label(self) -> None:
        """Refused, as long as it lasts; the file then comes back as it was."""
        file = self.rng.choice([self.folder / "STORE", self._segment().with_name("TIER")])
        whole = file.read_bytes()
        match self.rng.randrange(4):
            case 0:
                flip(file, self.rng.randrange(len(whole)))
            case 1:
                os.truncate(file, self.rng.randrange(len(whole)))
            case 2:
                file.write_bytes(self.rng.randbytes(len(whole)))
            case _:
                file.unlink()
        _check_refused(self.open, StoreError)
        file.write_bytes(whole)
        file.chmod(0o600)

    def damage_config(self) -> None:
        """Refused if the store is opened by its folder; else it is written anew."""
        file = self.folder / "CONFIG"
        os.truncate(file, self.rng.randrange(file.stat().st_size))
        _check_refused(lambda: Store.open(self.folder, keys=self.keys), ConfigError)

    def change_running(self) -> None:
        """The mark of a session that did not end: gone, of another boot, of this one, or nonsense."""
        file = self.folder / RUNNING_FILE
        file.unlink(missing_ok=True)
        match self.rng.randrange(4):
            case 0:
                file.write_bytes(b"an earlier boot")
            case 1:
                running.start(OsFileSystem(), str(self.folder), self.rng.randrange(5))
            case 2:
                file.write_bytes(self.rng.randbytes(self.rng.randrange(400)))

    # -- checks -------------------------------------------------------------------------------------

    def check(self) -> Counter[str]:
        events: list[Event] = []
        with self.open(events) as store:
            missing = [key for key in KEYS if self._is_missing(store, key)]
            settle(store)
            if missing and not signs(store, events):
                raise LostBlock(f"{missing} went without a sign")
            self.store_again(store)
        with self.open() as store:
            self.check_stored_again(store)
        return Counter(blocks_damaged=len(missing))

    def _is_missing(self, store: Store, key: bytes) -> bool:
        """Whether there is no value where there was one; any value must be right."""
        hit = store.get(key)
        (current,) = self.oracle.may_be[key]
        if not isinstance(hit, Hit):
            return current is not None
        value = value_of(hit)
        if value != current and not (self.index_is_older and value in self.oracle.ever[key]):
            raise WrongBytes(f"{key!r}: {value[:4].hex()}, {len(value)} bytes")
        return False

    def store_again(self, store: Store) -> None:
        for key in KEYS:
            store.put(key, again(key))
        store.flush()
        self.check_stored_again(store)

    def check_stored_again(self, store: Store) -> None:
        for key in KEYS:
            hit = store.get(key)
            if not isinstance(hit, Hit):
                raise LostBlock(f"{key!r} cannot be stored again: {hit.reason}")
            if (value := value_of(hit)) != again(key):
                is_older = self.index_is_spoilt and value in self.oracle.ever[key]
                raise (LostBlock if is_older else WrongBytes)(f"{key!r}, stored again")


def again(key: bytes) -> bytes:
    """What a key is given once all was looked at."""
    return noise(("again", key), 5000)


def signs(store: Store, events: list[Event]) -> int:
    """How often a store said that something was damaged."""
    stats = store.stats()
    told = sum(isinstance(event, BlockQuarantined | Recovered | SegmentLost) for event in events)
    return told + stats.misses.get("corrupt", 0) + sum(stats.counters.get(sign, 0) for sign in _SIGNS)


def _check_refused(opening: Callable[[], Store], error: type[Exception]) -> None:
    try:
        opening().close()
    except error:
        return
    raise AssertionError("what is damaged was believed")


def run_damage(case: Case) -> Counter[str]:
    rng = random.Random(case.seed)
    damaged = Damaged(case.folder, rng)
    with counted() as direct:
        damaged.live()
    done = [damaged.harm() for _ in range(rng.randint(1, 4))]
    try:
        return damaged.check() + Counter(done) + Counter(long_blocks=int(damaged.times > 1)) + direct
    except Exception as e:
        raise AssertionError(f"after {', '.join(done)}") from e
