"""The protocols that policies implement.

A policy is told what happens and answers questions; it never reads, writes or locks. Each belongs to one
tier and is called by one thread at a time. Blocks are named by their 64-bit block id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

NO_PARENT = 0


class EvictionPolicy(Protocol):
    """Which block leaves a tier next.

    A prefix block is useful only while all its ancestors are present, so an implementation must give
    away a block only when none of its children is in the same tier, and never a held one.
    """

    def add(self, block: int, parent: int, clock: int) -> None:
        """``block`` entered the tier (or is in it already: then as ``touch``). ``parent`` may be absent, and is
        ignored if ``block`` is among its ancestors: callers choose parents, and a ring has no leaf."""

    def touch(self, block: int, clock: int) -> None:
        """``block`` was used at logical time ``clock``; unknown blocks are ignored."""

    def remove(self, block: int) -> None:
        """``block`` left the tier for another reason; unknown blocks are ignored."""

    def pop(self) -> int | None:
        """Remove and return the block to evict next; None if nothing may be evicted."""

    def hold(self, block: int) -> None:
        """Protect ``block`` (present or not) until as many ``release`` calls; ancestors follow by leaf order."""

    def release(self, block: int) -> None:
        """Undo one ``hold``."""

    def __len__(self) -> int:
        """Blocks in the tier."""


class PromotionPolicy(Protocol):
    """Whether a block that was read from a lower tier moves up."""

    def promote(self, block: int) -> bool:
        """Decide for one hit. Called by readers: must be thread-safe and quick."""


class SegmentFacts(NamedTuple):
    """What a compaction policy may know of a sealed segment. Bytes are on disk, after punching."""

    segment_no: int
    disk_bytes: int
    live_bytes: int


class CompactionPolicy(Protocol):
    """Which segment to copy out of, where holes cannot be punched."""

    def pick(self, segments: Sequence[SegmentFacts]) -> int | None:
        """The number of the segment whose live records should move so that it can be dropped; None: none."""
