"""Several sequences in one context, in shared batches: what a server with continuous batching does, for the tests."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp._logger import set_verbose

from kvtier_adapters.llama_cpp import Context

Logits = npt.NDArray[np.float32]


class Batching:
    """A context of its own, made through the C API; decodes what several sequences have to say in one batch."""

    def __init__(self, model: Path, **params: Any) -> None:
        set_verbose(False)
        model_params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(model).encode(), model_params)
        self.params = llama_cpp.llama_context_default_params()
        options = {"n_ctx": 1024, "n_batch": 1024, "n_ubatch": 128, "n_threads": 1, "n_threads_batch": 1}
        for name, value in {**options, "n_seq_max": 4, "kv_unified": True, "swa_full": False, **params}.items():
            assert hasattr(self.params, name), f"no parameter {name}"
            setattr(self.params, name, value)
        self.handle = llama_cpp.llama_init_from_model(self.model, self.params)
        assert self.handle, "llama.cpp could not make the context"
        self.memory: Any = llama_cpp.llama_get_memory(self.handle)
        self.context = Context(lambda: self.handle, self.params, model)
        self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model)))

    def close(self) -> None:
        llama_cpp.llama_free(self.handle)
        llama_cpp.llama_model_free(self.model)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self.memory, True)

    def decode(self, said: Mapping[int, Sequence[int]]) -> dict[int, Logits]:
        """Decode each sequence's tokens behind what it holds, all in one batch; the logits behind the last of each."""
        rows = [
            (sequence, self.pos_max(sequence) + 1 + number, int(token), number == len(tokens) - 1)
            for sequence, tokens in said.items()
            for number, token in enumerate(tokens)
        ]
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for at, (sequence, position, token, last) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, last
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = sequence
        status = llama_cpp.llama_decode(self.handle, batch)
        llama_cpp.llama_batch_free(batch)
        assert status == 0, f"llama_decode: {status}"
        return {sequence: self._logits(at) for at, (sequence, _, _, last) in enumerate(rows) if last}

    def _logits(self, row: int) -> Logits:
        pointer = llama_cpp.llama_get_logits_ith(self.handle, row)
        return np.ctypeslib.as_array(pointer, (self.n_vocab,)).copy()

    def pos_max(self, sequence: int) -> int:
        """The last position of a sequence; -1 if it is empty."""
        return int(llama_cpp.llama_memory_seq_pos_max(self.memory, sequence))

    def state(self, sequence: int) -> bytes:
        """All that the context holds of a sequence."""
        size = llama_cpp.llama_state_seq_get_size_ext(self.handle, sequence, 0)
        state = (ctypes.c_uint8 * size)()
        wrote = llama_cpp.llama_state_seq_get_data_ext(self.handle, state, size, sequence, 0)
        return bytes(state)[8:wrote]  # behind a header that names the sequence


@contextlib.contextmanager
def batching(model: Path, **params: Any) -> Iterator[Batching]:
    made = Batching(model, **params)
    try:
        yield made
    finally:
        made.close()
