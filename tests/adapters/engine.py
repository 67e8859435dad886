"""Real models for the adapter's tests: how they are loaded, prompted and run without kvtier."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtier import Config, Store
from tests import models

if TYPE_CHECKING:
    from llama_cpp import Llama

    from kvtier_adapters.llama_cpp import LlamaSession

ANSWER = 64
N_CTX, N_BATCH = 1024, 256
#: Bytes of one token's rows: layers, K and V, heads, size of a head, f16.
ROW_BYTES = {"smollm2": 30 * 2 * 3 * 64 * 2, "gemma3": 3 * 2 * 1 * 256 * 2}
WINDOW_ROW_BYTES = {"smollm2": 0, "gemma3": 15 * 2 * 1 * 256 * 2}


@dataclass(frozen=True)
class Setup:
    """A model and the settings that change the form of its state."""

    model: str
    flash_attn: bool = True
    swa_full: bool = False

    def __str__(self) -> str:
        return "-".join([self.model, *(n for n in ("flash_attn", "swa_full") if getattr(self, n))])


SMOL, SMOL_PLAIN = Setup("smollm2"), Setup("smollm2", flash_attn=False)
GEMMA, GEMMA_PLAIN = Setup("gemma3"), Setup("gemma3", flash_attn=False)
GEMMA_FULL, GEMMA_PLAIN_FULL = Setup("gemma3", swa_full=True), Setup("gemma3", flash_attn=False, swa_full=True)
SETUPS = [SMOL, SMOL_PLAIN, GEMMA, GEMMA_PLAIN, GEMMA_FULL, GEMMA_PLAIN_FULL]


def model_path(model: str) -> Path:
    return models.smollm2() if model == "smollm2" else models.gemma3()


def load(setup: Setup, **changes: Any) -> Llama:
    from llama_cpp import Llama

    options: dict[str, Any] = {
        "n_ctx": N_CTX,
        "n_batch": N_BATCH,
        "flash_attn": setup.flash_attn,
        "swa_full": setup.swa_full,
        "verbose": False,
        "seed": 1,
    }
    return Llama(str(model_path(setup.model)), **{**options, **changes})


@contextlib.contextmanager
def loaded(setup: Setup, **changes: Any) -> Iterator[Llama]:
    llm = load(setup, **changes)
    try:
        yield llm
    finally:
        llm.close()


@functools.cache
def _text() -> str:
    return (models.ROOT / "LICENSE").read_text()


def prompt(llm: Llama, length: int, skip: int = 0) -> list[int]:
    """``length`` tokens of English prose, from character ``skip`` of it on."""
    return [int(t) for t in llm.tokenize(_text()[skip:].encode())[:length]]


_evaluated: dict[tuple[object, ...], bytes] = {}


def evaluate(llm: Llama, tokens: Sequence[int]) -> None:
    """``tokens`` in the (empty) context, as after ``llm.eval``. The second time llama.cpp's own state is set
    instead: most tests need a context that was evaluated, not the evaluation."""
    import llama_cpp

    params = llm.context_params
    key = (llm.model_path, params.flash_attn_type, params.swa_full, tuple(tokens))
    if key in _evaluated and "_kvtier_attachment" not in vars(llm):  # which is told of evaluations only
        known = _evaluated[key]
        state = (ctypes.c_uint8 * len(known)).from_buffer_copy(known)
        assert llama_cpp.llama_state_seq_set_data(llm.ctx, state, len(state), 0) == len(known)
        llm.input_ids[: len(tokens)] = tokens
        llm.n_tokens = len(tokens)
    else:
        llm.eval(list(tokens))
        state = (ctypes.c_uint8 * llama_cpp.llama_state_seq_get_size(llm.ctx, 0))()
        llama_cpp.llama_state_seq_get_data(llm.ctx, state, len(state), 0)
        _evaluated[key] = bytes(state)
    llm._requires_eval = True  # either way: no test may depend on which it was


def words(llm: Llama, text: str) -> list[int]:
    return [int(t) for t in llm.tokenize(text.encode(), add_bos=False)]


def greedy(llm: Llama, tokens: Sequence[int], count: int = ANSWER, **options: Any) -> list[int]:
    """``count`` greedy tokens after a prompt, through whatever ``llm.generate`` is now."""
    answer: list[int] = []
    generator = llm.generate(list(tokens), temp=0.0, **options)
    for token in generator:
        answer.append(int(token))
        if len(answer) == count:
            break
    generator.close()
    return answer


def uninterrupted(llm: Llama, tokens: Sequence[int], more: Sequence[int] = (), count: int = ANSWER) -> list[list[int]]:
    """The answers to a prompt, and to ``more`` said after the first, in one context without kvtier.

    Each prompt's last token is a batch of its own, as with the option ``reproducible``.
    """
    answers: list[list[int]] = []
    turns = [list(tokens)]
    while turns:
        turn = turns.pop()
        if len(turn) > 1:
            llm.eval(turn[:-1])
        answers.append(greedy(llm, turn[-1:], count, reset=False))
        if more and len(answers) == 1:
            turns.append([answers[0][-1], *more])
    return answers


def fresh(llm: Llama) -> Llama:
    """The same model with nothing in its context."""
    llm.reset()
    llm._ctx.kv_cache_clear()
    return llm


def in_ram() -> Store:
    return Store.open(Config.from_dict({"ram": {"bytes_max": "256MiB"}}))


def stored(llm: Llama, store: Store, tokens: Sequence[int], **options: Any) -> LlamaSession:
    """Evaluate ``tokens``, capture them, and empty the context again."""
    from kvtier_adapters.llama_cpp import LlamaSession, Options

    session = LlamaSession(llm, store, Options(**options))
    evaluate(llm, tokens)
    session.capture(checkpoint=True)
    assert session.stats.errors == {}
    fresh(llm)
    return session


def next_token(llm: Llama, rest: Sequence[int]) -> int:
    """The greedy token after evaluating ``rest``."""
    llm.eval(list(rest))
    return int(llm.sample(temp=0.0))


def pos_max(llm: Llama) -> int:
    """The last position that the context holds; -1 if it is empty."""
    import llama_cpp

    return int(llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(llm.ctx), 0))
