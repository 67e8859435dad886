"""Two models in one store: both prompts are stored, the store is closed, and each model gets its own back.

Both are restored in turns from one open store, its files dropped from memory before each. No block of one may serve the
other: counted by asking each for the other's prompt, the very same numbers of tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import Llama

from bench.measure import alternate, spread, timed
from bench.stores import config_of
from bench.workloads import model_files, prompt
from kvtier import Store
from kvtier_adapters.llama_cpp import attach
from kvtier_adapters.llama_cpp.demo import page_cache


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """For each model: seconds to the first token with the other one's blocks in the same store, and what came back."""
    tokens, repeats = (512, 3) if quick else (2048, 5)
    files = model_files()
    prompts = {name: prompt(file, tokens) for name, file in files.items()}
    models = {name: Llama(str(file), n_ctx=tokens + 64, flash_attn=True, verbose=False) for name, file in files.items()}
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch:
        folder = Path(scratch)
        cold = {}
        for name, llm in models.items():
            say(f"{name}: {tokens:,} tokens, saving")
            cold[name] = _save(llm, prompts[name], folder)
        say("restoring both in turns")
        rows = _restored(models, prompts, folder, repeats)
    for row in rows:
        first, seconds = cold[row["model"]]
        row["cold_s"], row["same_first_token"] = seconds, row.pop("first_tokens") == {first}
    for llm in models.values():
        llm.close()
    return {"rows": rows, "tokens": tokens}


def _save(llm: Llama, asked: list[int], folder: Path) -> tuple[int, float]:
    """The first token of the answer, and seconds until it was there, from an empty context."""
    with Store.open(config_of(folder)) as store:
        attachment = attach(llm, store)
        answers: list[int] = []
        seconds = timed(lambda: answers.append(_first_token(llm, asked)))
        attachment.detach()
        store.flush()
    return answers[0], seconds


def _restored(
    models: dict[str, Llama], prompts: dict[str, list[int]], folder: Path, repeats: int
) -> list[dict[str, Any]]:
    first: dict[str, set[int]] = {name: set() for name in models}
    with Store.open(config_of(folder)) as store:
        attachments = {name: attach(llm, store) for name, llm in models.items()}

        def sample(name: str) -> float:
            _empty(models[name])
            page_cache.drop([folder])
            before = attachments[name].stats.tokens_restored
            answers: list[int] = []
            seconds = timed(lambda: answers.append(_first_token(models[name], prompts[name])))
            first[name] |= set(answers)
            if attachments[name].stats.tokens_restored - before != len(prompts[name]) - 1:
                raise RuntimeError(f"{name}: not all of its prompt was restored: {attachments[name].stats}")
            return seconds

        samples = alternate({name: partial(sample, name) for name in models}, repeats)
        crossed = {}
        for name, attachment in attachments.items():
            others = next(asked for other, asked in prompts.items() if other != name)
            _empty(models[name])
            crossed[name] = attachment.session.restore(others)
        rows = [
            {
                "model": name,
                "ttft_s": spread(samples[name]),
                "tokens_of_the_other": crossed[name],
                "errors": sum(attachment.stats.errors.values()),
                "first_tokens": first[name],
            }
            for name, attachment in attachments.items()
        ]
        for attachment in attachments.values():
            attachment.detach()
    return rows


def _first_token(llm: Llama, asked: list[int]) -> int:
    answer = llm.generate(asked, temp=0.0)
    token = int(next(answer))
    answer.close()
    return token


def _empty(llm: Llama) -> None:
    llm.reset()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), False)
