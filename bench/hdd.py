"""Restores from a hard disk whose blocks were half replaced, against reading as many bytes from end to end.

Two disks: a loop device that the kernel throttles (:mod:`bench.throttled_disk`), where seconds are measured, and a
formula (:mod:`bench.modelled_disk`), where they are counted and every read that does not go on where the last one
ended costs a seek. Two places of the tier: below an SSD, from which chains come as they are demoted, and alone, where
the turns of conversations that go on at the same time lie between one another.

*Sequential* reads a plain file with the help of the system's own readahead; *unaided* does so by the calls that the
store makes, past the system's cache. The difference shows on the throttled disk only, which counts requests.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import throttled_disk
from bench.measure import alternate, spread, timed
from bench.modelled_disk import BYTES_PER_S, SEEK_S, ModelledDisk
from bench.workloads import MIB, SEED, payloads, stamped
from kvtier import BlockState, Config, Explanation, Hit, Store
from kvtier.fs import FileSystem, OsFileSystem
from kvtier_adapters.llama_cpp.demo import page_cache

_READ_BYTES = 8 * MIB
_CHURN = 0.5
GOAL = 0.8


class Shape(NamedTuple):
    """Sizes of the tiers, and of what is in them."""

    block_bytes: int = MIB
    turn_blocks: tuple[int, int] = (8, 16)
    turns: int = 6
    active: int = 8  #: conversations that go on at the same time
    ssd_bytes: int = 512 * MIB
    hdd_bytes: int = 1024 * MIB
    segment_bytes: int = 128 * MIB
    restored: int = 5  #: chains


QUICK = Shape(turn_blocks=(4, 8), ssd_bytes=256 * MIB, hdd_bytes=512 * MIB, segment_bytes=64 * MIB, restored=4)


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds, reads and bytes of restores, and of reading the same bytes from a plain file."""
    shape, repeats = (QUICK, 2) if quick else (Shape(), 5)
    rows = []
    for place in ("below an ssd", "alone"):
        say(f"{place}, by the formula")
        rows.append({"disk": "model", "place": place, **_modelled(shape, place)})
    if reason := throttled_disk.why_not():
        say(f"no throttled disk: {reason}")
    else:
        for place in ("below an ssd", "alone"):
            say(f"{place}, throttled by the kernel")
            rows.append({"disk": "throttled", "place": place, **_throttled(shape, place, repeats)})
    limits = throttled_disk.Limits()
    model = {"bytes_per_s": BYTES_PER_S, "seek_s": SEEK_S}
    return {"rows": rows, "throttle": limits._asdict(), "model": model, "no_throttle": reason, "goal": GOAL}


# -- the two disks -------------------------------------------------------------------------------------------


