"""A process in which one operation runs so many times, for strace to count its system calls: ``python -m
tests.faults.calls FOLDER OPERATION TIMES``. No background thread: what is counted is the operation's alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from kvtier import Store
from tests.stores import KIB, MIB, config, names, noise, tier

BLOCK = 64 * KIB


def _turn(store: Store, number: int) -> None:
    for i in range(4):
        store.put(b"turn %d.%d" % (number, i), noise((number, i), KIB))
    store.flush()


_TARGET = bytearray(BLOCK)

OPERATIONS: dict[str, Callable[[Store, int], object]] = {
    "get from RAM": lambda store, n: store.get(b"k0000"),
    "get_into from disk": lambda store, n: store.get_into(b"k0001", _TARGET),
    "match": lambda store, n: store.match(names(4)),
    "put and flush": _turn,
}


def main(folder: str, operation: str, times: int) -> None:
    big = tier(bytes_max=64 * MIB, segment_bytes=32 * MIB)
    with Store.open(config(Path(folder), big, ram=2 * BLOCK), background=False) as store:
        for key in reversed(names(4)):  # the last ones stay in RAM
            store.put(key, noise(key, BLOCK))
        store.flush()
        store.get(b"k0000")
        for number in range(times):
            OPERATIONS[operation](store, number)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
