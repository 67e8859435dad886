"""One slot of llama.cpp's server, as far as its context checkpoints go, on llama.cpp's C API.

It follows ``tools/server/server-context.cpp`` of the llama.cpp that llama-cpp-python brings along, with the server's
defaults (32 checkpoints, at least 8192 tokens apart where they are not near the end of a prompt): where a prompt goes
on, when a checkpoint is searched, which one is taken, and where checkpoints are made. ``before_b9509`` brings back
the margin of 1 that release b9509 made conditional; nothing else differs. Not followed: the server's prompt cache in
RAM (``--cache-ram``), which swaps whole slots, and speculative decoding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import Llama

from kvtier_adapters.llama_cpp.checkpoints import upstream_searches

CHECKPOINTS_MAX = 32
MIN_STEP = 8192
_BEFORE_END = 4
_SEQUENCE = 0
_PARTIAL = llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
_U8P = ctypes.POINTER(ctypes.c_uint8)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The part of a state that cannot be rolled back, as of ``n_tokens``; made for request number ``request``."""

    request: int
    n_tokens: int
    pos_min: int
    pos_max: int
    data: npt.NDArray[np.uint8]


@dataclass
class Counts:
    """What a slot did so far; tokens of prompts only."""

    restores: int = 0
    tokens_evaluated: int = 0
    bytes_restored: int = 0


@dataclass(frozen=True)
class Batches:
    """How the server cuts a prompt into batches, and before which of them it makes a checkpoint."""

    n_tokens: int
    user_starts: Sequence[int]
    n_batch: int
    n_ubatch: int

    def end(self, start: int, last: int | None) -> int:
        """Where the batch from token ``start`` ends; ``last``: tokens in the newest checkpoint, None without any."""
        for n in range(start + 1, min(start + self.n_batch, self.n_tokens)):
            left = self.n_tokens - n
            if left in (min(self.n_batch, _BEFORE_END + self.n_ubatch), min(self.n_batch, _BEFORE_END)):
                return n
            if n in self.user_starts and (n == self.user_starts[-1] or _is_far(n, last)):
                return n
        return min(start + self.n_batch, self.n_tokens)

    def is_checkpoint(self, start: int, end: int, last: int | None) -> bool:
        """Whether the state before the batch ``[start, end)`` is kept."""
        is_near_end = self.n_tokens < end + self.n_ubatch
        if end < self.n_tokens and start not in self.user_starts and not is_near_end:
            return False
        is_last_user = bool(self.user_starts) and start == self.user_starts[-1]
        return is_last_user or is_near_end or _is_far(start, last)


def _is_far(n: int, last: int | None) -> bool:
    return last is None or n > last + MIN_STEP


