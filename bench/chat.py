"""A conversation of 20 turns: what each turn writes, and how long captures hold up the thread that generates."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

from llama_cpp import Llama

from bench.measure import kernel_bytes_written, timed
from bench.stall import copy_s
from bench.workloads import model_files, prompt, questions
from kvtier import Store
from kvtier_adapters.llama_cpp import attach
from kvtier_adapters.llama_cpp.cache import Attachment
from kvtier_adapters.llama_cpp.demo.worker import kv_bytes_per_token

TURNS = 20
_TURNS_QUICK = 3
_FIRST_TOKENS, _FIRST_TOKENS_QUICK, _ANSWER_TOKENS = 1024, 256, 64


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """For each model: the turns, bytes new and written, seconds in captures."""
    turns, rows = _TURNS_QUICK if quick else TURNS, []
    for name, model in model_files().items():
        llm = Llama(str(model), n_ctx=8192, flash_attn=True, verbose=False)
        row_bytes = kv_bytes_per_token(llm)
        say(f"{name}: {turns} turns")
        found = _turns(llm, prompt(model, _FIRST_TOKENS_QUICK if quick else _FIRST_TOKENS), row_bytes, turns)
        rows.append({"model": name, "kv_bytes_per_token": row_bytes, "turns": found})
        llm.close()
    return {"rows": rows}


def _turns(llm: Llama, first: list[int], row_bytes: int, turns: int) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder, Store.open(folder) as store:
        attachment = attach(llm, store)
        store.flush()
        asked = list(first)
        for question in itertools.islice(questions(), turns):
            held, captured = llm.n_tokens, _captured(attachment)
            before = store.stats().bytes_written, attachment.stats.checkpoint_bytes, kernel_bytes_written()
            with _captures(attachment) as stalls:
                asked += _answer(llm, asked)
            store.flush()
            stall_s, memcpy_s = sum(stalls), copy_s(_captured(attachment) - captured)
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
                    "stall_s": stall_s,
                    "memcpy_s": memcpy_s,
                }
            )
            asked += llm.tokenize(question.encode(), add_bos=False)
        attachment.detach()
    return found


@contextmanager
def _captures(attachment: Attachment) -> Iterator[list[float]]:
    """Seconds of each capture inside."""
    seconds: list[float] = []
    capture = attachment.session.capture

    def clocked(*args: Any, **options: Any) -> None:
        seconds.append(timed(partial(capture, *args, **options)))

    with mock.patch.object(attachment.session, "capture", clocked):
        yield seconds


def _captured(attachment: Attachment) -> int:
    return attachment.stats.bytes_captured + attachment.stats.checkpoint_bytes


def _answer(llm: Llama, asked: list[int]) -> list[int]:
    tokens = llm.generate(asked, temp=0.0)
    answer = list(itertools.islice(tokens, _ANSWER_TOKENS))
    tokens.close()
    return answer