def _modelled(shape: Shape, place: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch:
        folder, disk_folder = Path(scratch) / "store", Path(scratch) / "disk"
        disk = ModelledDisk(disk_folder)
        config = config_of(folder, disk_folder / "tier", shape, place)
        chains = churned(config, disk, shape)
        files = _plain_files(disk_folder, chains, shape, disk)
        measured = {}
        for arm, work in _arms(config, disk, chains, files).items():
            before = disk.busy_s, disk.reads, disk.seeks, disk.bytes_read
            work()
            took = disk.busy_s - before[0]
            counts = (disk.reads - before[1], disk.seeks - before[2], disk.bytes_read - before[3])
            measured[arm] = {"s": spread([took]), **dict(zip(("reads", "seeks", "bytes"), counts, strict=True))}
    return _compared(chains, shape, measured)


def _throttled(shape: Shape, place: str, repeats: int) -> dict[str, Any]:
    nbytes = 2 * shape.hdd_bytes + 512 * MIB
    with (
        tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch,
        throttled_disk.throttled_disk(Path(scratch), nbytes) as disk,
    ):
        fs = OsFileSystem()
        config = config_of(Path(scratch) / "store", disk.folder / "tier", shape, place)
        chains = churned(config, fs, shape)
        files = _plain_files(disk.folder, chains, shape, fs)
        traffic: dict[str, throttled_disk.Traffic] = {}

        def cold(arm: str, work: Callable[[], None]) -> float:
            page_cache.drop([disk.folder])
            before = disk.traffic()
            took = timed(work)
            traffic[arm] = disk.traffic().since(before)
            return took

        arms = _arms(config, fs, chains, files)
        samples = alternate({arm: partial(cold, arm, work) for arm, work in arms.items()}, repeats)
        measured = {a: {"s": spread(samples[a]), "reads": t.reads, "bytes": t.nbytes} for a, t in traffic.items()}
    return _compared(chains, shape, measured)


def _compared(chains: list[list[bytes]], shape: Shape, measured: dict[str, Any]) -> dict[str, Any]:
    blocks = sum(map(len, chains))
    took = {arm: m["s"]["median"] for arm, m in measured.items()}
    ratios = {f"of_{arm}": took[arm] / took["restore"] for arm in ("sequential", "unaided")}
    return {"chains": len(chains), "blocks": blocks, "block_bytes": shape.block_bytes, **measured, **ratios}


# -- the work ------------------------------------------------------------------------------------------------


def config_of(folder: Path, hdd: Path, shape: Shape, place: str) -> Config:
    """A store without RAM, whose hard disk is in the folder ``hdd``; restores leave everything where it is."""
    sizes = {"segment_bytes": shape.segment_bytes, "promotion": "never"}
    tiers = [{"name": "hdd", "kind": "hdd", "path": str(hdd), "bytes_max": shape.hdd_bytes, **sizes}]
    if place != "alone":
        tiers.insert(0, {"name": "ssd", "kind": "ssd", "bytes_max": shape.ssd_bytes, **sizes})
    store = {"path": str(folder), "value_bytes_max": 8 * MIB}
    return Config.from_dict({"store": store, "ram": {"bytes_max": 0}, "tier": tiers})


def churned(config: Config, fs: FileSystem, shape: Shape, *, background: bool = True) -> list[list[bytes]]:
    """Fill the store with conversations until the hard disk is full and half of its blocks were replaced; some chains
    that are there as a whole, the oldest, the newest, and from between. Without ``background`` what is written together
    does not depend on how fast anything is."""
    made: list[list[bytes]] = []
    with Store.open(config, fs=fs, background=background) as store:
        full_at = target = 0
        there = Explanation(BlockState.STORED, "hdd")
        for chain in _conversations(store, shape):
            made.append(chain)
            store.flush()
            stats = store.stats()
            evicted = stats.counters.get("evictions", 0)
            if evicted and not full_at:
                full_at = evicted
                target = full_at + int(_CHURN * (stats.tiers[-1].bytes_live // shape.block_bytes))
            if full_at and evicted >= target:
                break
        store.flush()
        whole = [c for c in made if all(store.explain(key) == there for key in c)]
    if len(whole) < shape.restored:
        raise RuntimeError(f"only {len(whole)} chains are left on the hard disk")
    return [whole[i * (len(whole) - 1) // (shape.restored - 1)] for i in range(shape.restored)]


def _conversations(store: Store, shape: Shape) -> Iterator[list[bytes]]:
    """Without end: put the turns of some conversations at a time, by chance, and give each when it has ended."""
    chance = random.Random(SEED)
    payload = payloads(1, shape.block_bytes)[0]
    active: list[list[bytes]] = []
    turns: list[int] = []
    number = 0
    while True:
        if len(active) < shape.active:
            active.append([])
            turns.append(0)
        which = chance.randrange(len(active))
        chain = active[which]
        for _ in range(chance.randint(*shape.turn_blocks)):
            number += 1
            key = b"%d" % number
            store.put(key, stamped(payload, number).tobytes(), parent=chain[-1] if chain else None)
            chain.append(key)
        turns[which] += 1
        if turns[which] == shape.turns:
            del active[which], turns[which]
            yield chain


def _plain_files(folder: Path, chains: list[list[bytes]], shape: Shape, fs: FileSystem) -> list[tuple[str, int]]:
    """As many bytes as each chain has, in a file of their own on the same disk."""
    files = []
    payload = payloads(1, shape.block_bytes)[0]
    for i, chain in enumerate(chains):
        path = str(folder / f"plain{i}")
        fd = fs.open(path, create=True)
        for n in range(len(chain)):
            fs.write_at(fd, [payload.data], n * shape.block_bytes)
        fs.sync_data(fd)
        fs.close(fd)
        files.append((path, len(chain) * shape.block_bytes))
    return files


def _arms(
    config: Config, fs: FileSystem, chains: list[list[bytes]], files: list[tuple[str, int]]
) -> dict[str, Callable[[], None]]:
    buffer = np.empty(_READ_BYTES, dtype=np.uint8)

    def restore() -> None:
        with Store.open(config, fs=fs, read_only=True) as store:
            for chain in chains:
                if sum(isinstance(hit, Hit) for hit in store.get_many(chain, keep=False)) != len(chain):
                    raise RuntimeError("blocks are missing")

    def sequential(aided: bool) -> None:
        for path, size in files:
            fd = fs.open(path)
            if not aided:
                fs.expect_jumps(fd)
                fs.bypass_cache(fd)
            for at in range(0, size, _READ_BYTES):
                fs.read_at(fd, [buffer.data[: min(_READ_BYTES, size - at)]], at)
            fs.close(fd)

    return {"restore": restore, "sequential": partial(sequential, True), "unaided": partial(sequential, False)}
