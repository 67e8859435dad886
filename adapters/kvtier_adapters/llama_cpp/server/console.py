"""What the command itself says."""

from __future__ import annotations

import sys


def say(message: str) -> None:
    """One line on stderr."""
    print("kvtier:", " ".join(message.split()), file=sys.stderr, flush=True)
