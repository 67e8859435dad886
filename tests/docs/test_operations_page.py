"""What to watch: the page names every counter and every event, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

from kvtier import events

ROOT = Path(__file__).parents[2]
PAGE = re.search(
    r"^## What to watch\n(.*?)^## ", (ROOT / "docs/operations.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
SOURCE = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "kvtier").rglob("*.py")))


def named(pattern: str) -> list[str]:
    """What is named in the first columns of the page's tables."""
    assert PAGE
    return [name for row in re.findall(r"^\|([^|]*)\|", PAGE[1], re.MULTILINE) for name in re.findall(pattern, row)]


def counters() -> set[str]:
    """What ``stats().counters`` can hold: what is counted, and has no place of its own in the statistics."""
    by_reason = {"not_admitted", "over_quota"}
    counted = set(re.findall(r"\.count\(\s*\"(\w+)\"", SOURCE))
    return (counted | by_reason) - set(re.findall(r"counts\.pop\(\"(\w+)\"", SOURCE))


def test_every_counter_is_told_of_once() -> None:
    assert sorted(named(r"`([a-z_]+)`")) == sorted(counters())


def test_every_event_is_told_of_once() -> None:
    there = [e.__name__ for e in vars(events).values() if isinstance(e, type) and issubclass(e, events.Event)]
    assert sorted(named(r"`([A-Z]\w+)`")) == sorted(set(there) - {"Event"})
