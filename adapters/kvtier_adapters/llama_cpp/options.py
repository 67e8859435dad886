"""How a session stores and restores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Fields of :func:`.attach`. Counts are in tokens. ``ValueError`` for one that is out of range."""

    namespace: bytes = b""
    """Separates tenants: what another namespace stored is never found."""
    block_tokens: int = 256
    """Tokens in a whole block; part of the fingerprint."""
    checkpoint_tokens: int = 2048
    """A long prompt, and a long answer, is captured (and its window checkpointed) every so many tokens."""
    restore_min_tokens: int = 16
    """A restore must save at least so many tokens of evaluation."""
    reproducible: bool = False
    """Evaluate a prompt's last token in a batch of its own, and restore a sliding window's rows to the cells they
    were in. A prompt that is restored whole then goes on with exactly the output of its first run. It costs
    one more decode per prompt and, unless ``swa_full``, up to ``n_ubatch`` more rows per window."""

    def __post_init__(self) -> None:
        for name in ("block_tokens", "checkpoint_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
