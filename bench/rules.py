"""Conversations replayed under three rules for when a context is restored: llama.cpp's server before release b9509,
since then, and kvtier.

The server's rules run as one slot of it (:mod:`bench.slot`); all arms use one context each time, emptied before, and
give the recorded answers, so that they see the same prompts. Time to first token includes what an arm does in that
time: checkpoints that the slot makes while it evaluates the prompt; kvtier stores behind the first token.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import Llama
from llama_cpp.llama import LogitsProcessorList

from bench.conversations import KINDS, Request, kinds, read, requests, script
from bench.measure import spread
from bench.slot import Counts, Slot
from bench.workloads import model_files
from kvtier import Store
from kvtier_adapters.llama_cpp import attach
from tests import tiny_models

ARMS = ("old", "new", "kvtier")
_HYBRID = "qwen35"
_N_BATCH = 512


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """One row for each model: plain attention, a window, recurrent layers; quick: of the latter only, a tiny one."""
    turns, repeats = (3, 1) if quick else (4, 2)
    chosen = {} if quick else model_files()
    rows = [_measure(name, model, script(1500, turns), repeats, say) for name, model in chosen.items()]
    hybrid = tiny_models.path(_HYBRID)  # one token a byte
    rows.append(_measure(f"{_HYBRID}, hybrid, random weights", hybrid, script(200, turns), repeats, say))
    return {"rows": rows}


def replay(workload: Path | None, model: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """The same for a recorded workload (:mod:`bench.conversations`) or another model; once."""
    lines = read(workload) if workload else script(1500, 6)
    files = {model.stem: model} if model else {"Gemma 3 270M": model_files()["Gemma 3 270M"]}
    return {"rows": [_measure(name, file, lines, 1, say) for name, file in files.items()]}


class Arm(Protocol):
    """A rule at work on one context."""

    def generate(self, request: Request, answer: LogitsProcessorList) -> Generator[int, Any, None]:
        """The tokens that follow the request's prompt."""

    def counts(self) -> Counts:
        """What was done since the arm began."""


class _Server:
    """llama.cpp's server, before or since the release."""

    def __init__(self, llm: Llama, *, before_b9509: bool) -> None:
        self._llm = llm
        self._slot = Slot(llm, before_b9509=before_b9509)

    def generate(self, request: Request, answer: LogitsProcessorList) -> Generator[int, Any, None]:
        last_batch = self._slot.start(request.prompt, request.user_starts)
        return self._llm.generate(last_batch, temp=0.0, reset=False, logits_processor=answer)

    def counts(self) -> Counts:
        return self._slot.counts


class _Kvtier:
    """An attached model."""

    def __init__(self, llm: Llama, store: Store) -> None:
        self._llm = llm
        self.attachment = attach(llm, store)

    def generate(self, request: Request, answer: LogitsProcessorList) -> Generator[int, Any, None]:
        return self._llm.generate(request.prompt, temp=0.0, logits_processor=answer)

    def counts(self) -> Counts:
        stats = self.attachment.stats
        if stats.errors or stats.captures_skipped:
            raise RuntimeError(f"kvtier did not keep everything: {stats}")
        return Counts(stats.restores, stats.tokens_evaluated, stats.bytes_restored)


class _Recorded:
    """A logits processor that leaves only the next token of a recorded answer possible."""

    def __init__(self, answer: Sequence[int]) -> None:
        self._answer = iter(answer)

    def __call__(self, tokens: npt.NDArray[np.intc], logits: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        logits[:] = -np.inf
        logits[next(self._answer)] = 0.0
        return logits


@dataclass(frozen=True)
class Turn:
    """One request under one rule."""

    restores: int
    tokens_evaluated: int
    bytes_restored: int
    ttft_s: float


def _measure(
    name: str, model: Path, lines: Sequence[dict[str, Any]], repeats: int, say: Callable[[str], None]
) -> dict[str, Any]:
    vocabulary = Llama(str(model), vocab_only=True, n_ctx=8, verbose=False)
    asked = requests(vocabulary, lines)
    vocabulary.close()
    longest = max(len(r.prompt) + len(r.answer) for r in asked)
    llm = Llama(str(model), n_ctx=longest + 64, n_batch=_N_BATCH, flash_attn=True, swa_full=False, verbose=False)
    llm.eval([0])  # touches the weights
    replays: dict[str, list[list[Turn]]] = {arm: [] for arm in ARMS}
    refused = ""
    for n in range(repeats):
        for arm in ARMS:
            with _arm(arm, llm) as at_work:
                refused = at_work.attachment.stats.refused if isinstance(at_work, _Kvtier) else ""
                if not refused:
                    say(f"{name}: {arm}, replay {n + 1} of {repeats}")
                    replays[arm].append([_turn(at_work, request) for request in asked])
    llm.close()
    return {"model": name, "refused": refused, "requests": len(asked), **_figures(asked, replays)}


@contextmanager
def _arm(name: str, llm: Llama) -> Iterator[_Server | _Kvtier]:
    llm.reset()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), True)
    if name != "kvtier":
        yield _Server(llm, before_b9509=name == "old")
        return
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder, Store.open(folder) as store:
        arm = _Kvtier(llm, store)
        try:
            yield arm
        finally:
            arm.attachment.detach()


def _turn(arm: Arm, request: Request) -> Turn:
    """One request, and its recorded answer token by token."""
    before = Counts(**vars(arm.counts()))
    answer = request.answer or [0]
    begin = time.perf_counter()
    tokens = arm.generate(request, LogitsProcessorList([_Recorded([*answer, 0])]))
    next(tokens)
    ttft_s = time.perf_counter() - begin
    done = Counts(**vars(arm.counts()))
    for _ in itertools.islice(tokens, len(answer)):
        pass  # the last one is not evaluated, like the end of an answer
    tokens.close()
    return Turn(
        done.restores - before.restores,
        done.tokens_evaluated - before.tokens_evaluated,
        done.bytes_restored - before.bytes_restored,
        ttft_s,
    )


def _figures(asked: Sequence[Request], replays: dict[str, list[list[Turn]]]) -> dict[str, Any]:
    """By kind of turn and in all; counts are those of one replay (the first), times of all of them."""
    kind_of = kinds(asked)
    arms = [arm for arm in ARMS if replays[arm]]

    def of(chosen: Sequence[int]) -> dict[str, Any]:
        return {"turns": len(chosen), **{arm: _summary(replays[arm], chosen) for arm in arms}}

    by_kind = {kind: of(at) for kind in KINDS if (at := [i for i, k in enumerate(kind_of) if k == kind])}
    total = of(range(len(asked)))
    avoided = {arm: total["old"]["restores"] - total[arm]["restores"] for arm in arms if arm != "old"}
    turns = [
        {
            "conversation": request.conversation,
            "kind": kind_of[i],
            "tokens": len(request.prompt),
            **{arm: _summary(replays[arm], [i]) for arm in arms},
        }
        for i, request in enumerate(asked)
    ]
    return {"kinds": by_kind, "total": total, "restores_avoided": avoided, "turns": turns}


def _summary(replays: Sequence[Sequence[Turn]], chosen: Sequence[int]) -> dict[str, Any]:
    turns = [replays[0][i] for i in chosen]
    return {
        "restores": sum(t.restores for t in turns),
        "tokens_evaluated": sum(t.tokens_evaluated for t in turns),
        "bytes_restored": sum(t.bytes_restored for t in turns),
        "ttft_s": spread([statistics.median(replay[i].ttft_s for replay in replays) for i in chosen]),
    }
