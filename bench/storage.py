"""The store against the same bytes moved by hand: memcpy, write and fsync, preadv, and fio where it is there."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from bench import fio
from bench.measure import alternate, alternate_with_peers, read_files, spread, timed
from bench.stores import config_of, hit
from bench.workloads import MIB, Payload, payloads, stamped
from kvtier import Config, Hit, Store
from kvtier_adapters.llama_cpp.demo import page_cache

BLOCK_BYTES = 2 * MIB
_READ_BYTES = 8 * MIB


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds for one block (put, RAM), bytes a second for many (flush, get_many); blocks of 2 MiB."""
    count, repeats = (32, 3) if quick else (128, 7)
    blocks = payloads(count, BLOCK_BYTES)
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch:
        folder = Path(scratch)
        say("put against memcpy")
        put = _put(folder / "put", blocks, 2 * repeats)
        say("flush against write and fsync")
        flush = _flush(folder / "flush", blocks, repeats)
        say("RAM tier")
        ram = _ram(folder / "ram", blocks[:16], 20 * repeats)
        say("get_many against preadv")
        reads = _reads(folder / "read", folder / "raw", blocks, repeats)
    return {"block_bytes": BLOCK_BYTES, "blocks": count, "put": put, "flush": flush, "ram": ram, **reads}


def _open(folder: Path) -> Store:
    return Store.open(Config.from_dict({"store": {"path": str(folder)}, "tier": [_TIER]}))


_TIER = {"name": "disk", "kind": "ssd", "bytes_max": "16GiB"}


def _put(folder: Path, blocks: list[Payload], rounds: int) -> dict[str, Any]:
    """Seconds for one ``put``, for one copy into new memory, and for one into memory in use."""
    samples: dict[str, list[float]] = {"put": [], "memcpy_new": [], "memcpy_warm": []}
    target = np.zeros(BLOCK_BYTES, dtype=np.uint8)
    kept: list[bytes] = []  # what put copies stays in memory too
    with _open(folder) as store:
        for n in range(rounds):
            for i, block in enumerate(blocks[:16]):
                data = stamped(block, n).data
                samples["put"].append(timed(partial(store.put, b"%d.%d" % (n, i), data)))
                samples["memcpy_new"].append(timed(lambda data=data: kept.append(bytes(data))))  # type: ignore[misc]
                samples["memcpy_warm"].append(timed(partial(np.copyto, target, block)))
            store.flush()
    found: dict[str, Any] = {name: spread(s) for name, s in samples.items()}
    for arm in ("memcpy_new", "memcpy_warm"):
        found[f"put_to_{arm}"] = found["put"]["median"] / found[arm]["median"]
    return found


def _flush(folder: Path, blocks: list[Payload], repeats: int) -> dict[str, Any]:
    """Bytes a second from the first put to the end of ``flush``, and by plain writes with one fsync.

    The plain files are kept, as the store keeps its own: memory that the system hands out anew costs more.
    """
    numbers = count(1)
    total = len(blocks) * BLOCK_BYTES
    with _open(folder) as store:

        def kvtier() -> float:
            n = next(numbers)
            begin = time.perf_counter()
            for i, block in enumerate(blocks):
                store.put(b"%d.%d" % (n, i), stamped(block, n).data)
            store.flush()
            return total / (time.perf_counter() - begin)

        def plain() -> float:
            return total / timed(lambda: _write_file(folder / f"plain{next(numbers)}", blocks))

        samples = alternate({"kvtier": kvtier, "plain": plain}, repeats)
    found: dict[str, Any] = {name: spread(s) for name, s in samples.items()}
    return {**found, "kvtier_to_plain": found["kvtier"]["median"] / found["plain"]["median"]}


def _ram(folder: Path, blocks: list[Payload], repeats: int) -> dict[str, Any]:
    """Seconds to get one block that is in RAM: as it is, or into the caller's memory, and a memcpy into the same."""
    target = np.zeros(BLOCK_BYTES, dtype=np.uint8)
    with _open(folder) as store:
        for i, block in enumerate(blocks):
            store.put(b"%d" % i, block.data)
        store.flush()

        def each(work: Callable[[int], object]) -> Callable[[], float]:
            return lambda: statistics.median(timed(partial(work, i)) for i in range(len(blocks)))

        arms = {
            "get": each(lambda i: store.get(b"%d" % i)),
            "get_into": each(lambda i: store.get_into(b"%d" % i, target.data)),
            "memcpy": each(lambda i: np.copyto(target, blocks[i])),
        }
        samples = alternate(arms, repeats)
        copied = {"RAM": _copied_bytes(store, b"0")}
    with Store.open(config_of(folder / "queue"), background=False) as store:  # which writes when it is closed
        store.put(b"pending", blocks[0].data)
        copied["the write queue"] = _copied_bytes(store, b"pending")
    found: dict[str, Any] = {name: spread(s) for name, s in samples.items()}
    ratio = found["memcpy"]["median"] / found["get_into"]["median"]
    return {**found, "memcpy_to_get_into": ratio, "get_copies_bytes": copied}


