"""What an attachment did, as counts."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_COUNTING = threading.Lock()


@dataclass
class SessionStats:
    """Counts since the session began. Written by the thread that uses the model, ``errors`` by any; reading is always
    safe."""

    prompts: int = 0
    tokens_evaluated: int = 0
    """Every token that went through ``Llama.eval``, prompt and generated."""
    tokens_restored: int = 0
    """Prompt tokens that a restore saved evaluating, beyond what the live context held."""
    restores: int = 0
    restores_avoided: int = 0
    """Prompts that the live context served."""
    cold_starts: int = 0
    """Prompts evaluated from their first token."""
    pieces_captured: int = 0
    bytes_captured: int = 0
    """Bytes of rows put into the store (those found there already are not counted)."""
    checkpoint_bytes: int = 0
    """Bytes of sliding-window rows and snapshots put into the store, the same way."""
    captures_skipped: int = 0
    """Captures cut short because the store's write queue was full; they are tried again later."""
    bytes_restored: int = 0
    """Bytes read for restores: rows, windows, snapshots."""
    misses: Counter[str] = field(default_factory=Counter)
    """Why a restore was shorter than it could have been, by reason."""
    errors: Counter[str] = field(default_factory=Counter)
    """Exceptions that the adapter kept from inference, by type."""
    last_error: str = ""
    refused: str = ""
    """Why this model's state is not stored at all; empty if it is."""
    memory: str = ""
    """How the state is taken apart: see :class:`.Memory`."""
    mended: int = 0
    """Evaluations before which the context had to be brought back: see :meth:`.LlamaSession.mend`."""
    checkpoints_thinned: int = 0
    """Checkpoints deleted to keep a conversation's within ``checkpoint_bytes_max``."""

    def count(self, error: Exception) -> None:
        """Note an exception that was kept from inference. Any thread."""
        with _COUNTING:
            self.errors[type(error).__name__] += 1
            self.last_error = f"{type(error).__name__}: {error}"

    def as_dict(self) -> dict[str, Any]:
        with _COUNTING:
            return {**vars(self), "misses": dict(self.misses), "errors": dict(self.errors)}
