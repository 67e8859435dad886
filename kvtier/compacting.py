"""Compaction by hand: the dead space of a store is given back at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvtier.assembly import Parts, config_of, open_parts
from kvtier.clock import Clock, SystemClock
from kvtier.config import Config
from kvtier.errors import ConfigError, ConfigProblem, NotAStore
from kvtier.events import Listener, Signals
from kvtier.fs import FileSystem, default_file_system
from kvtier.identity import STORE_FILE
from kvtier.keys import KeyProvider
from kvtier.tiers.disk import DiskTier

#: Told how many bytes of segments have been emptied, and how many there are to be.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TierGain:
    """What compacting one tier has given; ``bytes_before`` and ``bytes_after`` are what its segments occupy."""

    name: str
    bytes_before: int
    bytes_after: int
    bytes_copied: int
    segments_dropped: int
    segments_left: int
    """Segments that are dead enough, but could not be emptied: some of it cannot be read, or there was no room."""


@dataclass(frozen=True)
class Compacted:
    """What was gained in all tiers that were compacted."""

    tiers: tuple[TierGain, ...]

    @property
    def is_done(self) -> bool:
        """Whether no tier has a segment left that should have been emptied."""
        return not any(tier.segments_left for tier in self.tiers)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        reclaimed = sum(t.bytes_before - t.bytes_after for t in self.tiers)
        return {"done": self.is_done, "bytes_reclaimed": reclaimed, "tiers": [asdict(t) for t in self.tiers]}


def compact(
    source: Config | str | os.PathLike[str],
    *,
    tier: str | None = None,
    keys: KeyProvider | None = None,
    progress: Progress | None = None,
    listeners: Sequence[Listener] = (),
    fs: FileSystem | None = None,
    clock: Clock | None = None,
) -> Compacted:
    """Open a store for writing, which recovers it, and copy what lives in each segment that is dead by the tier's
    ``compaction_dead_ratio``, so that the segment can be removed: in all tiers, or one. What their ``compaction`` says,
    and their bandwidth, do not matter. It may be interrupted anywhere.

    Raises :class:`kvtier.ConfigError` if there is no such tier, and what opening for writing and writing raise.
    """
    config = config_of(source)
    names = [t.name for t in config.tier]
    if tier is not None and tier not in names:
        hint = f"one of {', '.join(names)}" if names else "the store has none"
        raise ConfigError([ConfigProblem("tier", f"there is no tier {tier!r}", hint)])
    if not config.tier:
        return Compacted(())
    signals, fs = Signals(listeners), fs or default_file_system()
    if not fs.exists(os.path.join(str(config.store.path), STORE_FILE)):
        raise NotAStore(f"{config.store.path}: there is no store here")
    parts = open_parts(config, fs, clock or SystemClock(), signals, keys, read_only=False)
    try:
        chosen = [t for t in parts.ladder.tiers if tier in (None, t.name)]
        return Compacted(tuple(_compact(parts, t, signals, progress) for t in chosen))
    finally:
        parts.close()


def _compact(parts: Parts, tier: DiskTier, signals: Signals, progress: Progress | None) -> TierGain:
    before, copied, dropped = tier.disk_bytes, signals.get(_COPIED), signals.get(_DROPPED)
    for done, total in parts.ladder.compactor.compact(tier):
        if progress:
            progress(done, total)
    return TierGain(
        tier.name,
        before,
        tier.disk_bytes,
        signals.get(_COPIED) - copied,
        signals.get(_DROPPED) - dropped,
        parts.ladder.compactor.count_sparse(tier),
    )


_COPIED, _DROPPED = "compaction_bytes_copied", "compaction_segments"
