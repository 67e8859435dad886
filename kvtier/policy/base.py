"""The protocols that policies implement.

A policy is told what happens and answers questions; it never reads, writes or locks. Each belongs to one tier, or to
the store, and is called by one thread at a time unless it says otherwise. Blocks are named by their 64-bit block id.
One that raises is disabled: the default of its kind takes over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

NO_PARENT = 0


class Hint(NamedTuple):
    """What a server knows of a block's future. Advice: a policy may ignore it."""

    ended: bool = False  #: Its session is over: nobody is expected to use it again.
    returns_at: float | None = None  #: When it is expected to be used next, in seconds of the policy's own clock.
    priority: int = 0  #: Higher stays longer; 0 is usual.


@runtime_checkable
class EvictionPolicy(Protocol):
    """Which block leaves a tier next. Made by a call without arguments; told of every block of its tier.

    A prefix block is useful only while all its ancestors are present, so an implementation must give
    away a block only when none of its children is in the same tier, and never a held one.
    """

    def add(self, block: int, parent: int, clock: int, nbytes: int) -> None:
        """``block`` entered the tier (or is in it already: then as ``touch``), where it occupies ``nbytes``.
        ``parent`` may be absent, and is ignored if ``block`` is among its ancestors: callers choose parents, and a
        ring has no leaf."""

    def touch(self, block: int, clock: int) -> None:
        """``block`` was used at logical time ``clock``, which ticks at every use; unknown blocks are ignored. A chain
        is touched from its end, so that an ancestor's clock is above its descendants'."""

    def remove(self, block: int) -> None:
        """``block`` left the tier for another reason; unknown blocks are ignored."""

    def pop(self) -> int | None:
        """Remove and return the block to evict next; None if nothing may be evicted."""

    def hold(self, block: int) -> None:
        """Protect ``block`` (present or not) until as many ``release`` calls; ancestors follow by leaf order."""

    def release(self, block: int) -> None:
        """Undo one ``hold``."""

    def hint(self, block: int, hint: Hint) -> None:
        """Take advice on ``block``; unknown blocks are ignored."""

    def __len__(self) -> int:
        """Blocks in the tier. When ``pop`` is called the tier is full, so that this is its capacity."""


class PromotionPolicy(Protocol):
    """Whether a block that was read from a lower tier moves up."""

    def promote(self, block: int) -> bool:
        """Decide for one hit. Called by readers: must be thread-safe and quick."""


class Candidate(NamedTuple):
    """A block that a tier could take in. ``parent`` as in :meth:`EvictionPolicy.add`."""

    block: int
    parent: int
    nbytes: int  #: Of its value, as it was put.
    depth: int  #: Blocks from the start of its chain to itself, as far as they are there; 256 for any more.
    is_hit: bool  #: It comes from a lower tier because it was asked for.


class AdmissionPolicy(Protocol):
    """Which blocks a tier takes in: at a put in the first one, at a demotion in the others, and at a promotion.

    What it refuses stays in RAM at a put, stays where it is at a promotion, and is lost at a demotion. What a block
    extends that it takes in is taken in too. Must be thread-safe and quick.
    """

    def admit(self, block: Candidate) -> bool:
        """Decide on one block. Not asked about blocks that the tier has already. Called by the worker."""

    def used(self, block: int) -> bool:
        """A block that it refused, or could be asked about later, was read. Whether to ask again now, if it is in RAM.
        Called by readers."""


class PrefetchPolicy(Protocol):
    """Whether a chain comes up into RAM before it is asked for. One for a store; called by one thread at a time. A
    chain is the block ids of a request, its beginning first; a group is a namespace."""

    def asked(self, group: bytes, chain: Sequence[int]) -> None:
        """A request names this chain; it may be told of twice."""

    def answered(self, group: bytes, chain: Sequence[int], stays_s: float) -> bool:
        """A request with this chain has its answer. Whether to bring up now what of it is not in RAM, where it would
        stay for about ``stays_s`` seconds unused."""


class SegmentFacts(NamedTuple):
    """What a compaction policy may know of a sealed segment. Bytes are on disk, after punching."""

    segment_no: int
    disk_bytes: int
    live_bytes: int


class TierFacts(NamedTuple):
    """What a compaction policy may know of a tier. Bytes are on disk; ``segments`` are those that are sealed."""

    bytes_used: int
    bytes_max: int
    segments: Sequence[SegmentFacts]


@runtime_checkable
class CompactionPolicy(Protocol):
    """How dead space is given back that is neither in a segment of which nothing lives nor in holes.

    Made by a call with the tier's ``compaction_dead_ratio``. Called by the worker.
    """

    @property
    def copies(self) -> bool:
        """How: copy what lives in a segment (True), or evict it where holes cannot be punched (False)."""

    def is_due(self, tier: TierFacts) -> bool:
        """When: whether to copy now, while there is nothing else to do. Asked often."""

    def pick(self, segments: Sequence[SegmentFacts]) -> int | None:
        """Which: the number of the segment to empty next, so that it can be dropped; None: none. What is pinned or
        could not be read is not among them."""