def _copied_bytes(store: Store, key: bytes) -> int:
    """Bytes that ``get`` of a block in memory takes: all of them, if a second one gives other memory; else what it
    allocates."""
    one, other = (np.frombuffer(hit(store.get(key)).buffers[0], dtype=np.uint8) for _ in range(2))
    return allocated_bytes(lambda: store.get(key)) if one.ctypes.data == other.ctypes.data else one.nbytes


def allocated_bytes(work: Callable[[], object]) -> int:
    """The most that Python had allocated beyond what there was before, while ``work`` ran the second time."""
    work()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def _reads(folder: Path, raw: Path, blocks: list[Payload], repeats: int) -> dict[str, Any]:
    """Bytes a second from a store that was just opened, its files in the page cache or not, and by ``preadv``."""
    keys = [b"%d" % i for i in range(len(blocks))]
    total = len(blocks) * BLOCK_BYTES
    _write_file(raw, blocks)
    with _open(folder) as store:
        for key, block in zip(keys, blocks, strict=True):
            store.put(key, block.data)
    target = np.zeros(BLOCK_BYTES, dtype=np.uint8)
    means = set()

    def from_store(read: Callable[[Store], object]) -> float:
        with _open(folder) as store:
            return total / timed(lambda: read(store))

    def many(store: Store, keep: bool = True) -> None:
        if sum(h.nbytes for h in store.get_many(keys, keep=keep) if isinstance(h, Hit)) != total:
            raise RuntimeError("blocks are missing")

    def into(store: Store) -> None:
        if not all(store.get_into(key, target.data) for key in keys):
            raise RuntimeError("blocks are missing")

    arms: dict[str, Callable[[], float]] = {
        "get_many": lambda: from_store(many),
        "get_many_once": lambda: from_store(partial(many, keep=False)),
        "get_into": lambda: from_store(into),
        "preadv_new": lambda: total / timed(lambda: _read_file(raw, total, in_new_memory=True)),
        "preadv_reused": lambda: total / timed(lambda: _read_file(raw, total, in_new_memory=False)),
    }

    def cold(arm: Callable[[], float]) -> float:
        means.add(page_cache.drop([folder, raw]))
        return arm()

    for arm in arms.values():
        arm()  # once unmeasured
    read_files(folder)
    warm = alternate(arms, repeats)
    no_fio = fio.why_not()
    if no_fio is None:
        arms["fio"] = partial(fio.sequential_read, raw)
        arms["fio_direct"] = partial(fio.sequential_read, raw, direct=True)
    peers = ["fio", "fio_direct"]
    dropped, failed = alternate_with_peers({n: partial(cold, arm) for n, arm in arms.items()}, peers, repeats)
    return {
        "read_warm": _compared_reads(warm),
        "read_cold": _compared_reads(dropped),
        "no_fio": no_fio or failed.get("fio"),
        "page_cache": ", ".join(sorted(means)),
    }


def _compared_reads(samples: dict[str, list[float]]) -> dict[str, Any]:
    found: dict[str, Any] = {name: spread(s) for name, s in samples.items()}
    return {
        **found,
        "get_many_once_to_preadv_reused": found["get_many_once"]["median"] / found["preadv_reused"]["median"],
        "get_many_to_preadv_new": found["get_many"]["median"] / found["preadv_new"]["median"],
        "get_into_to_preadv_reused": found["get_into"]["median"] / found["preadv_reused"]["median"],
    }


def _write_file(path: Path, blocks: list[Payload]) -> None:
    with path.open("wb", buffering=0) as file:
        for block in blocks:
            file.write(block.data)
        os.fsync(file.fileno())


def _read_file(path: Path, total: int, *, in_new_memory: bool) -> None:
    """Read the file in pieces of 8 MiB, all into the same memory or each into its own, which is kept."""
    kept = []
    fd = os.open(path, os.O_RDONLY)
    try:
        buffer = np.empty(_READ_BYTES, dtype=np.uint8)
        for at in range(0, total, _READ_BYTES):
            if in_new_memory:
                buffer = np.empty(_READ_BYTES, dtype=np.uint8)
                kept.append(buffer)
            if os.preadv(fd, [buffer.data], at) != min(_READ_BYTES, total - at):
                raise RuntimeError("short read")
    finally:
        os.close(fd)
