"""What kind of memory a context has, and so how the state of a sequence is taken apart and stored.

==================  ==================================  ==================================================
memory              stored                              can be gone back to
==================  ==================================  ==================================================
plain attention     rows                                any position
sliding window      rows, and the window's rows at      a checkpoint, or a token before it
                    checkpoints
recurrent           a snapshot at checkpoints           a checkpoint
hybrid              rows, and a snapshot of the         a checkpoint
                    recurrent layers at checkpoints
hybrid with window  all three                           a checkpoint
anything else       the whole state at checkpoints,     a checkpoint
                    not taken apart (*opaque*)
==================  ==================================  ==================================================

The kind is found out by asking for the state of a sequence that has none: its size, and for recurrent
layers its bytes, must be what :mod:`.state` knows. Anything else is opaque: nothing is guessed.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import llama_cpp

from kvtier_adapters.llama_cpp.context import Context
from kvtier_adapters.llama_cpp.state import Layout, is_recurrent_tail

FULL = int(llama_cpp.LLAMA_STATE_SEQ_FLAGS_NONE)
PARTIAL = int(llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)

_ENVELOPE = 8
_SECTION = 8
_EXTENDED_POSITIONS = {8: "M-RoPE", 40: "interleaved M-RoPE"}
_EXTENDED_WORDS = 3  # x, y, token


@dataclass(frozen=True, slots=True)
class Memory:
    """How the state of a sequence is stored."""

    layout: Layout | None
    """Of the blobs of rows; None: there are none, or they are not understood."""
    n_swa: int = 0
    """Positions of the sliding window whose rows are stored at checkpoints; 0: none."""
    recurrent: Layout | None = None
    """Of the snapshot of the recurrent layers; None: there is none, or it is not understood."""
    why_opaque: str = ""
    """Why the state is not taken apart; empty if it is."""

    @property
    def rows(self) -> bool:
        """Rows can be captured by range."""
        return self.layout is not None

    @property
    def snapshots(self) -> bool:
        """A checkpoint has a snapshot, and nothing but a checkpoint can be gone back to."""
        return self.recurrent is not None or self.layout is None

    @property
    def checkpoints(self) -> bool:
        """Only checkpoints can be gone back to."""
        return self.snapshots or self.n_swa > 0

    @property
    def snapshot_flags(self) -> int:
        return PARTIAL if self.rows else FULL

    def __str__(self) -> str:
        if self.why_opaque:
            return f"opaque: {self.why_opaque}"
        names = {"rows": self.rows, "window": self.n_swa, "recurrent": self.recurrent}
        return "+".join(name for name, present in names.items() if present)


def kinds(name: str) -> tuple[bool, bool, bool]:
    """What ``str`` of a :class:`Memory` says: whether it has rows, a window, snapshots."""
    parts = name.split("+")
    whole = name.startswith("opaque")
    return "rows" in parts, "window" in parts, whole or "recurrent" in parts


def opaque(why: str) -> Memory:
    """The state is stored whole, for the reason given."""
    return Memory(None, why_opaque=why)


def refusal(context: Context) -> str | None:
    """Why no state of this context can be stored at all, or None."""
    model = context.model
    if llama_cpp.llama_model_has_encoder(model) or llama_cpp.llama_model_is_diffusion(model):
        return "not a decoder-only model"
    if context.params.embeddings or context.memory is None:
        return "embedding context"
    return None


def scratch_ids() -> tuple[int, int]:
    """Sequence ids for captures and for cells that must stay free: the highest that llama.cpp knows, which no
    context with fewer sequences hands out."""
    highest = int(llama_cpp.llama_max_parallel_sequences()) - 1
    return highest, highest - 1


def detect(context: Context) -> Memory:
    """The memory of a context that :func:`refusal` has nothing against. Makes no call that could abort."""
    recurrent = bool(llama_cpp.llama_model_is_recurrent(context.model))
    hybrid = bool(llama_cpp.llama_model_is_hybrid(context.model))
    if llama_cpp.llama_n_rs_seq(context.handle) > 0:
        return opaque("the recurrent layers keep states to roll back to")
    if recurrent and not hybrid:
        tail = _empty_state(context, FULL)[_ENVELOPE:]
        return Memory(None, recurrent=Layout(0, tail=tail)) if is_recurrent_tail(tail) else opaque("unknown layout")
    if context.n_seq_max > 1 and not context.params.kv_unified:
        return opaque(f"{context.n_seq_max} KV streams")  # a range copied across streams aborts the process
    if context.n_seq_max > min(scratch_ids()):
        return opaque("no sequence ids left for ranges")
    return _by_ranges(context, hybrid) or opaque("unknown layout")


def _by_ranges(context: Context, hybrid: bool) -> Memory | None:
    """The memory, if the state of an empty sequence is laid out as one of the known kinds."""
    n_swa = context.n_swa
    windows = 1 if n_swa else 0
    full, partial = _empty_state(context, FULL), _empty_state(context, PARTIAL)
    tail = partial[_ENVELOPE + windows * _SECTION :] if hybrid else b""
    shared = windows if hybrid else 1  # without a recurrent part a partial blob of one section is the section
    if len(partial) != _ENVELOPE + shared * _SECTION + len(tail):
        return None
    if len(full) != _ENVELOPE + (1 + windows) * _SECTION + len(tail) or (hybrid and not is_recurrent_tail(tail)):
        return None
    extra = _EXTENDED_WORDS if llama_cpp.llama_model_rope_type(context.model) in _EXTENDED_POSITIONS else 0
    values = context.metadata("{arch}.attention.key_length_mla") in ("", "0")
    layout = Layout(1 + windows, extra, values, tail)
    return Memory(layout, n_swa, Layout(windows, extra, values, tail) if hybrid else None)


def _empty_state(context: Context, flags: int) -> bytes:
    """The state of a sequence that holds nothing."""
    scratch, _ = scratch_ids()
    size = int(llama_cpp.llama_state_seq_get_size_ext(context.handle, scratch, flags))
    state = (ctypes.c_uint8 * size)()
    wrote = int(llama_cpp.llama_state_seq_get_data_ext(context.handle, state, size, scratch, flags))
    return bytes(state)[:wrote]
