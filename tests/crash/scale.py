"""How large the canonical workload is: its blocks, and the two tiers that they are put into."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kvtier import Config
from tests.direct import LONG_MAX, length_of
from tests.stores import KIB, MIB, config, noise, tier

BLOCK_BYTES = 16 * KIB


class Scale(NamedTuple):
    """Bytes. ``is_long``: of blocks of all lengths, many of which are written and read directly, but for those in the
    tier that is ``cached``."""

    top_bytes: int
    low_bytes: int
    segment_bytes: int
    value_bytes_max: int
    is_long: bool = False
    cached: str = ""

    def block(self, name: str | bytes) -> bytes:
        return noise(name, length_of(name) if self.is_long else BLOCK_BYTES)

    def settings(self, folder: Path, **policies: object) -> Config:
        """No RAM, so that every answer comes from disk. ``policies``: of both tiers."""
        top, low = (
            tier(name, bytes_max=size, segment_bytes=self.segment_bytes, page_cache=name == self.cached, **policies)
            for name, size in (("top", self.top_bytes), ("low", self.low_bytes))
        )
        return config(folder, top, low, value_bytes_max=self.value_bytes_max)


def _short(low_bytes: int) -> Scale:
    """The upper tier has room for some 20 blocks (its cap counts the index, and 256 KiB of slack)."""
    return Scale(768 * KIB, low_bytes, 64 * KIB, 32 * KIB)


def _long(low_bytes: int, cached: str = "") -> Scale:
    return Scale(8 * MIB, low_bytes, 3 * MIB, LONG_MAX, True, cached)


SHORT = {"all of it fits": _short(32 * MIB), "blocks are evicted": _short(256 * KIB)}
LONG = {
    "long blocks, all of which fit": _long(32 * MIB),
    "long blocks are evicted": _long(6 * MIB, "low"),
    "long blocks are evicted below": _long(6 * MIB, "top"),
}
SCALES = SHORT | LONG
