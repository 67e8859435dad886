"""What one process of the demo does: load the model, answer one or two requests, report.

It is told its :class:`Job` in one line of JSON on stdin and reports in lines of JSON on stdout, each with an
``event``: ``progress``, ``loaded`` (with the store's folders; it goes on when it gets another line), ``turn``,
``ready`` (everything asked for is done and durable) or ``error``. At the end it waits: to be killed, or for
the end of stdin, so that it never outlives the demo.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import llama_cpp
from llama_cpp import Llama

from kvtier import Config, Store
from kvtier_adapters.llama_cpp.cache import Attachment, attach
from kvtier_adapters.llama_cpp.demo.errors import DemoError

_CELL_BYTES = 12  # of each token in a state, beside its rows: position, count, sequence
_PROGRESS_S = 0.2
_STORE_BYTES_MAX = "64GiB"


@dataclass(frozen=True)
class Job:
    """``prompt`` is asked first; with a ``follow_up``, the first answer and it make the second request.

    ``store`` is a folder or a TOML file; ``namespace`` (hex) keeps one run of the demo apart from others.
    """

    model: str
    store: str
    is_new_folder: bool
    namespace: str
    n_ctx: int
    answer_tokens: int
    prompt: list[int]
    follow_up: list[int]


@dataclass(frozen=True)
class Turn:
    """One request answered and flushed. Bytes in the store: ``bytes_written`` without the checkpoints."""

    tokens: int
    ttft_s: float
    tokens_evaluated: int
    tokens_restored: int
    tokens_stored: int
    bytes_new_kv: int
    bytes_written: int
    checkpoint_bytes: int
    bytes_on_disk: int
    output: list[int]
    text: str
    trouble: str


def main() -> int:
    """Do the job on stdin; the exit code."""
    job = Job(**json.loads(sys.stdin.readline()))
    try:
        _work(job)
    except Exception as e:
        _report("error", message=str(e) if isinstance(e, DemoError) else f"{type(e).__name__}: {e}")
        return 1
    return 0


def _work(job: Job) -> None:
    _report("progress", phase="loading the model")
    llm = Llama(job.model, n_ctx=job.n_ctx, flash_attn=True, verbose=False)
    row_bytes = kv_bytes_per_token(llm)  # evaluates a little: the weights are in memory from here on
    with open_store(job) as store:
        attachment = attach(llm, store, reproducible=True, namespace=bytes.fromhex(job.namespace))
        if attachment.stats.refused:
            raise DemoError(f"kvtier does not store the state of this model: {attachment.stats.refused}")
        store.flush()
        _report("loaded", folders=[str(store.config.store.path), *(str(tier.path) for tier in store.config.tier)])
        sys.stdin.readline()
        answer = _Answering(llm, store, attachment, row_bytes, job.answer_tokens)
        turn = answer(job.prompt, "evaluating the prompt")
        if job.follow_up:
            answer(job.prompt + turn.output + job.follow_up, "evaluating the second turn")
        _report("ready")
        sys.stdin.read()


def open_store(job: Job) -> Store:
    """The store of the job; a folder that the demo made gets a cap in bytes, whatever its disk."""
    if not job.is_new_folder:
        return Store.open(job.store)
    tier: Any = {"name": "disk", "kind": "ssd", "bytes_max": _STORE_BYTES_MAX}
    return Store.open(Config.from_dict({"store": {"path": job.store}, "tier": [tier]}))


def kv_bytes_per_token(llm: Llama) -> int:
    """The K and V rows of one token, in bytes; without those of sliding-window layers, which checkpoints hold.

    Evaluates two tokens and leaves the context empty.
    """
    sizes = []
    for _ in range(2):
        llm.eval([llm.token_bos() if llm.token_bos() >= 0 else 0])
        full, partial = (
            llama_cpp.llama_state_seq_get_size_ext(llm.ctx, 0, flags)
            for flags in (llama_cpp.LLAMA_STATE_SEQ_FLAGS_NONE, llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)
        )
        sizes.append(full - partial if llama_cpp.llama_model_n_swa(llm.model) > 0 else full)
    llm.reset()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), True)
    return int(sizes[1] - sizes[0] - _CELL_BYTES)


class _Answering:
    """Answers requests one after the other and reports each as a :class:`Turn`."""

    def __init__(self, llm: Llama, store: Store, attachment: Attachment, row_bytes: int, answer_tokens: int) -> None:
        self._llm = llm
        self._store = store
        self._stats = attachment.stats
        self._row_bytes = row_bytes
        self._answer_tokens = answer_tokens
        self._tokens_stored = 0

    def __call__(self, prompt: list[int], phase: str) -> Turn:
        llm, stats = self._llm, self._stats
        written, evaluated = self._store.stats().bytes_written, stats.tokens_evaluated
        restored, checkpoints = stats.tokens_restored, stats.checkpoint_bytes
        with _shown(llm, phase, len(prompt)):
            begin = time.perf_counter()
            tokens = llm.generate(prompt, temp=0.0)
            output = [next(tokens)]
            ttft_s = time.perf_counter() - begin
        with _shown(llm, "answering", len(prompt) + self._answer_tokens):
            output += itertools.islice(tokens, self._answer_tokens - 1)
            tokens.close()
        _report("progress", phase="writing to disk")
        self._store.flush()
        checkpoint_bytes = stats.checkpoint_bytes - checkpoints
        known = max(self._tokens_stored, stats.tokens_restored - restored)
        self._tokens_stored = llm.n_tokens
        after = self._store.stats()
        turn = Turn(
            tokens=len(prompt),
            ttft_s=ttft_s,
            tokens_evaluated=stats.tokens_evaluated - evaluated,
            tokens_restored=stats.tokens_restored - restored,
            tokens_stored=llm.n_tokens - known,
            bytes_new_kv=(llm.n_tokens - known) * self._row_bytes,
            bytes_written=after.bytes_written - written - checkpoint_bytes,
            checkpoint_bytes=checkpoint_bytes,
            bytes_on_disk=after.bytes_on_disk,
            output=output,
            text=self._readable(output),
            trouble=stats.last_error or after.queue.last_error,
        )
        _report("turn", **asdict(turn))
        return turn

    def _readable(self, output: list[int]) -> str:
        vocabulary = llama_cpp.llama_model_get_vocab(self._llm.model)
        said = itertools.takewhile(lambda t: not llama_cpp.llama_vocab_is_eog(vocabulary, t), output)
        return self._llm.detokenize(list(said)).decode("utf-8", "replace").strip()


@contextmanager
def _shown(llm: Llama, phase: str, total: int) -> Iterator[None]:
    """Report, while the block runs, how many of ``total`` tokens the context holds."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_PROGRESS_S):
            _report("progress", phase=phase, done=llm.n_tokens, total=total)

    _report("progress", phase=phase, done=0, total=total)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _report(event: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
