"""``python -m bench.peers.worker NAME FOLDER BLOCKS BLOCK_BYTES``: the process of one peer.

Its stdin has a command a line, ``{"do": "store", "batch": 3}`` or ``{"do": "load", "batch": 3, "how": "cold"}``, and
its stdout a line of JSON for each: seconds, or ``{"error": ...}``; the first line is the peer's facts.
"""

from __future__ import annotations

import json
import mmap
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import read_files
from bench.peers.peer import Load, Peer, sync_files
from bench.peers.registry import ENTRIES
from bench.workloads import SEED, Payload, stamped
from kvtier_adapters.llama_cpp.demo import page_cache


class Worker:
    """One peer, the blocks that it is given, and memory to load them into; each page-aligned, and in use before."""

    def __init__(self, peer: Peer, folder: Path, count: int, nbytes: int) -> None:
        self._peer, self._folder = peer, folder
        self._sent, self._got = (_memory(count, nbytes) for _ in range(2))
        self._sent[:] = np.random.default_rng(SEED).integers(0, 256, (count, nbytes), dtype=np.uint8)
        self._is_open = False

    def store(self, batch: int) -> dict[str, float]:
        """Store a batch of new blocks. Seconds until it is acknowledged, and until it is durable if the peer can do
        that. What is still to be written then is written before this returns."""
        if not self._is_open:
            self._peer.open(self._folder)
            self._is_open = True
        blocks = self._batch(batch)
        begin = time.perf_counter()
        for number, block in enumerate(blocks):
            self._peer.store(_key(batch, number), block.data)
        self._peer.end()
        found = {"acknowledged": time.perf_counter() - begin}
        if self._peer.facts.durable:
            self._peer.sync()
            found["durable"] = time.perf_counter() - begin
        sync_files(self._folder)
        return found

    def load(self, batch: int, how: Load) -> dict[str, Any]:
        """Open the peer anew and load a batch. Seconds for the loads, and by what means the page cache was dropped.

        Its files are all in the page cache before that, unless ``how`` is ``"cold"``: then none are. With ``"again"``
        the batch has been loaded once since it was opened. Raises ``RuntimeError`` if any byte is another one.
        """
        self.close()
        means = None
        if how == "cold":
            means = page_cache.drop([self._folder])
        else:
            read_files(self._folder)
        self._peer.open(self._folder)
        self._is_open = True
        if how == "again":
            for number, target in enumerate(self._got):
                self._peer.bring(_key(batch, number), target.data)
        self._got[:] = 0
        keys = [_key(batch, number) for number in range(len(self._got))]
        begin = time.perf_counter()
        found = self._peer.load_all(keys, [target.data for target in self._got])
        seconds = time.perf_counter() - begin
        got = [
            into if view is None else np.frombuffer(view, np.uint8) for into, view in zip(self._got, found, strict=True)
        ]
        if not all(np.array_equal(g, sent) for g, sent in zip(got, self._batch(batch), strict=True)):
            raise RuntimeError("other bytes came back")
        return {"s": seconds, "page_cache": means}

    def close(self) -> None:
        if self._is_open:
            self._peer.close()
            self._is_open = False

    def _batch(self, batch: int) -> list[Payload]:
        return [stamped(block, batch * len(self._sent) + number) for number, block in enumerate(self._sent)]


def _memory(count: int, nbytes: int) -> Payload:
    return np.frombuffer(mmap.mmap(-1, count * nbytes), np.uint8).reshape(count, nbytes)


def _key(batch: int, number: int) -> bytes:
    return b"%d.%d" % (batch, number)


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main(name: str, folder: str, count: int, nbytes: int) -> None:
    try:
        peer = ENTRIES[name].make()
    except ImportError as e:
        _answer({"error": f"not installed: {e}"})
        return
    worker = Worker(peer, Path(folder), count, nbytes)
    _answer(asdict(peer.facts))
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if command["do"] == "store":
                _answer(worker.store(command["batch"]))
            else:
                _answer(worker.load(command["batch"], command["how"]))
        except Exception as e:  # whatever a peer raises is its row's reason
            _answer({"error": f"{type(e).__name__}: {e}"})
            break
    worker.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
