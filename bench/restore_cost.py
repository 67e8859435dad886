"""What a restore costs: time and bytes by length, type of K and V, and tier. Gemma without ``swa_full``.

The time is that of ``Session.restore`` into an empty context: no decode, no opening of the store. "RAM" restores from
the store that just captured it and has all of it in memory; "SSD" from one that was just opened and has no memory, its
files dropped from the page cache. For a hard
disk there is a model only: the seeks that the SSD restores would have made, 10 ms each, and the bytes at 160 MB/s.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import Llama

from bench.measure import spread, timed
from bench.workloads import model_files, prompt
from kvtier import Config, Store
from kvtier.fs import OsFileSystem
from kvtier_adapters.llama_cpp import attach
from kvtier_adapters.llama_cpp.cache import Attachment
from kvtier_adapters.llama_cpp.demo import page_cache

SEEK_S, HDD_BYTES_PER_S = 10e-3, 160e6
KV_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}
_LENGTHS = {"SmolLM2-135M": (1024, 4096, 8000), "Gemma 3 270M": (1024, 4096, 8000)}


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """One row for each model, KV type and length; times in seconds."""
    kv_types, repeats = (["f16"], 2) if quick else (list(KV_TYPES), 5)
    rows, means = [], set[str]()
    for name, model in model_files().items():
        lengths = _LENGTHS[name][:1] if quick else _LENGTHS[name]
        for kv_type in kv_types:
            say(f"{name}, {kv_type}")
            for row in _measure(model, kv_type, lengths, repeats, means):
                rows.append({"model": name, "kv_type": kv_type, **row})
    return {"rows": rows, "page_cache": ", ".join(sorted(means))}


class SeekCounter(OsFileSystem):
    """Counts the reads that do not begin where the one before ended."""

    def __init__(self) -> None:
        super().__init__()
        self.seeks = 0
        self._head: tuple[int, int] | None = None
        self._counting = threading.Lock()

    def read_at(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        read = super().read_at(fd, buffers, offset)
        with self._counting:
            self.seeks += self._head != (fd, offset)
            self._head = fd, offset + read
        return read


def _measure(model: Path, kv_type: str, lengths: Sequence[int], repeats: int, means: set[str]) -> list[dict[str, Any]]:
    asked, number = prompt(model, lengths[-1]), KV_TYPES[kv_type]
    llm = Llama(
        str(model),
        n_ctx=len(asked) + 64,
        type_k=number,
        type_v=number,
        flash_attn=True,
        swa_full=False,
        verbose=False,
    )
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch:
        folder = Path(scratch)
        with Store.open(_config(folder, ram="4GiB")) as store:
            attachment = _saved(llm, asked, lengths, store)
            ram = [[_restore(llm, asked[:n], attachment) for _ in range(repeats)] for n in lengths]
            attachment.detach()
        rows = [_row(llm, asked[:n], samples, folder, repeats, means) for n, samples in zip(lengths, ram, strict=True)]
    llm.close()
    return rows


def _config(folder: Path, *, ram: str) -> Config:
    tier = {"name": "disk", "kind": "ssd", "bytes_max": "16GiB"}
    return Config.from_dict({"store": {"path": str(folder)}, "ram": {"bytes_max": ram}, "tier": [tier]})


def _saved(llm: Llama, asked: list[int], lengths: Sequence[int], store: Store) -> Attachment:
    """Evaluate the prompt, and capture it at each length: all of it is in RAM, and on disk."""
    attachment = attach(llm, store)
    for n in lengths:
        llm.eval(asked[llm.n_tokens : n])
        attachment.session.capture(checkpoint=True)
        store.flush()
    if attachment.stats.errors or attachment.stats.captures_skipped:
        raise RuntimeError(f"not everything was captured: {attachment.stats}")
    return attachment


def _row(
    llm: Llama, tokens: list[int], from_ram: list[float], folder: Path, repeats: int, means: set[str]
) -> dict[str, Any]:
    from_ssd, seeks, restored = [], set[int](), set[int]()
    for _ in range(repeats):
        counter = SeekCounter()
        with Store.open(_config(folder, ram="0"), fs=counter) as store:
            attachment = attach(llm, store)
            means.add(page_cache.drop([folder]))
            before = counter.seeks
            from_ssd.append(_restore(llm, tokens, attachment))
            seeks.add(counter.seeks - before)
            restored.add(attachment.stats.bytes_restored)
            attachment.detach()
    return {
        "tokens": len(tokens),
        "bytes": max(restored),
        "restore_s": {"ram": spread(from_ram), "ssd": spread(from_ssd)},
        "seeks": max(seeks),
        "hdd_model_s": max(seeks) * SEEK_S + max(restored) / HDD_BYTES_PER_S,
    }


def _restore(llm: Llama, tokens: list[int], attachment: Attachment) -> float:
    """Seconds for restoring the tokens into the emptied context."""
    llm.reset()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), False)
    held: list[int] = []
    seconds = timed(lambda: held.append(attachment.session.restore(tokens)))
    if held != [len(tokens)]:
        raise RuntimeError(f"{held} of {len(tokens)} tokens restored: {attachment.stats}")
    return seconds
