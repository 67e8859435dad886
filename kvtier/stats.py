"""What a store says about itself. All sizes are in bytes; counters start at zero when the store is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kvtier.events import Signals
from kvtier.front import Front
from kvtier.index.schema import NamespaceEntry
from kvtier.tally import NAMESPACES_MAX, Tally, Uses
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.ladder import Ladder
from kvtier.tiers.quotas import counted_bytes


@dataclass(frozen=True)
class RamStats:
    """The RAM tier now. ``bytes_max_effective``: what it may use, which is less while memory is short.
    ``waiting``: blocks that the first disk tier did not take in, and may yet; ``unwritten``: blocks that go there when
    they leave."""

    bytes_max: int
    bytes_max_effective: int
    bytes_used: int
    blocks: int
    hits: int
    evictions: int
    waiting: int
    unwritten: int


@dataclass(frozen=True)
class TierStats:
    """One disk tier. ``bytes_used`` is what counts against the cap: segments, and the index in the first tier.
    ``bytes_max_effective``: what it may use, which is less while others fill its disk; ``free_bytes``: what that has
    left, None if it is not known."""

    name: str
    kind: str
    bytes_max: int
    bytes_max_effective: int
    free_bytes: int | None
    bytes_used: int
    bytes_live: int
    segments: int
    hits: int
    bytes_read: int
    bytes_written: int
    suspended: bool
    errors: int
    last_error: str


@dataclass(frozen=True)
class QueueStats:
    """The write queue. ``failed`` blocks did not become durable; ``skipped`` found it full."""

    bytes_max: int
    bytes_used: int
    blocks: int
    hits: int
    failed: int
    skipped: int
    last_error: str


@dataclass(frozen=True)
class DedupStats:
    """Puts whose bytes were in the tier already, and what that saved."""

    blocks: int
    bytes_saved: int


@dataclass(frozen=True)
class PrefetchStats:
    """Blocks asked for ahead, and those that came. Of these ``useful`` ones were then got from RAM, ``wasted`` ones
    left it before that, and ``unused`` ones are still there. ``late``: gets of blocks that were asked for and had not
    come yet. ``cancelled``: not read, as nobody wanted them any more."""

    requested: int
    loaded: int
    bytes_loaded: int
    useful: int
    bytes_useful: int
    wasted: int
    bytes_wasted: int
    unused: int
    bytes_unused: int
    late: int
    cancelled: int


@dataclass(frozen=True)
class NamespaceStats:
    """One namespace. ``blocks`` on all disk tiers, and ``bytes_stored``, the lengths of their values as they were put:
    that some share their bytes, or are compressed, is not taken off. Both are None if they are not known, which they
    are again once the store is opened for writing.

    ``bytes_counted`` is what counts against its quota, ``bytes_max`` (None: it has none): ``bytes_stored``, and 1,024
    for each block."""

    name: bytes
    blocks: int | None
    bytes_stored: int | None
    bytes_counted: int | None
    bytes_max: int | None
    hits: int
    misses: int


@dataclass(frozen=True)
class StoreStats:
    """Everything at one moment. ``misses`` by reason; ``counters`` holds the rest (evictions, demotions, ...).

    ``namespaces``: those that have blocks on disk, and those that were used since the store was opened, at most
    1,024 of either.

    ``pinned``, ``hinted``: keys that are pinned, and on which there is a hint. ``being_read``: ends of chains that are
    not evicted because someone is reading them. ``expiring``: blocks on disk with a time to live.
    """

    blocks: int
    puts: int
    ram: RamStats
    queue: QueueStats
    tiers: tuple[TierStats, ...]
    dedup: DedupStats
    prefetch: PrefetchStats
    misses: Mapping[str, int]
    quarantined: int
    pinned: int
    hinted: int
    being_read: int
    expiring: int
    index_bytes: int
    namespaces: tuple[NamespaceStats, ...]
    counters: Mapping[str, int]

    @property
    def bytes_written(self) -> int:
        """Segment bytes written to all tiers, the index not counted."""
        return sum(t.bytes_written for t in self.tiers)

    @property
    def bytes_on_disk(self) -> int:
        """What the store occupies on all its disks."""
        return sum(t.bytes_used for t in self.tiers)

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, for JSON."""
        return {
            **asdict(self),
            "namespaces": [{**asdict(n), "name": n.name.decode("utf-8", "backslashreplace")} for n in self.namespaces],
            "misses": dict(self.misses),
            "counters": dict(self.counters),
            "bytes_written": self.bytes_written,
            "bytes_on_disk": self.bytes_on_disk,
        }


