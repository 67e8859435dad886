"""A conversation of six turns: what each turn writes."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from typing import Any

from llama_cpp import Llama

from bench.measure import kernel_bytes_written
from bench.workloads import model_files, prompt, questions
from kvtier import Store
from kvtier_adapters.llama_cpp import attach
from kvtier_adapters.llama_cpp.demo.worker import kv_bytes_per_token

TURNS = 6
_FIRST_TOKENS, _ANSWER_TOKENS = 1024, 64


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """For each model: the turns, bytes new and written."""
    rows = []
    for name, model in model_files().items():
        llm = Llama(str(model), n_ctx=4096, flash_attn=True, verbose=False)
        row_bytes = kv_bytes_per_token(llm)
        say(f"{name}: {TURNS} turns")
        turns = _turns(llm, prompt(model, _FIRST_TOKENS), row_bytes)
        rows.append({"model": name, "kv_bytes_per_token": row_bytes, "turns": turns})
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
