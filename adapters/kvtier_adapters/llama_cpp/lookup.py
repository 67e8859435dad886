"""What a store has of a prompt, without reading any of it: the part that needs no model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from kvtier_adapters.llama_cpp.fingerprint import Fingerprint
from kvtier_adapters.llama_cpp.held import Tokens
from kvtier_adapters.llama_cpp.snapshots import Snapshot, chunk_key, read_meta, snapshot_key
from kvtier_adapters.llama_cpp.window import first_needed, needed_from
from kvtier_adapters.prefix import Piece, PrefixKeys, derive, first_row, stored_prefixes

if TYPE_CHECKING:
    from kvtier import Store

_SECRET = b"kvtier_adapters.prefix"
_ROOT = b"kvtier.root"
_WINDOW = b"kvtier.window"
_OTHERS_MAX = 8  # other fingerprints asked to explain a miss


@dataclass(frozen=True)
class Plan:
    """A stored prefix that can be restored: its pieces, and what its checkpoint has besides."""

    pieces: Sequence[Piece]
    window: Sequence[Piece] = ()
    """The rows of the sliding window."""
    snapshot: Snapshot | None = None

    @property
    def end(self) -> int:
        return self.pieces[-1].end

    def window_from(self, n_swa: int) -> int:
        """The first row of the window that is restored."""
        return max(needed_from(self.end, n_swa), self.window[0].start)


def window_part(piece: Piece, key: bytes, meta: bytes | None) -> Piece | None:
    """The sliding-window rows of a piece that are stored under ``key``, by their metadata."""
    start = None if meta is None else first_row(meta, piece.end)
    return None if start is None else Piece(start, piece.end, key)


class Lookup:
    """The state of one model in a store. ``unusable`` are keys of blocks that were refused: as if missing.

    ``rows``, ``n_swa`` and ``snapshots``: as in :class:`.Memory`. ``capacity``: tokens that a context has room for.
    """

    def __init__(
        self,
        store: Store,
        namespace: bytes,
        fingerprint: Fingerprint,
        *,
        rows: bool,
        n_swa: int,
        snapshots: bool,
        capacity: int | None = None,
    ) -> None:
        self.store = store
        self.namespace = namespace
        self.fingerprint = fingerprint
        self.rows = rows
        self.n_swa = n_swa
        self.snapshots = snapshots
        self.capacity = capacity
        self.unusable: set[bytes] = set()
        self.secret = store.derive_key(_SECRET)

    def keys(
        self, tokens: Tokens, fingerprint: Fingerprint | None = None, *, known: Sequence[Piece] = ()
    ) -> PrefixKeys:
        """The keys of a token sequence under this model's fingerprint, or another one. ``known``: pieces that it is
        known to begin with."""
        root_of = fingerprint or self.fingerprint
        root = derive(root_of.digest(), self.secret, _ROOT)
        encoded = tokens.astype("<i4", copy=False).data.cast("B")
        return PrefixKeys(root, self.secret, encoded, root_of.block_tokens, known)

    def window_key(self, piece: Piece) -> bytes:
        """The key of the sliding-window rows of a piece."""
        return derive(piece.key, self.secret, _WINDOW)

    def metas(self, keys: Sequence[bytes], missing: Collection[bytes] = ()) -> list[bytes | None]:
        """The metadata of these blocks, in one look-up; None for those that are not there."""
        infos = self.store.info_many(keys, namespace=self.namespace) if keys else ()
        unusable = self.unusable.union(missing)
        return [None if i is None or key in unusable else i.meta for key, i in zip(keys, infos, strict=True)]

    def window_parts(self, pieces: Sequence[Piece], missing: Collection[bytes] = ()) -> list[Piece | None]:
        """The stored sliding-window rows of each piece: all of it, or what had not left the window by then."""
        keys = [self.window_key(piece) for piece in pieces]
        metas = self.metas(keys, missing)
        return [window_part(piece, key, meta) for piece, key, meta in zip(pieces, keys, metas, strict=True)]

    def snapshot(self, piece: Piece, missing: Collection[bytes] = ()) -> Snapshot | None:
        """The stored snapshot as of the end of a piece; only its first chunk is looked up."""
        key = snapshot_key(piece.key, self.secret)
        first = chunk_key(key, 0, self.secret)
        if not self.unusable.isdisjoint((key, first)) or key in missing or first in missing:
            return None
        (meta,) = self.metas([first])
        return None if meta is None else read_meta(key, piece.end, meta)

    def prefixes(self, keys: PrefixKeys, missing: Collection[bytes] = ()) -> Iterator[list[Piece]]:
        """The stored prefixes of a sequence, the longest first; those with a ``missing`` key left out."""
        for pieces in stored_prefixes(
            self.store, keys, namespace=self.namespace, unusable=self.unusable.union(missing)
        ):
            if self.capacity is None or pieces[-1].end <= self.capacity:
                yield pieces

    def plan(self, keys: PrefixKeys, most: int, missing: Collection[bytes] = ()) -> Plan | None:
        """The longest stored prefix that can be restored. Reads no payload.

        ``most``: where evaluation must go on at the latest. Rows that go further are cut off there; a snapshot
        cannot be.
        """
        return self.first_plan(self.prefixes(keys, missing), most, missing)

    def first_plan(
        self, prefixes: Iterable[Sequence[Piece]], most: int, missing: Collection[bytes] = ()
    ) -> Plan | None:
        """The first of these stored prefixes that can be restored; ``most`` as in :meth:`plan`."""
        for pieces in prefixes:
            if self.snapshots and pieces[-1].end > most:
                continue
            window = self._window_of(pieces, min(most, pieces[-1].end), missing)
            snapshot = self.snapshot(pieces[-1], missing) if self.snapshots else None
            if window is not None and bool(snapshot) == self.snapshots:
                return Plan(pieces, window, snapshot)
        return None

    def blocks(self, plan: Plan, kept: int = 0) -> list[bytes]:
        """The keys that a restore reads, in its order; the rows of the first ``kept`` pieces are there already."""
        rows = [piece.key for piece in plan.pieces[kept:]] if self.rows else []
        window = [part.key for part in plan.window]
        return [*rows, *window, *(plan.snapshot.keys(self.secret) if plan.snapshot else ())]

    def all_blocks(self, pieces: Iterable[Piece]) -> list[bytes]:
        """The keys of all that is stored of these pieces: their own, and every window and snapshot as of their ends."""
        keys, pieces = [], list(pieces)
        windows = self.window_parts(pieces) if self.n_swa else [None] * len(pieces)
        for piece, window in zip(pieces, windows, strict=True):
            snapshot = self.snapshot(piece) if self.snapshots else None
            keys += [piece.key, *([window.key] if window else ()), *(snapshot.keys(self.secret) if snapshot else ())]
        return keys

    def _window_of(self, pieces: Sequence[Piece], resume: int, missing: Collection[bytes]) -> list[Piece] | None:
        """The stored rows of the window that ends with ``pieces``; None where one that ``resume`` needs is missing."""
        if self.n_swa == 0:
            return []
        needed = first_needed(resume, self.n_swa)
        last = [*takewhile(lambda piece: piece.end > needed, reversed(pieces))][::-1]
        window: list[Piece] = []
        for piece, part in zip(last, self.window_parts(last, missing), strict=True):
            if part is None or part.start > max(piece.start, needed):
                return None
            window.append(part)
        return window

    def why_not(self, tokens: Tokens, keys: PrefixKeys, others: Sequence[Fingerprint]) -> str:
        """Why nothing of a prompt can be restored: without a checkpoint, under another fingerprint, never stored."""
        if next(self.prefixes(keys), None):
            return "no checkpoint"
        for other in others[:_OTHERS_MAX]:
            theirs = self.keys(tokens, other)
            if next(stored_prefixes(self.store, theirs, namespace=self.namespace), None):
                return f"fingerprint differs: {self.fingerprint.difference(other)}"
        return "not stored"
