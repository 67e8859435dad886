"""What the disk tiers hold, and what they use."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress

from kvtier.index.lmdb_index import LmdbIndex
from kvtier.index.schema import NamespaceEntry
from kvtier.tiers.census import read_census
from kvtier.tiers.chains import known
from kvtier.tiers.disk import DiskTier


class Holdings:
    """The disk tiers in the order of the configuration, over one index. Any thread may ask."""

    def __init__(self, index: LmdbIndex, tiers: Sequence[DiskTier]) -> None:
        self._index = index
        self.tiers = list(tiers)

    def used_bytes(self, tier: DiskTier) -> int:
        """What counts against the tier's cap: its segments, and for the first tier the index too."""
        return tier.disk_bytes + (self.index_bytes if tier is self.tiers[0] else 0)

    @property
    def index_bytes(self) -> int:
        """What the index occupies on disk; 0 while it cannot be read."""
        with suppress(OSError):
            return self._index.disk_bytes()
        return 0

    def known(self, block_ids: Collection[int]) -> list[int]:
        """Those of the blocks that are on some tier."""
        self._index.ensure_alive()
        return known(self._index, block_ids)

    def count_blocks(self) -> int:
        """Blocks on all disk tiers; 0 while the index cannot be read."""
        with suppress(OSError), self._index.read() as view:
            return view.count_blocks()
        return 0

    def count_expiring(self) -> int:
        """Blocks on all disk tiers that expire some time; 0 while the index cannot be read."""
        with suppress(OSError), self._index.read() as view:
            return view.count_expiries()
        return 0

    def namespaces(self, count_max: int) -> dict[bytes, NamespaceEntry] | None:
        """What the first namespaces have on all disk tiers; None if it is not known."""
        try:
            return read_census(self._index, count_max)
        except OSError:
            return None
