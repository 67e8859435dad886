"""A conversation of six turns: what each turn writes; and whether saving slows the answer down."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llama_cpp import Llama

from bench.measure import alternate, kernel_bytes_written, spread
from bench.workloads import model_files, prompt, questions
from kvtier import Store
from kvtier_adapters.llama_cpp import attach
from kvtier_adapters.llama_cpp.demo.worker import kv_bytes_per_token

TURNS = 6
_FIRST_TOKENS, _ANSWER_TOKENS = 1024, 64
_SPEED_PROMPT_TOKENS = 512


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """For each model: the turns, bytes new and written; and tokens a second with saving on and off."""
    rows = []
    for name, model in model_files().items():
        llm = Llama(str(model), n_ctx=4096, flash_attn=True, verbose=False)
        row_bytes = kv_bytes_per_token(llm)
        say(f"{name}: {TURNS} turns")
        turns = _turns(llm, prompt(model, _FIRST_TOKENS), row_bytes)
        say(f"{name}: decoding with saving on and off")
        speed = _decode_speed(llm, prompt(model, _SPEED_PROMPT_TOKENS), 64 if quick else 256, 3 if quick else 7)
        rows.append({"model": name, "kv_bytes_per_token": row_bytes, "turns": turns, "decode": speed})
        llm.close()
    return {"rows": rows}


def _turns(llm: Llama, first: list[int], row_bytes: int) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder, Store.open(folder) as store:
        attachment = attach(llm, store)
        store.flush()
        asked = list(first)
        for question in itertools.islice(questions(), TURNS):
            held = llm.n_tokens
            before = store.stats().bytes_written, attachment.stats.checkpoint_bytes, kernel_bytes_written()
            asked += _answer(llm, asked)
            store.flush()
            written, checkpoints, kernel = store.stats().bytes_written, attachment.stats.checkpoint_bytes, None
            if before[2] is not None:
                kernel = (kernel_bytes_written() or 0) - before[2]
            new = (llm.n_tokens - held) * row_bytes
            rows_written = written - before[0] - (checkpoints - before[1])
            found.append(
                {
                    "new_tokens": llm.n_tokens - held,
                    "bytes_new_kv": new,
                    "bytes_written": rows_written,
                    "written_to_new": rows_written / new,
                    "checkpoint_bytes": checkpoints - before[1],
                    "kernel_bytes_written": kernel,
                }
            )
            asked += llm.tokenize(question.encode(), add_bos=False)
        attachment.detach()
    return found


def _answer(llm: Llama, asked: list[int]) -> list[int]:
    tokens = llm.generate(asked, temp=0.0)
    answer = list(itertools.islice(tokens, _ANSWER_TOKENS))
    tokens.close()
    return answer


def _decode_speed(llm: Llama, start: list[int], answer_tokens: int, repeats: int) -> dict[str, Any]:
    """Seconds from the first token of an answer to its end, everything captured; prompts differ, so that all is new."""
    asked = questions()
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder, Store.open(Path(folder)) as store:

        def decode() -> float:
            return _seconds_after_first(llm, start, asked, answer_tokens)

        def decode_saving() -> float:
            with attach(llm, store):
                return decode()

        decode()  # the prompt is live from here on, in both arms
        seconds = alternate({"off": decode, "on": decode_saving}, repeats)
    rates = {arm: spread([(answer_tokens - 1) / s for s in samples]) for arm, samples in seconds.items()}
    return {"tokens_per_s": rates, "on_to_off": rates["on"]["median"] / rates["off"]["median"]}


def _seconds_after_first(llm: Llama, start: list[int], asked: Iterator[str], answer_tokens: int) -> float:
    tokens = llm.generate(start + llm.tokenize(next(asked).encode(), add_bos=False), temp=0.0)
    next(tokens)
    begin = time.perf_counter()
    for _ in itertools.islice(tokens, answer_tokens - 1):
        pass
    tokens.close()
    return time.perf_counter() - begin
