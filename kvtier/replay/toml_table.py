"""A TOML table that is taken apart key by key, with every problem collected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvtier.errors import ConfigProblem
from kvtier.units import BadValue, parse_size


class Table:
    """A TOML table that is taken apart key by key; what is wrong in it goes to ``problems``."""

    def __init__(self, data: Mapping[str, Any], path: str, problems: list[ConfigProblem]) -> None:
        self._data = dict(data)
        self._keys = set(data)
        self._path = path
        self._problems = problems

    def take(self, key: str, parse: Callable[[object], Any]) -> Any:
        """The value of ``key``; None if it is not there, or wrong."""
        if key not in self._data:
            return None
        try:
            return parse(self._data.pop(key))
        except BadValue as e:
            self._problem(key, str(e), e.hint)
            return None

    def require(self, key: str) -> None:
        if key not in self._keys:
            self._problem(key, "is missing")

    def table(self, key: str) -> Table:
        found = self._data.pop(key, {})
        if not isinstance(found, dict):
            self._problem(key, "is not a table", f"write [{key}]")
            found = {}
        return Table(found, f"{self._path}{key}.", self._problems)

    def tables(self, key: str) -> list[dict[str, Any]]:
        found = self._data.pop(key, [])
        if not (isinstance(found, list) and all(isinstance(t, dict) for t in found)):
            self._problem(key, "is not a list of tables", f"write [[{key}]]")
            return []
        return found

    def end(self) -> None:
        """Every key has been taken: what is left is unknown."""
        for key in self._data:
            self._problem(key, "unknown key")

    def _problem(self, key: str, message: str, hint: str = "") -> None:
        self._problems.append(ConfigProblem(self._path + key, message, hint))


def text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise BadValue(f"{value!r} is not a name", "write a text")
    return value


def positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise BadValue(f"{value!r} is not a number above 0", "")
    return float(value)


def count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise BadValue(f"{value!r} is not a whole number from 0", "")
    return value


def size(value: object) -> int:
    nbytes = parse_size(value)
    if nbytes == 0:
        raise BadValue("0 bytes are too few")
    return nbytes
