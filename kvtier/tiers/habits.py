"""How a kind of disk wants to be read."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Habits(NamedTuple):
    """``gap_bytes``: between two wanted blocks, up to here reading through is quicker than a second read.
    ``first_bytes``: of the first read ahead of a consumer, which every further one doubles. ``one_at_a_time``: a
    second read beside one that runs would only move the head to and fro.
    """

    gap_bytes: int
    first_bytes: int
    one_at_a_time: bool


#: By ``kind`` of tier. A disk that turns reads 160 MB/s and takes 10 ms to get anywhere: that is 1.6 MB a read.
HABITS: Mapping[str, Habits] = MappingProxyType(
    {"ssd": Habits(64 << 10, 1 << 20, False), "hdd": Habits(1_600_000, 2 << 20, True)}
)
