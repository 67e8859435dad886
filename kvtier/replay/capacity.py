"""Capacities as people write them: shares of a trace's different blocks, or numbers of blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvtier.errors import ConfigError, ConfigProblem

_FORM = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(%?)", re.ASCII)
_OPTION = "--capacity"
_HINT = "a share of the trace's different blocks such as 5%, or a number of blocks such as 2000"


@dataclass(frozen=True)
class Capacity:
    """One capacity: the text it came from and what it means for a trace."""

    text: str
    blocks: int


def parse_capacities(text: str, unique: int) -> list[Capacity]:
    """``"1%,5%,2000"`` for a trace with so many different blocks. Raises ConfigError with all problems."""
    parsed = [_parse(part.strip(), unique) for part in text.split(",")]
    if problems := [p for p in parsed if isinstance(p, ConfigProblem)]:
        raise ConfigError(problems)
    return [c for c in parsed if isinstance(c, Capacity)]


def _parse(text: str, unique: int) -> Capacity | ConfigProblem:
    found = _FORM.fullmatch(text)
    if found is None or (not found[2] and "." in found[1]):
        return ConfigProblem(_OPTION, f"{text!r} is not a capacity", _HINT)
    number = float(found[1])
    if number == 0:
        return ConfigProblem(_OPTION, f"{text} leaves no room for a block", _HINT)
    if found[2] and number > 100:
        return ConfigProblem(_OPTION, f"{text} is more than all blocks of the trace", "at most 100%")
    if not found[2] and number > unique:
        return ConfigProblem(
            _OPTION, f"{text} blocks are more than the trace has", f"it has {unique} different blocks; at most that"
        )
    blocks = int(unique * number / 100) if found[2] else int(number)
    if blocks == 0:
        return ConfigProblem(_OPTION, f"{text} of {unique} different blocks is less than one block", _HINT)
    return Capacity(text, blocks)
