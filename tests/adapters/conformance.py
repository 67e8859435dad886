"""A conversation in batches, and the logits behind each: captured until a kill, and gone on with by another process.

``python -m tests.adapters.conformance FOLDER CASES`` is the one that is killed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvtier import Store
from tests import models, tiny_models
from tests.adapters import engine

if TYPE_CHECKING:
    from llama_cpp import Llama

    from kvtier_adapters.llama_cpp import Attachment

Logits = npt.NDArray[np.float32]

#: As ggml numbers them.
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
#: The models of :mod:`tests.models`: a tiny one is called Gemma 3 too.
REAL = {"SmolLM2": "smollm2", "Gemma-3": "gemma3"}
#: Where batches of a prompt end: at ends of blocks (256), between them, one token apart. The rings of the tiny models'
#: windows have 256 cells.
ENDS = {"tiny": (64, 128, 200, 256, 300, 384, 449, 512, 513, 640, 700), "SmolLM2": (200, 256), "Gemma-3": (530, 560)}
#: Which of them are captured and gone back to; a place in the answer is one as well.
CHECKPOINTS = {"tiny": (200, 256, 449, 513, 700), "SmolLM2": (200,), "Gemma-3": (530,)}
N_CTX = 1024
ANSWER = {"tiny": 32, "SmolLM2": 8, "Gemma-3": 8}


@dataclass(frozen=True)
class Case:
    """A model, and the settings of its context that change the form of its state."""

    model: str
    flash_attn: bool = True
    swa_full: bool = False
    type_k: str = "f16"
    type_v: str = "f16"

    def __str__(self) -> str:
        flags = [name for name in ("flash_attn", "swa_full") if getattr(self, name)]
        types = [self.type_k] if self.type_k == self.type_v else [self.type_k, self.type_v]
        return "-".join([self.model, *flags, *types])

    @property
    def thorough(self) -> bool:
        """A run without kvtier is compared too."""
        return self.model not in REAL and self.type_k == "f16"

    @property
    def prompt_ends(self) -> tuple[int, ...]:
        """Where the batches of the prompt end; each token of the answer is a batch of its own."""
        return ENDS[self._size]

    @property
    def answer(self) -> int:
        """Tokens of the answer."""
        return ANSWER[self._size]

    @property
    def ends(self) -> tuple[int, ...]:
        """Where all batches end."""
        length = self.prompt_ends[-1]
        return *self.prompt_ends, *range(length + 1, length + self.answer + 1)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        places = *CHECKPOINTS[self._size], self.prompt_ends[-1] + self.answer // 2
        return places if self.thorough or self.model in REAL else places[2::3]

    @property
    def _size(self) -> str:
        return self.model if self.model in REAL else "tiny"

    @contextlib.contextmanager
    def loaded(self, **changes: Any) -> Iterator[Llama]:
        llm = self._load(**changes)
        try:
            yield llm
        finally:
            llm.close()

    def _load(self, **changes: Any) -> Llama:
        from llama_cpp import Llama

        fixed = {"n_threads": 1, "n_threads_batch": 1, "type_k": TYPES[self.type_k], "type_v": TYPES[self.type_v]}
        if self.model in REAL:
            setup = engine.Setup(REAL[self.model], self.flash_attn, self.swa_full)
            return engine.load(setup, **{**fixed, **changes})
        settings = {"flash_attn": self.flash_attn, "swa_full": self.swa_full, "verbose": False, "seed": 1}
        sizes = {"n_ctx": N_CTX, "n_batch": 128, "n_ubatch": 128}
        return Llama(str(tiny_models.path(self.model)), **{**fixed, **settings, **sizes, **changes})

    def attached(self, llm: Llama, store: Store) -> Attachment:
        """In a namespace of the case: ``swa_full`` is left out of the fingerprint on purpose."""
        from kvtier_adapters.llama_cpp import attach

        return attach(llm, store, reproducible=True, namespace=str(self).encode())

    def prompt(self, llm: Llama, length: int) -> list[int]:
        if self.model in REAL:
            return engine.prompt(llm, length)
        chosen = random.Random(5)  # of prose, these models would see half of their tokens never
        return [llm.token_bos(), *(chosen.randrange(3, llm.n_vocab()) for _ in range(length - 1))]


@dataclass(frozen=True)
class Record:
    """What the killed process saw of a case: a prompt and its greedy answer, the logits behind each batch."""

    tokens: list[int]
    seen: Logits
    """With all checkpoints captured."""
    uninterrupted: Logits | None
    """Without kvtier, if the case is thorough."""


def logits(llm: Llama) -> Logits:
    """Those after the last token that was evaluated."""
    import llama_cpp

    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), (llm.n_vocab(),)).copy()


def evaluate(
    llm: Llama, tokens: Sequence[int], ends: Sequence[int], done: int = 0, then: Callable[[int], None] = lambda _: None
) -> Logits:
    """The logits at each of ``ends`` beyond the first ``done`` tokens, in batches that end there."""
    seen = []
    for start, end in itertools.pairwise([done, *(end for end in ends if end > done)]):
        llm.eval(list(tokens[start:end]))
        seen.append(logits(llm))
        then(end)
    return np.stack(seen)


def converse(case: Case, llm: Llama, then: Callable[[int], None] = lambda _: None) -> tuple[list[int], Logits]:
    """The prompt and its answer, and the logits behind each batch."""
    tokens = case.prompt(llm, case.prompt_ends[-1])
    seen = [*evaluate(llm, tokens, case.prompt_ends, then=then)]
    for _ in range(case.answer):
        tokens.append(int(seen[-1].argmax()))
        seen.extend(evaluate(llm, tokens, [len(tokens)], len(tokens) - 1, then))
    return tokens, np.stack(seen)


def record(case: Case, store: Store, file: Path) -> None:
    """Write to ``file`` what :class:`Record` says, and leave the checkpoints in the store."""
    with case.loaded() as llm:
        saved: dict[str, Any] = {"uninterrupted": converse(case, llm)[1]} if case.thorough else {}
        session = case.attached(engine.fresh(llm), store).session
        tokens, seen = converse(
            case, llm, lambda end: session.capture(checkpoint=True) if end in case.checkpoints else None
        )
        np.savez(file, tokens=tokens, seen=seen, **saved)


def killed(folder: Path, cases: Sequence[Case]) -> dict[Case, Record]:
    """Run the cases in a process that kills itself; its store is ``folder / "store"``."""
    process = subprocess.run(
        [sys.executable, "-m", __name__, str(folder), json.dumps([asdict(case) for case in cases])],
        cwd=models.ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(models.ROOT), str(models.ROOT / "adapters")])},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=240,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    records = {}
    for case in cases:
        with np.load(folder / f"{case}.npz") as saved:
            uninterrupted = saved["uninterrupted"] if case.thorough else None
            records[case] = Record(saved["tokens"].tolist(), saved["seen"], uninterrupted)
    return records


def main(folder: Path, cases: Sequence[Case]) -> None:
    store = Store.open(folder / "store")
    for case in cases:
        record(case, store, folder / f"{case}.npz")
    store.flush()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Case(**fields) for fields in json.loads(sys.argv[2])])
