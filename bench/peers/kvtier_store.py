"""kvtier itself, with the defaults of a configuration that names one tier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.peers.peer import Facts, Peer
from kvtier import Config, Hit, Store


class Kvtier(Peer):
    """``put``, ``flush``, and ``get_into`` from the tier."""

    facts = Facts(
        acknowledged="nothing", durable=True, checks=True, restarts=True, bounded=True, keeps="its own memory"
    )
    _store: Store

    def open(self, folder: Path) -> None:
        tier = {"name": "disk", "kind": "ssd", "bytes_max": "64GiB"}
        self._store = Store.open(Config.from_dict({"store": {"path": str(folder / "store")}, "tier": [tier]}))

    def store(self, key: bytes, block: memoryview) -> None:
        if not self._store.put(key, block):
            raise RuntimeError("the write queue is full")

    def sync(self) -> None:
        self._store.flush()

    def load(self, key: bytes, into: memoryview) -> memoryview | None:
        if not self._store.get_into(key, into):
            raise LookupError(key)
        return None

    def bring(self, key: bytes, into: memoryview) -> None:
        """By ``get``: the bytes that ``get_into`` reads from the disk do not enter the RAM tier."""
        self._store.get(key)

    def close(self) -> None:
        self._store.close()


class KvtierGet(Kvtier):
    """``get``, which brings the block into the RAM tier on the way, and hands out the memory that it has there."""

    def load(self, key: bytes, into: memoryview) -> memoryview:
        hit = self._store.get(key)
        if not isinstance(hit, Hit):
            raise LookupError(key)
        return hit.buffers[0]


class KvtierMany(Kvtier):
    """``get_many``, which reads ahead and checks on its own threads, and a copy of each block to where it belongs."""

    def load_all(self, keys: Sequence[bytes], into: Sequence[memoryview]) -> list[memoryview | None]:
        for hit, target in zip(self._store.get_many(keys, keep=False), into, strict=True):
            if not isinstance(hit, Hit):
                raise LookupError(hit.key)
            target[:] = hit.buffers[0]
        return [None] * len(keys)
