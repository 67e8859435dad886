"""A store whose reads are tampered with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kvtier import Hit, Miss, MissReason, Store


class Meddling:
    """``change`` gets the number of a block in a restore and its bytes, and returns others, or None for a block that
    cannot be read now; what it raises, the store raises."""

    def __init__(self, store: Store, change: Callable[[int, bytes], bytes | None]) -> None:
        self._store = store
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_many(self, keys: list[bytes], *, namespace: bytes = b"", keep: bool = True) -> Iterator[Hit | Miss]:
        for number, found in enumerate(self._store.get_many(keys, namespace=namespace, keep=keep)):
            if isinstance(found, Hit):
                changed = self._change(number, b"".join(found.buffers))
                if changed is None:
                    yield Miss(found.key, MissReason.UNAVAILABLE)
                    continue
                found = Hit(found.key, (memoryview(changed),), found.meta, found.tier)
            yield found
