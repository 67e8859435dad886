"""One process of :mod:`bench.warm_ttft`: its job is a line of JSON on stdin, its result one on stdout.

Between the two it says ``loaded`` and waits for a line, in which time the page cache is dropped.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import Llama
from llama_cpp.llama_cache import BaseLlamaCache, LlamaDiskCache, LlamaRAMCache

from bench.modelled_disk import ModelledDisk
from kvtier import Config, Store
from kvtier_adapters.llama_cpp import attach
from kvtier_adapters.llama_cpp.cache import Attachment
from kvtier_adapters.llama_cpp.demo.worker import kv_bytes_per_token

Tokens = list[int]
_PEER_BYTES_MAX = 8 << 30
_RAM_BYTES = 2 << 30
_LOOK_AGAIN_S = 0.01
_PREFETCH_S_MAX = 60
_READ_BYTES = 1 << 20
_DIRECT_BYTES = 8 << 20


def main() -> None:
    job = json.loads(sys.stdin.readline())
    prompt, folder = job["prompt"], Path(job["folder"])
    llm = Llama(job["model"], n_ctx=len(prompt) + 64, flash_attn=True, verbose=False)
    kv_bytes_per_token(llm)  # evaluates two tokens: touches the weights
    with ExitStack() as stack:
        work = _ARMS[job["arm"]](llm, prompt, folder, stack)
        sys.stdout.write("loaded\n")
        sys.stdout.flush()
        sys.stdin.readline()
        sys.stdout.write(json.dumps(work()) + "\n")


def _kvtier(llm: Llama, prompt: Tokens, folder: Path, stack: ExitStack) -> Callable[[], dict[str, Any]]:
    begin = time.perf_counter()
    store = stack.enter_context(Store.open(folder / "kvtier"))
    attachment = attach(llm, store)
    return _restoring(llm, prompt, attachment, time.perf_counter() - begin)


def _kvtier_ram(llm: Llama, prompt: Tokens, folder: Path, stack: ExitStack) -> Callable[[], dict[str, Any]]:
    """All of it is in the store's RAM tier when the clock starts."""
    store = stack.enter_context(Store.open(_config(folder / "kvtier", "ssd", _RAM_BYTES)))
    attachment = attach(llm, store)
    wanted, deadline = attachment.prefetch(prompt), time.monotonic() + _PREFETCH_S_MAX
    while store.stats().prefetch.loaded < wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"not everything came into RAM: {store.stats().prefetch}")
        time.sleep(_LOOK_AGAIN_S)
    return _restoring(llm, prompt, attachment)


def _kvtier_hdd(llm: Llama, prompt: Tokens, folder: Path, stack: ExitStack) -> Callable[[], dict[str, Any]]:
    """The same segments, as from a disk that turns, with a store that knows it."""
    disk = ModelledDisk(folder / "kvtier" / "disk", sleeps=True)
    store = stack.enter_context(Store.open(_config(folder / "kvtier", "hdd", 0), fs=disk))
    return _restoring(llm, prompt, attach(llm, store))


def _config(folder: Path, kind: str, ram_bytes: int) -> Config:
    tier = {"name": "disk", "kind": kind, "bytes_max": "16GiB"}
    return Config.from_dict({"store": {"path": str(folder)}, "ram": {"bytes_max": ram_bytes}, "tier": [tier]})


def _restoring(
    llm: Llama, prompt: Tokens, attachment: Attachment, open_s: float | None = None
) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        begin = time.perf_counter()
        answer = llm.generate(prompt, temp=0.0)
        token = next(answer)
        ttft_s = time.perf_counter() - begin
        answer.close()
        stats = attachment.stats
        return {
            "ttft_s": ttft_s,
            "token": token,
            "open_s": open_s,
            "restored": stats.tokens_restored,
            "stats": stats.as_dict(),
        }

    return work


def _raw(llm: Llama, prompt: Tokens, folder: Path, stack: ExitStack) -> Callable[[], dict[str, Any]]:
    held = len(prompt) - 1
    path = str(folder / "raw").encode()

    def work() -> dict[str, Any]:
        begin = time.perf_counter()
        tokens, count = (llama_cpp.llama_token * held)(), ctypes.c_size_t()
        if not llama_cpp.llama_state_seq_load_file(llm.ctx, path, 0, tokens, held, ctypes.byref(count)):
            raise RuntimeError("llama_state_seq_load_file failed")
        llm.input_ids[:held] = tokens
        llm.n_tokens = held
        token = next(llm.generate(prompt[held:], temp=0.0, reset=False))
        return {"ttft_s": time.perf_counter() - begin, "token": token}

    return work


