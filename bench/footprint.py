"""What a block costs beside its bytes: in the index on disk, and in memory. Counted, not timed.

*Index*: a store of blocks with keys of 32 bytes, written in bulk or turn by turn (a flush for every ten blocks). *Live*
are the pages that hold entries, *file* is what the index occupies, free pages included, and *entries* are the bytes of
keys and values alone. *Memory*: what a policy says of itself when it has held so many blocks for long, and what Python
has allocated for a store that evicts from a disk tier of so many.
"""

from __future__ import annotations

import gc
import random
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb

from bench.measure import folder_bytes
from bench.workloads import SEED
from kvtier import Config, Store
from kvtier.policy.registry import EVICTION

_PAYLOAD_BYTES = 2048
_CHAIN_BLOCKS = 100
_TURN_BLOCKS = 10
_NODE_BYTES = 8 + 2  # LMDB's, of each entry: its header, and its place in the page
_FULL = 0.9


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Bytes a block, by number of blocks."""
    sizes = (1_000, 10_000) if quick else (10_000, 100_000)
    index = []
    memory = []
    for blocks in sizes:
        for way, flush_every in (("in bulk", blocks), ("turn by turn", _TURN_BLOCKS)):
            say(f"index of {blocks:,} blocks, {way}")
            with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder:
                _fill(Path(folder), blocks, flush_every)
                index.append({"blocks": blocks, "way": way, **_index(Path(folder), blocks)})
                if flush_every == blocks:
                    say(f"memory of a store of {blocks:,} blocks")
                    engine = _engine_bytes(Path(folder))
        say(f"memory of the policies, {blocks:,} blocks")
        policies = {name: _policy_bytes(name, blocks) for name in EVICTION}
        memory.append({"blocks": blocks, "store": engine, "policies": policies})
    return {"payload_bytes": _PAYLOAD_BYTES, "index": index, "memory": memory}


def _open(folder: Path, bytes_max: int) -> Store:
    tier = {"name": "disk", "kind": "ssd", "bytes_max": bytes_max, "segment_bytes": "256KiB"}
    store = {"path": str(folder), "value_bytes_max": "64KiB"}
    return Store.open(Config.from_dict({"store": store, "ram": {"bytes_max": 0}, "tier": [tier]}))


def _fill(folder: Path, blocks: int, flush_every: int) -> None:
    """Chains of blocks, with keys by chance as hashes are."""
    rng = random.Random(SEED)
    with _open(folder, 16 << 30) as store:
        parent = None
        for i in range(blocks):
            key = rng.randbytes(32)
            store.put(key, rng.randbytes(_PAYLOAD_BYTES), parent=parent if i % _CHAIN_BLOCKS else None)
            parent = key
            if (i + 1) % flush_every == 0:
                store.flush()
        store.flush()


# -- on disk -------------------------------------------------------------------------------------------------


def _index(folder: Path, blocks: int) -> dict[str, Any]:
    """Of the index of a store that is closed: bytes a block, as a whole and by table."""
    file = next(folder.rglob("data.mdb"))
    with lmdb.open(str(file.parent), readonly=True, lock=False, max_dbs=8) as env, env.begin() as txn:
        page = env.stat()["psize"]
        tables = {}
        for name in [bytes(key) for key, _ in txn.cursor()]:
            db = env.open_db(name, txn=txn, create=False)
            stat = txn.stat(db)
            pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            content = sum(len(key) + len(value) + _NODE_BYTES for key, value in txn.cursor(db))
            if pages:
                tables[name.decode()] = {"live": pages * page / blocks, "entries": content / blocks}
    live, entries = (sum(t[what] for t in tables.values()) for what in ("live", "entries"))
    return {"live": live, "entries": entries, "file": folder_bytes(file) / blocks, "tables": tables}


# -- in memory -----------------------------------------------------------------------------------------------


def _policy_bytes(name: str, blocks: int) -> float:
    """Of a policy that has held so many blocks for long: its arrays."""
    rng = random.Random(SEED)
    policy = EVICTION[name]()
    parent = 0
    for clock in range(1, 2 * blocks):
        if len(policy) == blocks:
            policy.pop()
        block = rng.getrandbits(63) + 1
        policy.add(block, parent, clock, 1 << 20)
        parent = block if clock % _CHAIN_BLOCKS else 0
    nbytes: int = policy.nbytes  # type: ignore[attr-defined]
    return nbytes / blocks


def _engine_bytes(folder: Path) -> float:
    """Of a store whose cap is too small for what it holds, once it has evicted: all that Python has allocated, for
    each block that is left."""
    with _open(folder, 16 << 30) as store:
        cap = int(_FULL * store.stats().bytes_on_disk)
    gc.collect()
    tracemalloc.start()
    try:
        with _open(folder, cap) as store:
            store.put(b"one more", bytes(_PAYLOAD_BYTES))
            store.flush()
            stats = store.stats()
            if not stats.counters.get("evictions", 0):
                raise RuntimeError("nothing was evicted")
            gc.collect()
            return tracemalloc.get_traced_memory()[0] / stats.blocks
    finally:
        tracemalloc.stop()