class Slot:
    """The live context of ``llm`` and its checkpoints, the oldest first."""

    def __init__(self, llm: Llama, *, before_b9509: bool) -> None:
        self.counts = Counts()
        self.checkpoints: list[Checkpoint] = []
        self._llm = llm
        self._before_b9509 = before_b9509
        swa = 0 if llm.context_params.swa_full else llama_cpp.llama_model_n_swa(llm.model)
        self._n_swa = int(swa)
        self._has_checkpoints = self._n_swa > 0 or any(
            is_so(llm.model) for is_so in (llama_cpp.llama_model_is_recurrent, llama_cpp.llama_model_is_hybrid)
        )
        self._request = 0

    def start(self, prompt: list[int], user_starts: Sequence[int]) -> list[int]:
        """Evaluate a prompt but for its last batch, which is returned."""
        self._request += 1
        llm = self._llm
        start = self._resume(prompt)
        self.counts.tokens_evaluated += len(prompt) - start
        llm.n_tokens = start
        llama_cpp.llama_memory_seq_rm(self._memory, _SEQUENCE, start, -1)
        batches = Batches(len(prompt), user_starts, llm.n_batch, int(llama_cpp.llama_n_ubatch(llm.ctx)))
        while True:
            end = batches.end(start, self._last) if self._has_checkpoints else min(start + llm.n_batch, len(prompt))
            if self._has_checkpoints and batches.is_checkpoint(start, end, self._last):
                self._make_checkpoint(start)
            if end == len(prompt):
                return prompt[start:]
            llm.eval(prompt[start:end])
            start = end

    def _resume(self, prompt: list[int]) -> int:
        """Where the prompt goes on; a checkpoint is restored for it where the rule wants one."""
        n_past = _common(self._llm.input_ids[: self._llm.n_tokens], prompt)
        pos_next = n_past
        pos_min = int(llama_cpp.llama_memory_seq_pos_min(self._memory, _SEQUENCE))
        if n_past > 0 and self._searches(pos_min, pos_next, n_past, len(prompt)):
            found = self._find(pos_next, n_past, len(prompt))
            if found is None:
                pos_next = n_past = 0
            else:
                self._load(found)
                pos_next = min(pos_next, max(found.pos_min + 1, found.pos_max))
                n_past = min(pos_next, self._llm.n_tokens, found.n_tokens)
        self.checkpoints = [c for c in self.checkpoints if c.pos_max <= pos_next]
        return n_past - 1 if n_past == len(prompt) else n_past

    def _searches(self, pos_min: int, pos_next: int, n_past: int, n_prompt: int) -> bool:
        return upstream_searches(pos_min, pos_next, self._n_swa, n_past, n_prompt, before_b9509=self._before_b9509)

    def _find(self, pos_next: int, n_past: int, n_prompt: int) -> Checkpoint | None:
        """The newest checkpoint that starts early enough not to be searched past, or at 0."""
        for found in reversed(self.checkpoints):
            if found.pos_max <= pos_next and (
                found.pos_min == 0 or not self._searches(found.pos_min, pos_next, n_past, n_prompt)
            ):
                return found
        return None

    @property
    def _last(self) -> int | None:
        return self.checkpoints[-1].n_tokens if self.checkpoints else None

    @property
    def _memory(self) -> Any:
        return llama_cpp.llama_get_memory(self._llm.ctx)

    def _make_checkpoint(self, n_tokens: int) -> None:
        first, last = (
            int(position(self._memory, _SEQUENCE))
            for position in (llama_cpp.llama_memory_seq_pos_min, llama_cpp.llama_memory_seq_pos_max)
        )
        if first < 0:
            return  # nothing to keep yet
        size = int(llama_cpp.llama_state_seq_get_size_ext(self._llm.ctx, _SEQUENCE, _PARTIAL))
        data = np.empty(size, dtype=np.uint8)
        llama_cpp.llama_state_seq_get_data_ext(self._llm.ctx, data.ctypes.data_as(_U8P), size, _SEQUENCE, _PARTIAL)
        self.checkpoints = kept(self.checkpoints, self._request, n_tokens)
        self.checkpoints.append(Checkpoint(self._request, n_tokens, first, last, data))

    def _load(self, found: Checkpoint) -> None:
        source, size = found.data.ctypes.data_as(_U8P), found.data.nbytes
        read = int(llama_cpp.llama_state_seq_set_data_ext(self._llm.ctx, source, size, _SEQUENCE, _PARTIAL))
        if read != size:
            raise RuntimeError(f"checkpoint: {read} of {size} bytes restored")
        self.counts.restores += 1
        self.counts.bytes_restored += size


def kept(checkpoints: Sequence[Checkpoint], request: int, n_tokens: int) -> list[Checkpoint]:
    """The checkpoints that stay when one of ``n_tokens`` tokens is made for ``request``."""
    left = list(checkpoints)
    last: int | None = None
    for one in checkpoints:
        if len(left) + 1 < CHECKPOINTS_MAX:
            break
        if one.request != request and last is not None and one.n_tokens <= last + MIN_STEP:
            left.remove(one)
        else:
            last = one.n_tokens
    left = left[max(0, len(left) - (CHECKPOINTS_MAX - 1)) :]
    return [one for one in left if one.n_tokens != n_tokens]


def _common(live: npt.NDArray[np.intc], prompt: list[int]) -> int:
    length = min(len(live), len(prompt))
    differs = np.flatnonzero(live[:length] != np.asarray(prompt[:length], dtype=np.intc))
    return int(differs[0]) if len(differs) else length
