"""The latest hints, so that a policy which meets a block later knows them too. Not thread-safe."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from kvtier.policy.base import Hint

_BLOCKS_MAX = 1 << 16
_NOTHING = Hint()


class Advice:
    """Hints by (namespace, block), the 65,536 that came last. A block that leaves takes its hint with it."""

    def __init__(self) -> None:
        self._hints: OrderedDict[tuple[bytes, int], Hint] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hints)

    def take(self, namespace: bytes, block_ids: Sequence[int], hint: Hint) -> None:
        """``hint`` is what is known of these blocks from now on."""
        for block_id in block_ids:
            self._hints.pop((namespace, block_id), None)
            if hint != _NOTHING:
                self._hints[namespace, block_id] = hint
        while len(self._hints) > _BLOCKS_MAX:
            self._hints.popitem(last=False)

    def of(self, namespace: bytes, block_id: int) -> Hint | None:
        return self._hints.get((namespace, block_id)) if self._hints else None

    def forget(self, namespace: bytes, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            self._hints.pop((namespace, block_id), None)

    def __iter__(self) -> Iterator[tuple[bytes, int, Hint]]:
        for (namespace, block_id), hint in self._hints.items():
            yield namespace, block_id, hint
