"""Puts that found the write queue full: counted each, told once an episode."""

from __future__ import annotations

from kvtier.blocks import PutOutcome
from kvtier.events import Signals, WriteSkipped


class Skips:
    """Any thread."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._is_skipping = False

    def note(self, outcome: PutOutcome, pending_bytes: int) -> None:
        """What became of a put."""
        skipped = outcome is PutOutcome.SKIPPED
        if skipped:
            self._signals.count("skipped")
            if not self._is_skipping:
                self._signals.emit(WriteSkipped(pending_bytes))
        self._is_skipping = skipped
