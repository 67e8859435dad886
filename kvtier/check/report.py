"""What an audit found, without a name or a key in it: it can be shown to anybody."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

_FINDINGS_MAX = 1000


class Kind(str, Enum):
    """What is damaged."""

    SEGMENT = "segment"  # a whole file, or its header
    RECORD = "record"  # the head of a record that a block needs
    PAYLOAD = "payload"  # the bytes of a record that a block needs
    INDEX = "index"  # what the index says


class Finding(NamedTuple):
    """One thing that is damaged: where, and how. ``offset`` in bytes."""

    kind: Kind
    what: str
    tier: str | None = None
    segment: int | None = None
    offset: int | None = None

    def __str__(self) -> str:
        place = (f"tier {self.tier}", f"segment {self.segment}", f"offset {self.offset}")
        known = [text for text, value in zip(place, self[2:], strict=True) if value is not None]
        return f"{', '.join([self.kind.value, *known])}: {self.what}"


@dataclass
class Report:
    """What an audit found. ``findings`` has the first 1000; ``damage`` counts all of them.

    ``blocks_damaged``: blocks that are misses because of it. ``notes`` counts what is no damage: files of others,
    temporary files, bytes that no block needs and that are no records, segments that await recovery.
    """

    findings: list[Finding] = field(default_factory=list)
    damage: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    segments: int = 0
    records: int = 0
    record_bytes: int = 0
    blocks: int = 0
    blocks_damaged: int = 0

    @property
    def is_sound(self) -> bool:
        return not self.damage

    def add(self, finding: Finding, count: int = 1) -> None:
        self.damage[finding.kind.value] += count
        if len(self.findings) < _FINDINGS_MAX:
            self.findings.append(finding)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {
            "sound": self.is_sound,
            "segments": self.segments,
            "records": self.records,
            "record_bytes": self.record_bytes,
            "blocks": self.blocks,
            "blocks_damaged": self.blocks_damaged,
            "damage": dict(self.damage),
            "notes": dict(self.notes),
            "findings": [{**f._asdict(), "kind": f.kind.value} for f in self.findings],
        }
