"""What is stored and asked: the same in every run, from one seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import numpy.typing as npt

from kvtier_adapters.llama_cpp.demo.prompt import make_prompt
from tests import models

SEED = 20240607
MIB = 1 << 20

Payload = npt.NDArray[np.uint8]


def model_files() -> dict[str, Path]:
    """The two models by name, from their packages. Raises ``tests.models.ModelMissing``."""
    return {"SmolLM2-135M": models.smollm2(), "Gemma 3 270M": models.gemma3()}


def prompt(model: Path, tokens: int) -> list[int]:
    """A real text of exactly ``tokens`` tokens."""
    return make_prompt(model, tokens).first


def payloads(count: int, nbytes: int) -> list[Payload]:
    """Random bytes: no codec and no dedup can help."""
    generator = np.random.default_rng(SEED)
    return [generator.integers(0, 256, nbytes, dtype=np.uint8) for _ in range(count)]


def stamped(payload: Payload, number: int) -> Payload:
    """The payload with other first bytes, in place, so that its content is new."""
    payload[:8] = np.frombuffer(number.to_bytes(8, "little"), dtype=np.uint8)
    return payload


def questions() -> Iterator[str]:
    """Without end: paragraphs of 200 to 600 characters, each with a question."""
    generator = random.Random(SEED)
    paragraphs = sorted({p for text in topics.values() for p in text.split("\n\n") if 200 <= len(p) <= 600})
    while True:
        yield f"\n\n{generator.choice(paragraphs)}\n\nQuestion: What does this mean?\nAnswer:"