def _limit(
    llm: Llama, prompt: Tokens, folder: Path, stack: ExitStack, *, direct: bool = False
) -> Callable[[], dict[str, Any]]:
    """What no cache on a disk can beat: the file read from end to end into memory in use, the state set, one decode."""
    held = len(prompt) - 1
    path = folder / "limit"
    nbytes = path.stat().st_size
    memory = mmap.mmap(-1, -(-nbytes // _READ_BYTES) * _READ_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, dtype=np.uint8)
    whole.fill(1)
    state = whole[:nbytes]

    def work() -> dict[str, Any]:
        begin = time.perf_counter()
        if _read(path, memoryview(memory), direct) != nbytes:
            raise RuntimeError("short read")
        read = time.perf_counter()
        source = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if llama_cpp.llama_state_seq_set_data(llm.ctx, source, state.nbytes, 0) != state.nbytes:
            raise RuntimeError("llama_state_seq_set_data failed")
        state_set = time.perf_counter()
        llm.input_ids[:held] = prompt[:held]
        llm.n_tokens = held
        token = next(llm.generate(prompt[held:], temp=0.0, reset=False))
        end = time.perf_counter()
        parts = {"read": read - begin, "set": state_set - read, "decode": end - state_set}
        return {"ttft_s": end - begin, "token": token, "parts_s": parts}

    return work


def _read(path: Path, target: memoryview, direct: bool) -> int:
    """Read a file from end to end, through the page cache or past it; how many bytes."""
    piece, total = (_DIRECT_BYTES if direct else _READ_BYTES), 0
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        while count := os.preadv(fd, [target[total : total + piece]], total):
            total += count
            if count < piece:
                break
        return total
    finally:
        os.close(fd)


def _disk_cache(llm: Llama, prompt: Tokens, folder: Path, stack: ExitStack) -> Callable[[], dict[str, Any]]:
    return _loading(llm, prompt, LlamaDiskCache(str(folder / "disk_cache"), capacity_bytes=_PEER_BYTES_MAX))


def _ram_cache(llm: Llama, prompt: Tokens, folder: Path, stack: ExitStack) -> Callable[[], dict[str, Any]]:
    """With the state that LlamaDiskCache has: nobody has to save it again."""
    cache = LlamaRAMCache(capacity_bytes=_PEER_BYTES_MAX)
    cache[prompt] = LlamaDiskCache(str(folder / "disk_cache"), capacity_bytes=_PEER_BYTES_MAX)[prompt]
    return _loading(llm, prompt, cache)


def _loading(llm: Llama, prompt: Tokens, cache: BaseLlamaCache) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        begin = time.perf_counter()
        llm.load_state(cache[prompt])
        token = next(llm.generate(prompt, temp=0.0))
        return {"ttft_s": time.perf_counter() - begin, "token": token}

    return work


def _cold(llm: Llama, prompt: Tokens, folder: Path, stack: ExitStack) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        begin = time.perf_counter()
        llm.eval(prompt[:-1])  # the last token apart, as in the other arms: the same batches
        token = next(llm.generate(prompt[-1:], temp=0.0, reset=False))
        return {"ttft_s": time.perf_counter() - begin, "token": token}

    return work


def _save(llm: Llama, prompt: Tokens, folder: Path, stack: ExitStack) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        with Store.open(folder / "kvtier") as store:
            attachment = attach(llm, store)
            llm.eval(prompt[:-1])
            llm.eval(prompt[-1:])
            begin = time.perf_counter()
            attachment.detach()  # captures everything
            store.flush()
            kvtier_s = time.perf_counter() - begin
        begin = time.perf_counter()
        LlamaDiskCache(str(folder / "disk_cache"), capacity_bytes=_PEER_BYTES_MAX)[prompt] = llm.save_state()
        disk_cache_s = time.perf_counter() - begin
        held = len(prompt) - 1
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(llm.ctx), 0, held, -1)
        begin = time.perf_counter()
        tokens = (llama_cpp.llama_token * held)(*prompt[:held])
        llama_cpp.llama_state_seq_save_file(llm.ctx, str(folder / "raw").encode(), 0, tokens, held)
        raw_s = time.perf_counter() - begin
        size = llama_cpp.llama_state_seq_get_size(llm.ctx, 0)
        state = np.empty(size, dtype=np.uint8)
        target = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if llama_cpp.llama_state_seq_get_data(llm.ctx, target, size, 0) != size:
            raise RuntimeError("llama_state_seq_get_data failed")
        (folder / "limit").write_bytes(state.data)
        return {"save_s": {"kvtier": kvtier_s, "raw": raw_s, "disk_cache": disk_cache_s}}

    return work


_ARMS: dict[str, Callable[[Llama, Tokens, Path, ExitStack], Callable[[], dict[str, Any]]]] = {
    "kvtier": _kvtier,
    "kvtier_ram": _kvtier_ram,
    "kvtier_hdd": _kvtier_hdd,
    "raw": _raw,
    "limit_cached": _limit,
    "limit_direct": partial(_limit, direct=True),
    "disk_cache": _disk_cache,
    "ram_cache": _ram_cache,
    "cold": _cold,
    "save": _save,
}

if __name__ == "__main__":
    main()
