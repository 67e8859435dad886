"""Blocks, keys and outcomes as values: what callers pass in and what they get back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum

from kvtier.errors import LimitError

KEY_BYTES_MAX = 128
NAMESPACE_BYTES_MAX = 64
META_BYTES_MAX = 1024
BUFFERS_MAX = 64

#: Anything that exposes contiguous bytes: ``bytes``, ``bytearray``, ``memoryview``, NumPy arrays, ...
Buffer = bytes | bytearray | memoryview


class PutOutcome(Enum):
    """What became of a ``put``."""

    QUEUED = "queued"
    """Accepted: readable now and, if the first disk tier takes it in, durable after ``flush()``."""
    SKIPPED = "skipped"
    """The write queue was full and ``when_full`` is ``skip``: not written; in RAM only if the key was new."""

    def __bool__(self) -> bool:
        return self is PutOutcome.QUEUED


@dataclass(frozen=True, slots=True)
class Hint:
    """What a server knows of the future of blocks: see :meth:`kvtier.Store.hint`. ``Hint()`` takes earlier ones back.

    ``ended``: nobody is expected to use them again. ``returns_in``: when they are expected to be used next, in seconds
    from now. ``priority``: blocks with a higher one stay longer; 0 is usual. Raises :class:`kvtier.LimitError` for a
    time that is none.
    """

    ended: bool = False
    returns_in: float | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        if self.returns_in is not None and not 0 <= self.returns_in < float("inf"):
            raise LimitError(f"returns_in must be a number of seconds from 0 on, got {self.returns_in!r}")


class MissReason(Enum):
    """Why a block was not returned. Each is counted in ``stats``."""

    ABSENT = "absent"
    """Never stored, not admitted, evicted, expired or deleted: :meth:`kvtier.Store.explain` says which."""
    CORRUPT = "corrupt"
    """A check failed: the record is quarantined and its key can be stored again."""
    UNAVAILABLE = "unavailable"
    """Its tier could not be read (I/O error, missing folder); it may come back."""


@dataclass(frozen=True, slots=True)
class Miss:
    """No block. Falsy, so ``if hit := store.get(key)`` reads well."""

    key: bytes
    reason: MissReason

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Hit:
    """A block whose every byte was checked.

    ``buffers`` are read-only views, in the order they were put; they stay valid for as long as they
    are referenced, whatever the store does. From RAM they are the tier's own bytes: nothing is copied.
    ``tier`` is where it was found: ``"ram"``, ``"queue"`` (not yet durable) or a disk tier's name.
    """

    key: bytes
    buffers: tuple[memoryview, ...]
    meta: bytes
    tier: str

    def __bool__(self) -> bool:
        return True

    @property
    def nbytes(self) -> int:
        return sum(b.nbytes for b in self.buffers)


@dataclass(frozen=True, slots=True)
class HitInto:
    """``get_into`` filled the caller's buffers (``nbytes`` in all) and every byte was checked."""

    key: bytes
    nbytes: int
    meta: bytes
    tier: str

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class PutItem:
    """One block to store.

    ``buffers``: one buffer or several (at most 64). ``parent``: the key of the block that this one
    extends, in the same namespace; eviction then takes descendants before ancestors. ``ttl`` as in
    :meth:`kvtier.Store.put`.
    """

    key: bytes
    buffers: Buffer | Sequence[Buffer]
    meta: bytes = b""
    parent: bytes | None = None
    ttl: float | None = None


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """What is known of a block without reading it. ``tier`` as in :class:`Hit`; ``lengths`` of its buffers in bytes."""

    key: bytes
    meta: bytes
    lengths: tuple[int, ...]
    tier: str

    @property
    def nbytes(self) -> int:
        return sum(self.lengths)


class BlockState(Enum):
    """Where a block is, or what became of it. See :class:`Explanation`."""

    RAM = "ram"
    """It is in RAM; whether it is durable too, this does not say."""
    QUEUED = "queued"
    """It is in the write queue, not durable yet."""
    STORED = "stored"
    """It is in a disk tier."""
    UNAVAILABLE = "unavailable"
    """Its tier, or the index, cannot be read now, or its newer value was lost."""
    EVICTED = "evicted"
    """It had to make room."""
    DELETED = "deleted"
    """The caller deleted it."""
    DAMAGED = "damaged"
    """A check failed, so it was quarantined."""
    LOST = "lost"
    """A segment file was gone when the store was opened."""
    NOT_ADMITTED = "not_admitted"
    """The tier's policy or write budget did not take it in, or the tier was full and the block's parent not stored."""
    WRITE_FAILED = "write_failed"
    """It could not be written, or the index not be committed."""
    OVER_QUOTA = "over_quota"
    """Its namespace had reached its quota: it made room there for others, or there was none for it."""
    EXPIRED = "expired"
    """Its time was up."""
    UNKNOWN = "unknown"
    """Nothing is remembered of it: it was never stored, or it left too long ago."""


_SENTENCES = {
    BlockState.RAM: "The block is in RAM",
    BlockState.QUEUED: "The block is in the write queue, not durable yet",
    BlockState.STORED: "The block is stored in {}",
    BlockState.UNAVAILABLE: "The block cannot be read now",
    BlockState.EVICTED: "The block was evicted from {}",
    BlockState.DELETED: "The block was deleted",
    BlockState.DAMAGED: "The block was found damaged in {}",
    BlockState.LOST: "The block was lost with a missing file of {}",
    BlockState.NOT_ADMITTED: "The block was not admitted to {}, by its policy or because it was full",
    BlockState.WRITE_FAILED: "The block could not be written to {}",
    BlockState.OVER_QUOTA: "The block had to go, or could not come, because its namespace had reached its quota",
    BlockState.EXPIRED: "The block has expired",
    BlockState.UNKNOWN: "The block was never stored, or it left too long ago to be remembered",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What :meth:`kvtier.Store.explain` knows of a block; as ``str``, one plain sentence.

    ``tier`` is where it is (as in :class:`Hit`), where it was, or where it was to go; ``when`` it left, in whole
    seconds since 1970. Both are None where that is not known.
    """

    state: BlockState
    tier: str | None = None
    when: float | None = None

    def __str__(self) -> str:
        tier = "a disk tier" if self.tier is None else f"tier {self.tier!r}"
        date = ""
        if self.when is not None:
            date = f", at {datetime.fromtimestamp(self.when, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
        return f"{_SENTENCES[self.state].format(tier)}{date}."


def check_key(key: object, namespace: object) -> None:
    """Raise :class:`LimitError` unless key and namespace are bytes within their limits."""
    if not isinstance(key, bytes) or not 1 <= len(key) <= KEY_BYTES_MAX:
        raise LimitError(f"key must be bytes of length 1 to {KEY_BYTES_MAX}, got {_shape(key)}")
    if not isinstance(namespace, bytes) or len(namespace) > NAMESPACE_BYTES_MAX:
        raise LimitError(f"namespace must be bytes of length 0 to {NAMESPACE_BYTES_MAX}, got {_shape(namespace)}")


def _shape(value: object) -> str:
    kind = type(value).__name__
    return f"{kind} of length {len(value)}" if isinstance(value, bytes) else kind


def check_meta(meta: object) -> None:
    """Raise :class:`LimitError` unless the metadata is bytes within its limit."""
    if not isinstance(meta, bytes) or len(meta) > META_BYTES_MAX:
        raise LimitError(f"meta must be bytes of length 0 to {META_BYTES_MAX}, got {_shape(meta)}")
