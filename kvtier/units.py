"""Byte sizes and shares as people write them: ``"50GiB"``, ``"512 MiB"``, ``"10%"``."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
BYTES_MAX = (1 << 63) - 1

UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": TIB,
}  # fmt: skip
_NUMBER = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*|%)", re.ASCII)
_SIZE_HINT = 'write a number of bytes, or text such as "512MiB" (2^20 each) or "50GB" (10^9 each)'


class BadValue(ValueError):
    """A value that is not what was asked for; ``hint`` says what would be right."""

    def __init__(self, message: str, hint: str = _SIZE_HINT) -> None:
        self.hint = hint
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Percent:
    """A share of a disk, or of memory: more than 0, at most 100."""

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value <= 100:
            raise BadValue(f"{self} is not a share", "more than 0% and at most 100%")

    def __str__(self) -> str:
        return f"{self.value:.9f}".rstrip("0").rstrip(".") + "%"  # as many digits as are read

    def of(self, total: int) -> int:
        """This share of ``total`` bytes."""
        return int(total * self.value / 100)

    def of_disk(self, path: str | os.PathLike[str]) -> int:
        """This share, in bytes, of the disk of ``path``. Raises :class:`OSError` as :func:`disk_total` does."""
        return self.of(disk_total(path))


def disk_total(path: str | os.PathLike[str]) -> int:
    """Size of the file system that holds ``path`` (or will, once it is made).

    Raises :class:`OSError` if the nearest existing parent cannot be asked.
    """
    return shutil.disk_usage(nearest_existing(Path(path))).total


def nearest_existing(path: Path) -> Path:
    """``path`` or its nearest parent that exists."""
    path = Path(os.path.abspath(path))
    return next((p for p in (path, *path.parents) if p.exists()), path)


def parse_size(value: object) -> int:
    """Bytes from an ``int`` or text such as ``"512 MiB"``; units in any letter case.

    ``KiB MiB GiB TiB`` are powers of 1024, ``kB MB GB TB`` powers of 1000; no unit means bytes.
    Raises :class:`BadValue`; at most 2^63 - 1.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return _in_range(value, str(value))
    if not isinstance(value, str):
        raise BadValue(f"{value!r} is not a byte size")
    number, unit = _split(value)
    if unit == "%":
        raise BadValue(f"{value!r} is a share, and this needs a byte size")
    factor = UNITS.get(unit.upper() or "B")
    if factor is None:
        raise BadValue(f"unknown unit {unit!r} in {value!r}")
    return _in_range(int(number * factor), repr(value))


def parse_cap(value: object) -> int | Percent:
    """A byte size, or a share of the disk or of memory such as ``"10%"``. Raises :class:`BadValue`."""
    if isinstance(value, Percent):
        return value
    if isinstance(value, str) and value.rstrip().endswith("%"):
        return Percent(float(_split(value)[0]))
    return parse_size(value)


def format_size(nbytes: int) -> str:
    """The shortest exact text with a binary unit, else one rounded to two digits: ``256MiB``, ``1.37GiB``."""
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(nbytes) >= factor:
            number = nbytes / factor
            return f"{number:.0f}{unit}" if nbytes % factor == 0 else f"{number:.2f}{unit}"
    return f"{nbytes}B"


def _split(text: str) -> tuple[Decimal, str]:
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        raise BadValue(f"{text!r} is not a byte size")
    return Decimal(found[1]), found[2]


def _in_range(nbytes: int, shown: str) -> int:
    if nbytes < 0:
        raise BadValue(f"{shown} is negative")
    if nbytes > BYTES_MAX:
        raise BadValue(f"{shown} is over 2^63 bytes")
    return nbytes