def stats_of(front: Front, ladder: Ladder | None, signals: Signals, tally: Tally) -> StoreStats:
    """Gather the statistics of a store's halves."""
    front.settle()
    counts = signals.counts()
    tiers = tuple(_tier_stats(t, ladder, counts) for t in ladder.tiers) if ladder else ()
    return StoreStats(
        blocks=ladder.count_blocks() if ladder else len(front.ram),
        puts=counts.pop("puts", 0),
        ram=_ram_stats(front),
        queue=QueueStats(
            bytes_max=front.queue.bytes_max,
            bytes_used=front.queue.bytes_used,
            blocks=len(front.queue),
            hits=front.queue_hits,
            failed=counts.pop("write_failures", 0),
            skipped=counts.pop("skipped", 0),
            last_error=str(front.queue.first_error or ""),
        ),
        tiers=tiers,
        dedup=DedupStats(counts.pop("dedup_blocks", 0), counts.pop("dedup_bytes", 0)),
        prefetch=_prefetch_stats(front, counts),
        misses={name.split(":")[1]: counts.pop(name) for name in list(counts) if name.startswith("miss:")},
        quarantined=counts.pop("quarantined", 0),
        pinned=front.pinned,
        hinted=len(ladder.ledger.advice) if ladder else front.ram.hinted,
        being_read=len(ladder.ledger.guards) if ladder else 0,
        expiring=ladder.count_expiring() if ladder else 0,
        index_bytes=ladder.index_bytes if ladder else 0,
        namespaces=_namespace_stats(ladder, tally),
        counters=counts,
    )


def _prefetch_stats(front: Front, counts: dict[str, int]) -> PrefetchStats:
    brought = front.ram.brought
    return PrefetchStats(
        counts.pop("prefetch_requested", 0),
        counts.pop("prefetch_loaded", 0),
        counts.pop("prefetch_bytes", 0),
        *brought.useful,
        *brought.wasted,
        len(brought),
        brought.unused_bytes,
        counts.pop("prefetch_late", 0),
        counts.pop("prefetch_cancelled", 0),
    )


def _ram_stats(front: Front) -> RamStats:
    ram = front.ram
    return RamStats(
        bytes_max=ram.bytes_max,
        bytes_max_effective=ram.cap,
        bytes_used=ram.bytes_used,
        blocks=len(ram),
        hits=front.ram_hits,
        evictions=ram.evictions,
        waiting=len(ram.waiting),
        unwritten=len(ram.unwritten),
    )


def _namespace_stats(ladder: Ladder | None, tally: Tally) -> tuple[NamespaceStats, ...]:
    uses = tally.uses()
    stored = ladder.namespaces(NAMESPACES_MAX) if ladder else {}
    return tuple(
        NamespaceStats(
            name,
            *_size(None if stored is None else stored.get(name, NamespaceEntry(0, 0))),
            ladder.quotas.limits.of(name) if ladder else None,
            *uses.get(name, Uses()),
        )
        for name in sorted({*uses, *(stored or ())})
    )


def _size(entry: NamespaceEntry | None) -> tuple[int | None, int | None, int | None]:
    return (None, None, None) if entry is None else (*entry, counted_bytes(entry))


def _tier_stats(tier: DiskTier, ladder: Ladder, counts: dict[str, int]) -> TierStats:
    return TierStats(
        name=tier.name,
        kind=tier.setup.kind,
        bytes_max=tier.setup.bytes_max,
        bytes_max_effective=tier.room.cap(used := ladder.used_bytes(tier)),
        free_bytes=tier.room.free_bytes(),
        bytes_used=used,
        bytes_live=sum(s.live_bytes for s in tuple(tier.segments.values())),
        segments=len(tier.segments),
        hits=counts.pop(f"hits:{tier.name}", 0),
        bytes_read=counts.pop(f"bytes_read:{tier.name}", 0),
        bytes_written=tier.bytes_written,
        suspended=tier.is_suspended(),
        errors=tier.health.errors,
        last_error=tier.health.last_error,
    )
