"""Token prefixes as keys, and the stored pieces of a prefix. Knows no engine, model or tensor.

**Keys.** Every position ``p`` of a token sequence has a key that identifies ``tokens[0:p]`` under a root
(the model fingerprint). With block size ``B`` and ``b`` the last multiple of ``B`` below ``p``::

    key(0) = root
    key(p) = blake2b(key(b) || little-endian int32 tokens[b:p], key=secret, digest_size=32)

so the keys at block boundaries form a chain, and a key inside a block costs one short hash. The hash is
keyed with a secret of the store: an index that leaks does not confirm a guessed prompt.

**Pieces.** A stored piece has the key of its *end* and covers the rows ``[start, end)`` with
``b <= start < end <= b + B``; its metadata names ``start``, its parent is ``key(start)``. A whole block is
one piece; a turn that ends inside a block writes a short piece and the next turn goes on from there, so
that a turn writes its new tokens only, and what was stored is found again to the token.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtier import BlockInfo, Store

KEY_BYTES = 32
TOKEN_BYTES = 4

_AT_ONCE = 32  # keys looked up in one call

_META = struct.Struct("<4sII")  # tag, first row, one past the last row
_META_TAG = b"kvp1"


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``[start, end)`` of a prefix, stored under ``key`` (the key of ``end``)."""

    start: int
    end: int
    key: bytes

    @property
    def meta(self) -> bytes:
        return _META.pack(_META_TAG, self.start, self.end)


def first_row(meta: bytes, end: int) -> int | None:
    """Where the piece that ends at ``end`` begins, from its metadata; None if that is not a piece's."""
    if len(meta) != _META.size:
        return None
    tag, start, stored_end = _META.unpack(meta)
    return int(start) if tag == _META_TAG and stored_end == end else None


def derive(key: bytes, secret: bytes, tag: bytes) -> bytes:
    """Another 32-byte key for the same prefix: for what belongs to it but is not a piece. ``tag`` <= 16 bytes."""
    return blake2b(key, key=secret, person=tag, digest_size=KEY_BYTES).digest()


class PrefixKeys:
    """The keys of one token sequence; boundary keys are computed once, on demand.

    ``tokens`` are little-endian int32 values as bytes (they are not copied and must not change). ``known``: pieces
    that they are known to begin with, from the first row on, whose keys are then not computed again.
    """

    def __init__(
        self,
        root: bytes,
        secret: bytes,
        tokens: bytes | memoryview,
        block_tokens: int,
        known: Iterable[Piece] = (),
    ) -> None:
        if block_tokens < 1:
            raise ValueError(f"block_tokens must be at least 1, got {block_tokens}")
        self.block_tokens = block_tokens
        self._secret = secret
        self._tokens = memoryview(tokens).cast("B")
        self._boundaries = [root, *(piece.key for piece in known if piece.end % block_tokens == 0)]

    def __len__(self) -> int:
        return self._tokens.nbytes // TOKEN_BYTES

    def at(self, position: int) -> bytes:
        """The key of ``tokens[0:position]``."""
        if not 0 <= position <= len(self):
            raise IndexError(f"position {position} of {len(self)} tokens")
        base, inside = divmod(position, self.block_tokens)
        if inside == 0:
            return self._boundary(base)
        hasher = self._hasher(base)
        hasher.update(self._slice(position - inside, position))
        return hasher.digest()

    def inside(self, start: int, end: int) -> list[bytes]:
        """The keys of the positions ``start + 1 .. end``, all in the block that begins at ``start``."""
        hasher = self._hasher(start // self.block_tokens)
        keys = []
        for position in range(start, end):
            hasher.update(self._slice(position, position + 1))
            keys.append(hasher.copy().digest())
        return keys

    def _boundary(self, index: int) -> bytes:
        while len(self._boundaries) <= index:
            last = len(self._boundaries) - 1
            hasher = self._hasher(last)
            hasher.update(self._slice(last * self.block_tokens, (last + 1) * self.block_tokens))
            self._boundaries.append(hasher.digest())
        return self._boundaries[index]

    def _hasher(self, index: int) -> blake2b:
        return blake2b(self._boundary(index), key=self._secret, digest_size=KEY_BYTES)

    def _slice(self, start: int, end: int) -> memoryview:
        return self._tokens[start * TOKEN_BYTES : end * TOKEN_BYTES]


def new_pieces(keys: PrefixKeys, start: int, end: int, tokens_max: int) -> Iterator[Piece]:
    """The pieces that store rows ``[start, end)``: up to the next boundary, whole blocks, then the tail.

    None has more than ``tokens_max`` rows: a whole block is then several pieces.
    """
    while start < end:
        boundary = (start // keys.block_tokens + 1) * keys.block_tokens
        stop = min(end, boundary, start + tokens_max)
        yield Piece(start, stop, keys.at(stop))
        start = stop


def stored_prefixes(
    store: Store, keys: PrefixKeys, *, namespace: bytes = b"", unusable: Container[bytes] = ()
) -> Iterator[list[Piece]]:
    """Every prefix of the sequence that is stored without a gap, as its pieces, the longest first.

    Reads no payload. Looks up one key per piece, and at most ``block_tokens - 1`` of the block in which it
    ends, up to 32 in one call. ``unusable`` are keys to treat as absent.
    """
    found: list[Piece] = []
    whole = len(keys) - len(keys) % keys.block_tokens
    for end, key, info in _looked_up(store, range(keys.block_tokens, whole + 1, keys.block_tokens), keys.at, namespace):
        pieces = _walk(store, keys, end, key, info, namespace, unusable)
        if pieces is None:
            break
        found += pieces
    yield from _ends_inside(store, keys, found, namespace, unusable)
    for count in range(len(found), 0, -1):
        yield found[:count]


def _ends_inside(
    store: Store, keys: PrefixKeys, found: list[Piece], namespace: bytes, unusable: Container[bytes]
) -> Iterator[list[Piece]]:
    """Prefixes that end inside the block after the last whole one, the longest first."""
    base = found[-1].end if found else 0
    last = min(len(keys), base + keys.block_tokens - 1)
    candidates = keys.inside(base, last)
    for end, key, info in _looked_up(store, range(last, base, -1), lambda end: candidates[end - base - 1], namespace):
        pieces = _walk(store, keys, end, key, info, namespace, unusable)
        if pieces is not None:
            yield found + pieces


def _looked_up(
    store: Store, ends: Sequence[int], key_of: Callable[[int], bytes], namespace: bytes
) -> Iterator[tuple[int, bytes, BlockInfo | None]]:
    """Each of these positions, its key, and what the store knows of that."""
    for at in range(0, len(ends), _AT_ONCE):
        some = ends[at : at + _AT_ONCE]
        keys = [key_of(end) for end in some]
        yield from zip(some, keys, store.info_many(keys, namespace=namespace), strict=True)


def _walk(
    store: Store,
    keys: PrefixKeys,
    end: int,
    key: bytes,
    info: BlockInfo | None,
    namespace: bytes,
    unusable: Container[bytes],
) -> list[Piece] | None:
    """The pieces from the boundary before ``end`` to ``end``, or None where one is missing; ``info``: of the last."""
    base = (end - 1) // keys.block_tokens * keys.block_tokens
    pieces: list[Piece] = []
    while True:
        start = None if info is None or key in unusable else first_row(info.meta, end)
        if start is None or not base <= start < end:
            return None
        pieces.append(Piece(start, end, key))
        if start == base:
            return pieces[::-1]
        end, key = start, keys.at(start)
        info = store.info(key, namespace=namespace)
