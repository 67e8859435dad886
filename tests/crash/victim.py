"""The process that gets killed: it puts, deletes and reads with several threads, and says what it does."""

from __future__ import annotations

import os
import random
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

from kvtier import Config, FlushError, Hit, KeyProvider, Store, single_key
from kvtier.fs import FileSystem, OsFileSystem, PortableFileSystem
from tests.crash.oracle import tell_of_losses
from tests.direct import LONG, counted
from tests.stores import noise, value_of

WRITERS, KEYS = 2, 100
VERSIONS = LONG_VERSIONS = 1 << 20


class Manner(NamedTuple):
    """How the victim keeps its store: whether holes are punched in segments, whether it is encrypted, whether what
    lives in sparse segments is copied, whether its tiers take in chains only, and whether some of its blocks are long,
    which are written and read directly."""

    punches: bool = True
    encrypted: bool = False
    copies: bool = False
    choosy: bool = False
    long: bool = False

    def fs(self) -> FileSystem:
        return OsFileSystem() if self.punches else PortableFileSystem()

    def policies(self) -> dict[str, object]:
        return {
            "compaction": "copy" if self.copies else "reclaim",
            "compaction_dead_ratio": 0.1,
            "admission": "min-chain" if self.choosy else "always",
        }

    def keys(self) -> KeyProvider | None:
        return single_key(bytes(32)) if self.encrypted else None


class Said(NamedTuple):
    """``put`` and ``delete`` are said before they are asked for, ``flushed`` and ``failed`` after, ``dropped`` before
    the store gives a block up; ``direct_writes`` and ``direct_reads`` after there was one."""

    what: str
    writer: int
    key: bytes = b""
    version: int = 0


def key_of(writer: int, number: int) -> bytes:
    return f"w{writer}-{number:02d}".encode()


def value(key: bytes, version: int) -> bytes:
    """Says which it is, so that a reader without the oracle knows a wrong byte too. Some contents are shared, and those
    of versions from :data:`LONG_VERSIONS` on are long."""
    size = random.Random(version).choice(LONG if version >= LONG_VERSIONS else [0, 50, 16_000, 24_000, 31_000])
    name = key if version % 3 else b"shared"
    return b"%s %d " % (name, version) + noise((name, version), size)


def is_value_of(key: bytes, data: bytes) -> bool:
    name, version, _ = data.split(b" ", 2)
    return name in (key, b"shared") and data == value(key, int(version))


def names_of(store: Store) -> dict[int, bytes]:
    """Every key, by its block id."""
    keys = [key_of(writer, number) for writer in range(WRITERS) for number in range(KEYS)]
    return {store._wanted(key, b"").block_id: key for key in keys}


def dropped(key: bytes) -> Said:
    return Said("dropped", int(key[1:2]), key)


def main(settings: Config, pipe: Connection, seed: int, manner: Manner) -> None:
    threading.excepthook = give_up
    lock = threading.Lock()
    by_id: dict[int, bytes] = {}

    def say(said: Said) -> None:
        with lock:
            pipe.send(said)

    known = threading.Event()

    def say_dropped(block_id: int) -> None:
        known.wait()
        say(dropped(by_id[block_id]))

    tell_of_losses(None, say_dropped)
    with counted(lambda what: say(Said(what, 0))), Store.open(settings, fs=manner.fs(), keys=manner.keys()) as store:
        by_id.update(names_of(store))
        say(Said("opened", 0))
        known.set()
        for writer in range(WRITERS):
            threading.Thread(target=write_for_ever, args=(store, say, writer, seed, manner.long), daemon=True).start()
        read_for_ever(store, seed)


def give_up(args: threading.ExceptHookArgs) -> None:
    """A thread failed: so has the process, which the parent will notice."""
    traceback.print_exception(args.exc_value)
    os._exit(1)


def write_for_ever(store: Store, say: Callable[[Said], None], writer: int, seed: int, long: bool) -> None:
    rng = random.Random(seed * WRITERS + writer)
    latest: dict[bytes, int] = {}
    while True:
        for _ in range(rng.randint(1, 8)):
            number = rng.randrange(KEYS)
            key = key_of(writer, number)
            if rng.random() < 0.2:
                latest.pop(key, None)
                say(Said("delete", writer, key))
                store.delete(key)
            else:
                is_renewed = key in latest and rng.random() < 0.2  # the same once more, with another time to live
                version = latest[key] = latest[key] if is_renewed else drawn(rng, long)
                ttl = rng.choice([0, 0, 86_400, 1_000_000])  # longer than all of this takes
                say(Said("put", writer, key, version))
                store.put(key, value(key, version), parent=key_of(writer, number // 2), ttl=ttl)
        try:
            store.flush()
        except FlushError:  # a reader that dawdles makes the index grow, which can fill so small a tier
            say(Said("failed", writer))
        else:
            say(Said("flushed", writer))


def drawn(rng: random.Random, long: bool) -> int:
    return rng.randrange(VERSIONS) + (LONG_VERSIONS if long and rng.random() < 0.2 else 0)


def read_for_ever(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    while True:
        key = key_of(rng.randrange(WRITERS), rng.randrange(KEYS))
        hit = store.get(key)
        if isinstance(hit, Hit):
            assert is_value_of(key, value_of(hit)), f"{key!r}: wrong bytes while running"
