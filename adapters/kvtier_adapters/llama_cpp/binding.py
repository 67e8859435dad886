"""A sequence, a store and what ties them: the part that capture and restore share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kvtier_adapters.llama_cpp.context import Context
from kvtier_adapters.llama_cpp.fingerprint import fingerprint_of, remember
from kvtier_adapters.llama_cpp.held import Held, Tokens
from kvtier_adapters.llama_cpp.lookup import Lookup
from kvtier_adapters.llama_cpp.memory import Memory
from kvtier_adapters.llama_cpp.native import SequenceState, ring_of
from kvtier_adapters.llama_cpp.options import Options
from kvtier_adapters.llama_cpp.stats import SessionStats
from kvtier_adapters.llama_cpp.window import Ring
from kvtier_adapters.prefix import Piece

if TYPE_CHECKING:
    from kvtier import Store


class Binding(Lookup):
    """Opens what :class:`.Session` needs; raises what it documents.

    ``stored`` are the tokens of the live context that are known to be in the store, as ``pieces``; ``unusable``
    are keys whose blocks are intact but were refused: they count as missing until they are captured again.
    """

    def __init__(
        self,
        context: Context,
        sequence: int,
        memory: Memory,
        held: Held,
        store: Store,
        options: Options,
        stats: SessionStats,
    ) -> None:
        super().__init__(
            store,
            options.namespace,
            fingerprint_of(context, memory, store, block_tokens=options.block_tokens),
            rows=memory.rows,
            n_swa=memory.n_swa,
            snapshots=memory.snapshots,
            capacity=held.capacity,
        )
        store.contains(self.secret, namespace=options.namespace)  # raises now, not in every call, if it is no namespace
        self.held = held
        self.memory = memory
        self.options = options
        self.stats = stats
        self.native = SequenceState(context, sequence, memory, store.buffer)
        self.ring = ring_of(context, memory) if options.reproducible else Ring(memory.n_swa)
        self.others = remember(self.fingerprint, store)
        self.stored: Tokens = np.empty(0, dtype=np.int32)
        self.pieces: list[Piece] = []
        self.looked_up = 0
        """How often ``pieces`` became others than those before and what was captured behind them."""
        self.taken = 0
        """Blocks that the store took."""

    def put(
        self, key: bytes, value: memoryview | bytes, meta: bytes, parent: bytes | None, *, give: bool = False
    ) -> bool:
        """Whether the store took it. ``give``: nobody else has the value's memory."""
        if not self.store.put(key, value, meta=meta, parent=parent, namespace=self.namespace, give=give):
            self.stats.captures_skipped += 1
            self.unusable.add(key)  # it may be in RAM, but not to stay
            return False
        self.taken += 1
        self.unusable.discard(key)
        return True

    def holds(self, tokens: Tokens, pieces: Sequence[Piece], length: int) -> None:
        """Note that the context now holds the first ``length`` tokens, from these stored pieces, and no logits."""
        self.held.hold(tokens, length)
        self.pieces = list(pieces)
        self.looked_up += 1
        self.stored = tokens[: pieces[-1].end if pieces else 0].copy()

    def empty(self) -> None:
        """Drop the whole sequence: what follows any doubt about it. What is stored is looked up again too."""
        self.holds(self.held.tokens, (), 0)
        self.native.clear()


def as_tokens(tokens: Sequence[int] | Tokens) -> Tokens:
    return np.ascontiguousarray(tokens, dtype=np.int32)


def common_prefix(a: Tokens, b: Tokens) -> int:
    """The number of tokens at the start of both."""
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length
