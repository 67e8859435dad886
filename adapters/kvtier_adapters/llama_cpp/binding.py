"""A model, a store and what ties them: the part that capture and restore share."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kvtier_adapters.llama_cpp.fingerprint import Fingerprint, fingerprint_of, remember
from kvtier_adapters.llama_cpp.native import SequenceState
from kvtier_adapters.llama_cpp.options import Options
from kvtier_adapters.llama_cpp.stats import SessionStats
from kvtier_adapters.llama_cpp.window import Ring
from kvtier_adapters.prefix import Piece, PrefixKeys, derive, first_row, stored_prefixes

if TYPE_CHECKING:
    from llama_cpp import Llama

    from kvtier import Store

Tokens = npt.NDArray[np.int32]

_SECRET = b"kvtier_adapters.prefix"
_ROOT = b"kvtier.root"
_WINDOW = b"kvtier.window"


class Binding:
    """Opens what :class:`.session.Session` needs; raises what it documents.

    ``stored`` are the tokens of the live context that are known to be in the store, as ``pieces``; ``unusable``
    are keys whose blocks are intact but were refused: they count as missing until they are captured again.
    """

    def __init__(self, llm: Llama, store: Store, options: Options, stats: SessionStats) -> None:
        self.llm = llm
        self.store = store
        self.options = options
        self.stats = stats
        self.native = SequenceState(llm)
        self.ring = self.native.ring if options.reproducible else Ring(self.native.ring.n_swa)
        self.fingerprint = fingerprint_of(llm, store, block_tokens=options.block_tokens)
        self.others = remember(self.fingerprint, store)
        self.stored: Tokens = np.empty(0, dtype=np.int32)
        self.pieces: list[Piece] = []
        self.unusable: set[bytes] = set()
        self._secret = store.derive_key(_SECRET)

    def keys(self, tokens: Tokens, fingerprint: Fingerprint | None = None) -> PrefixKeys:
        """The keys of a token sequence under this model's fingerprint, or another one."""
        root_of = fingerprint or self.fingerprint
        root = derive(root_of.digest(), self._secret, _ROOT)
        encoded = tokens.astype("<i4", copy=False).data.cast("B")
        return PrefixKeys(root, self._secret, encoded, root_of.block_tokens)

    def window_key(self, piece: Piece) -> bytes:
        """The key of the sliding-window rows of a piece."""
        return derive(piece.key, self._secret, _WINDOW)

    def window_part(self, piece: Piece, missing: Collection[bytes] = ()) -> Piece | None:
        """The stored sliding-window rows of a piece: all of it, or what had not left the window by then."""
        key = self.window_key(piece)
        if key in self.unusable or key in missing:
            return None
        info = self.store.info(key, namespace=self.options.namespace)
        start = None if info is None else first_row(info.meta, piece.end)
        return None if start is None else Piece(start, piece.end, key)

    def prefixes(self, keys: PrefixKeys, missing: Collection[bytes] = ()) -> Iterator[list[Piece]]:
        """The stored prefixes of a sequence, the longest first; those with a ``missing`` key left out."""
        for pieces in stored_prefixes(
            self.store, keys, namespace=self.options.namespace, unusable=self.unusable.union(missing)
        ):
            if pieces[-1].end <= len(self.llm.input_ids):
                yield pieces

    def has(self, piece: Piece) -> bool:
        """Whether exactly this piece is stored."""
        info = self.store.info(piece.key, namespace=self.options.namespace)
        return info is not None and info.meta == piece.meta and piece.key not in self.unusable

    def holds(self, tokens: Tokens, pieces: Sequence[Piece], length: int) -> None:
        """Note that the context now holds the first ``length`` tokens, from these stored pieces, and no logits."""
        self.llm.input_ids[:length] = tokens[:length]
        self.llm.n_tokens = length
        self.llm._requires_eval = True
        self.pieces = list(pieces)
        self.stored = tokens[: pieces[-1].end if pieces else 0].copy()

    def empty(self) -> None:
        """Drop the whole context: what follows any doubt about it."""
        self.llm.reset()
        self.native.clear()


def as_tokens(tokens: Sequence[int] | Tokens) -> Tokens:
    return np.ascontiguousarray(tokens, dtype=np.int32)


def common_prefix(a: Tokens, b: Tokens) -> int:
    """The number of tokens at the start of both."""
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length
