"""How a session stores and restores."""

from __future__ import annotations

from dataclasses import dataclass, fields

_GIB = 1 << 30
_NAMESPACE_BYTES_MAX = 64
_RESERVED = b"kvtier."
_IDENTITY_CHARS_MAX = 1024


@dataclass(frozen=True)
class Options:
    """Fields of :func:`.attach` and :func:`.session`. Counts are in tokens. ``TypeError`` for a value of another type,
    ``ValueError`` for one out of range."""

    namespace: bytes = b""
    """Separates tenants: what another namespace stored is never found. 0 to 64 bytes; what begins with ``kvtier.`` is
    ours."""
    block_tokens: int = 256
    """Tokens in a whole block; part of the fingerprint."""
    checkpoint_tokens: int = 2048
    """A long prompt, and a long answer, is captured and gets a checkpoint every so many tokens."""
    checkpoint_user_messages: bool = True
    """A chat gets a checkpoint where its last user message begins, and where earlier ones do."""
    checkpoint_min_step: int = 8192
    """Checkpoints of earlier user messages are at least so far apart."""
    checkpoint_before_end: bool = True
    """A prompt gets a checkpoint shortly before its end, where its memory cannot step back a token."""
    checkpoint_bytes_max: int = _GIB
    """All checkpoints of one conversation together: beyond that they are thinned out, old ones more than new ones."""
    restore_min_tokens: int = 16
    """A restore must save at least so many tokens of evaluation."""
    reproducible: bool = False
    """Evaluate a prompt's last token in a batch of its own, and restore a sliding window's rows to the cells they
    were in. A prompt that is restored whole then goes on with exactly the output of its first run. It costs
    one more decode per prompt and, on a sliding window, blank rows in up to the window's cells per restore."""
    identity: str = ""
    """What changes the model's output and no file says: control vectors, LoRA set through the C API. At most 1,024
    characters."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if type(value) is not kind:
                raise TypeError(f"{field.name} must be {kind.__name__}, got {type(value).__name__}")
        if len(self.namespace) > _NAMESPACE_BYTES_MAX:
            raise ValueError(f"namespace must be at most {_NAMESPACE_BYTES_MAX} bytes, got {len(self.namespace)}")
        if self.namespace.startswith(_RESERVED):
            raise ValueError(f"namespace {self.namespace!r} is reserved: another one than {_RESERVED!r}...")
        if len(self.identity) > _IDENTITY_CHARS_MAX:
            raise ValueError(f"identity must be at most {_IDENTITY_CHARS_MAX} characters, got {len(self.identity)}")
        for name in ("block_tokens", "checkpoint_tokens", "checkpoint_min_step", "checkpoint_bytes_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
