"""Whether saving slows an answer down: tokens a second with an attached store and without, in alternation."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llama_cpp import Llama

from bench.measure import alternate, spread
from bench.workloads import model_files, prompt, questions
from kvtier import Store
from kvtier_adapters.llama_cpp import attach

_PROMPT_TOKENS = 512
_ARMS = ("off", "on")


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Tokens a second over 512 tokens (quick: 24) after the first one, and after the second one.

    The prompt is captured between the two: the first figure has it, the second one only what decoding adds.
    """
    answer_tokens, repeats = (24, 2) if quick else (512, 5)
    rows = []
    for name, model in model_files().items():
        say(name)
        rows.append({"model": name, **_measure(model, answer_tokens, repeats, say)})
    return {"rows": rows, "prompt_tokens": _PROMPT_TOKENS, "answer_tokens": answer_tokens}


def _measure(model: Path, answer_tokens: int, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The two arms on one context. Prompts differ in their last question: what is captured is new each time."""
    llm = Llama(str(model), n_ctx=2048, flash_attn=True, verbose=False)
    start, asked = prompt(model, _PROMPT_TOKENS), questions()
    after_second: dict[str, list[float]] = {arm: [] for arm in _ARMS}
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder, Store.open(folder) as store:

        def decode(arm: str) -> float:
            first, second, end = _moments(llm, _prompt(llm, start, asked), answer_tokens)
            after_second[arm].append((answer_tokens - 2) / (end - second))
            return (answer_tokens - 1) / (end - first)

        def decode_saving() -> float:
            attachment = attach(llm, store)
            try:
                return decode("on")
            finally:
                attachment.detach()
                store.flush()  # nothing is written while the other arm runs
                if attachment.stats.errors or attachment.stats.captures_skipped:
                    raise RuntimeError(f"not everything was captured: {attachment.stats}")

        decode("off")  # the prompt is live from here on, in both arms
        after_second["off"].clear()
        after_first = alternate({"off": lambda: decode("off"), "on": decode_saving}, repeats)
    llm.close()
    return {"after_first": _compared(after_first), "after_second": _compared(after_second)}


def _prompt(llm: Llama, start: list[int], asked: Iterator[str]) -> list[int]:
    return start + [int(t) for t in llm.tokenize(next(asked).encode(), add_bos=False)]


def _moments(llm: Llama, asked: list[int], answer_tokens: int) -> tuple[float, float, float]:
    """When the first, the second and the last token of the answer were there."""
    tokens = llm.generate(asked, temp=0.0)
    next(tokens)
    first = time.perf_counter()
    next(tokens)
    second = time.perf_counter()
    for _ in itertools.islice(tokens, answer_tokens - 2):
        pass
    end = time.perf_counter()
    tokens.close()
    return first, second, end


def _compared(rates: dict[str, list[float]]) -> dict[str, Any]:
    found: dict[str, Any] = {arm: spread(samples) for arm, samples in rates.items()}
    pairs = [on / off for on, off in zip(rates["on"], rates["off"], strict=True)]
    return {**found, "on_to_off": found["on"]["median"] / found["off"]["median"], "pairs": spread(pairs)}
