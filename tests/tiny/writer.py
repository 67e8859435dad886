"""A GGUF file in the making: metadata, a vocabulary of bytes, and weights drawn from a seed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter, TokenType

EMBD, FF = 64, 128
#: Size of an attention head: a multiple of the blocks of q8_0 and q4_0, so that K and V may have those types.
HEAD = 32
CONTEXT = 4096

_VOCABULARY = [
    (b"<unk>", 0.0, TokenType.UNKNOWN),
    (b"<s>", 0.0, TokenType.CONTROL),
    (b"</s>", 0.0, TokenType.CONTROL),
    *((f"<0x{byte:02X}>".encode(), 0.0, TokenType.BYTE) for byte in range(256)),
    ("\u2581".encode(), -1.0, TokenType.NORMAL),  # how the tokenizer writes a space
]


class Tensors:
    """Adds tensors. Shapes are those of llama.cpp's ``create_tensor``: the contiguous dimension first."""

    def __init__(self, gguf: GGUFWriter, random: np.random.RandomState, prefix: str = "") -> None:
        self._gguf = gguf
        self._random = random
        self._prefix = prefix

    def normal(self, name: str, *shape: int, gain: float = 1.0) -> None:
        """Random weights that give outputs of deviation ``gain`` for inputs of deviation 1."""
        weights = self._random.standard_normal(shape[::-1]) * (gain / np.sqrt(shape[0]))
        self.values(name, weights)

    def uniform(self, name: str, low: float, high: float, *shape: int) -> None:
        self.values(name, self._random.uniform(low, high, shape[::-1]))

    def ones(self, name: str, *shape: int) -> None:
        self.values(name, np.ones(shape[::-1]))

    def zeros(self, name: str, *shape: int) -> None:
        self.values(name, np.zeros(shape[::-1]))

    def values(self, name: str, values: npt.NDArray[np.float64]) -> None:
        self._gguf.add_tensor(self._prefix + name, values.astype(np.float32))


class Writer(Tensors):
    """A model of architecture ``arch``; the same ``seed`` gives the same bytes."""

    def __init__(self, arch: str, seed: str, layers: int) -> None:
        # RandomState, not default_rng: numpy promises that its stream never changes.
        super().__init__(GGUFWriter(None, arch), np.random.RandomState(zlib.crc32(seed.encode())))
        self._arch = arch
        self._layers = layers
        self.set(
            {
                "context_length": CONTEXT,
                "embedding_length": EMBD,
                "feed_forward_length": FF,
                "block_count": layers,
                "attention.layer_norm_rms_epsilon": 1e-5,
            }
        )
        self._vocabulary()

    def set(self, values: dict[str, Any]) -> None:
        """Metadata under the architecture's name: an int is written as u32, a list of ints as i32s."""
        for name, value in values.items():
            key = f"{self._arch}.{name}"
            if isinstance(value, list):
                self._gguf.add_array(key, value)
            elif isinstance(value, float):
                self._gguf.add_float32(key, value)
            else:
                self._gguf.add_uint32(key, value)

    def blocks(self) -> Iterator[tuple[int, Tensors]]:
        """Each layer's number and its tensors."""
        for il in range(self._layers):
            yield il, Tensors(self._gguf, self._random, f"blk.{il}.")

    def embedding(self, gain: float = 4.0) -> None:
        """With a small ``gain`` the context counts for more than the last token."""
        self.normal("token_embd.weight", EMBD, len(_VOCABULARY), gain=gain)

    def output(self, norm: str = "output_norm", gain: float = 3.0) -> None:
        self.ones(f"{norm}.weight", EMBD)
        self.unembedding(gain)

    def unembedding(self, gain: float = 3.0) -> None:
        self.normal("output.weight", EMBD, len(_VOCABULARY), gain=gain)

    def write(self, path: Path) -> Path:
        self._gguf.write_header_to_file(path)
        self._gguf.write_kv_data_to_file()
        self._gguf.write_tensors_to_file()
        self._gguf.close()
        return path

    def _vocabulary(self) -> None:
        tokens, scores, types = zip(*_VOCABULARY, strict=True)
        self._gguf.add_tokenizer_model("llama")
        self._gguf.add_token_list(list(tokens))
        self._gguf.add_token_scores(list(scores))
        self._gguf.add_token_types(list(types))
        self._gguf.add_unk_token_id(0)
        self._gguf.add_bos_token_id(1)
        self._gguf.add_eos_token_id(2)
