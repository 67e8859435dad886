"""The names of segment files."""

from __future__ import annotations

from collections.abc import Iterable

_SUFFIX = ".seg"


def segment_name(segment_no: int) -> str:
    """The file name of a segment."""
    return f"{segment_no:08d}{_SUFFIX}"


def segment_numbers(names: Iterable[str]) -> list[int]:
    """The numbers of the segments among file names, in order; other names are ignored."""
    stems = (n.removesuffix(_SUFFIX) for n in names if n.endswith(_SUFFIX))
    return sorted(int(s) for s in stems if s.isdecimal())
