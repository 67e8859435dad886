"""What calls cost in a store of many blocks: 10,000 to 10,000,000.

The first 10,000 are real: put and flushed, with keys like hashes, and read here. The others are entries of the index
alone, written by the engine's own index transactions in the order of their ids, each with a content of its own, because
putting ten million blocks takes an hour: what a lookup walks through is as large, and nothing of them is read.
The stores are open side by side, so that their arms can alternate.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from bench.measure import alternate, folder_bytes, spread, timed, too_little_disk
from bench.stores import config_of, hit
from bench.workloads import SEED
from kvtier import Store
from kvtier.index.lmdb_index import LmdbIndex
from kvtier.tiers.census import Census
from kvtier_adapters.llama_cpp.demo import page_cache

REAL = 10_000
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
_PAYLOAD_BYTES = 512
_ENTRIES_A_COMMIT = 100_000
_INDEX_BYTES_MAX = 64 << 30
_BYTES_A_BLOCK = 500  # on disk, the index's: whether there is room is asked before
_CALLS = 2000
_TURN_BLOCKS = 64


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds for one call, by blocks in the store: median of many calls, of which there are several rounds."""
    return measure(SIZES[:2] if quick else SIZES, REAL, 3 if quick else 7, say)


def measure(sizes: Sequence[int], real: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """As :func:`run`, with stores of these many blocks, of which the first ``real`` are read."""
    rng = random.Random(SEED)
    keys = [rng.randbytes(32) for _ in range(real)]
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch, ExitStack() as stack:
        stores: dict[int, Store] = {}
        means = set()
        for blocks in sizes:
            folder = Path(scratch) / str(blocks)
            if reason := too_little_disk(Path(scratch), blocks * _BYTES_A_BLOCK):
                left_out[f"{blocks:,} blocks"] = reason
                continue
            say(f"{blocks:,} blocks")
            build_s = timed(partial(_build, folder, keys, blocks))
            means.add(page_cache.drop([folder]))
            opening: list[Store] = []
            open_s = timed(lambda folder=folder, opening=opening: opening.append(Store.open(config_of(folder))))  # type: ignore[misc]
            stores[blocks] = stack.enter_context(opening[0])
            index_bytes = folder_bytes(folder / "index")
            rows.append({"blocks": blocks, "build_s": build_s, "open_s": open_s, "index_bytes": index_bytes})
        say("calls")
        calls = _calls(stores, keys, rounds)
    rows = [{**row, "call_s": {what: calls[what][row["blocks"]] for what in calls}} for row in rows]
    return {"rows": rows, "real": real, "left_out": left_out, "page_cache": ", ".join(sorted(means))}


def _build(folder: Path, keys: Sequence[bytes], blocks: int) -> None:
    with Store.open(config_of(folder)) as store:
        for number, key in enumerate(keys):
            store.put(key, number.to_bytes(8, "little") * (_PAYLOAD_BYTES // 8))
        store.flush()
    index = LmdbIndex(str(folder / "index"), map_bytes=_INDEX_BYTES_MAX, read_only=False)
    try:
        _add_entries(index, blocks - len(keys))
    finally:
        index.close()


def _add_entries(index: LmdbIndex, entries: int) -> None:
    """Entries with keys, ids and contents by chance, which all say that they stand where the first real block does."""
    with index.read() as view:
        _, block = next(iter(view.blocks()))
        content = view.content(block.tier_no, block.content_id)
        assert content is not None
    rng = random.Random(SEED + 1)

    def between(number: int, bits: int) -> int:
        """By chance, from the part of all numbers of so many bits that is this entry's: they come in order."""
        width = (1 << bits) // entries
        return number * width + int(rng.random() * width)

    for start in range(0, entries, _ENTRIES_A_COMMIT):
        numbers = range(start, min(start + _ENTRIES_A_COMMIT, entries))
        with index.write() as txn:
            for number in numbers:
                content_id = between(number, 128).to_bytes(16, "big")
                txn.put_block(between(number, 64), block._replace(key=rng.randbytes(32), content_id=content_id))
                txn.put_content(block.tier_no, content_id, content)
            census = Census(txn)
            census.add(block.namespace, len(numbers), len(numbers) * block.nbytes)
            census.save()


def _calls(stores: dict[int, Store], keys: Sequence[bytes], rounds: int) -> dict[str, dict[int, Any]]:
    """By call and number of blocks. A sample of ``get`` is the median of many single calls."""
    rng, numbers = random.Random(SEED), count()

    def get(store: Store) -> float:
        return statistics.median(timed(lambda key=key: hit(store.get(key))) for key in rng.choices(keys, k=_CALLS))  # type: ignore[misc]

    def match(store: Store) -> float:
        chain = rng.sample(keys, min(_TURN_BLOCKS, len(keys)))
        return timed(lambda: store.match(chain)) / len(chain)

    def turn(store: Store) -> float:
        items = [(rng.randbytes(32), next(numbers).to_bytes(8, "little") * 64) for _ in range(_TURN_BLOCKS)]

        def durable() -> None:
            for key, value in items:
                store.put(key, value)
            store.flush()

        return timed(durable)

    found = {}
    for what, call in {"get": get, "match": match, "put and flush": turn}.items():
        arms = {str(blocks): partial(call, store) for blocks, store in stores.items()}
        alternate(arms, 1)  # once unmeasured
        samples = alternate(arms, rounds)
        found[what] = {blocks: spread(samples[str(blocks)]) for blocks in stores}
    return found
