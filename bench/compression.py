"""What compression saves and costs: real K and V of the models, as the adapter stores them, in two stores.

The bound is the order-0 entropy of the two byte planes of each block (the bytes at odd and at even offsets): what a
coder that looks at one byte at a time could reach. Sizes are what the records take, heads and padding included. A
restore is one ``get_many(keep=False)`` of all blocks; the arms of both stores alternate, their files dropped from
memory or not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import Llama

from bench.measure import alternate, read_files, spread, timed
from bench.stores import config_of, hit
from bench.workloads import model_files, prompt
from kvtier import Store
from kvtier_adapters.llama_cpp import attach
from kvtier_adapters.llama_cpp.demo import page_cache

CODEC = "zstd-planes"
_TOKENS = 4096
_SYMBOLS = 256


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """For each model: bytes as they are, stored, and by the bound; seconds of a restore from either store."""
    tokens, repeats = (512, 3) if quick else (_TOKENS, 9)
    rows, means = [], set[str]()
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch:
        for name, model in model_files().items():
            say(f"{name}, {tokens:,} tokens")
            blocks = _captured(model, tokens, Path(scratch) / name / "captured")
            rows.append({"model": name, "tokens": tokens, **_measure(blocks, Path(scratch) / name, repeats, means)})
    return {"rows": rows, "codec": CODEC, "page_cache": ", ".join(sorted(means))}


def _captured(model: Path, tokens: int, folder: Path) -> list[bytes]:
    """The values of the blocks that the adapter makes of a prompt, in the order in which they stand on the disk."""
    llm = Llama(str(model), n_ctx=tokens + 64, flash_attn=True, verbose=False)
    with Store.open(config_of(folder)) as store:
        attachment = attach(llm, store)
        llm.eval(prompt(model, tokens))
        attachment.detach()
        store.flush()
        if attachment.stats.errors or attachment.stats.captures_skipped:
            raise RuntimeError(f"not everything was captured: {attachment.stats}")
        assert store._back is not None
        with store._back.parts.index.read() as view:
            entries = sorted((e.segment_no, e.offset, e.key, e.namespace) for _, e in view.blocks())
        hits = [hit(store.get(key, namespace=namespace)) for _, _, key, namespace in entries]
    llm.close()
    return [b"".join(h.buffers) for h in hits]


def _measure(blocks: Sequence[bytes], folder: Path, repeats: int, means: set[str]) -> dict[str, Any]:
    keys = [b"%d" % i for i in range(len(blocks))]
    stores = {codec: config_of(folder / codec, codec=codec) for codec in ("none", CODEC)}
    live = {}
    for codec, config in stores.items():
        with Store.open(config) as store:
            for key, block in zip(keys, blocks, strict=True):
                store.put(key, block)
            store.flush()
            live[codec] = store.stats().tiers[0].bytes_live

    def read(codec: str, *, cold: bool) -> float:
        with Store.open(stores[codec]) as store:
            if cold:
                means.add(page_cache.drop([folder / codec]))
            else:
                read_files(folder / codec)
            return timed(lambda: _read(store, keys))

    found: dict[str, Any] = {}
    for state, cold in (("cold", True), ("warm", False)):
        arms = {codec: partial(read, codec, cold=cold) for codec in stores}
        alternate(arms, 1)  # once unmeasured
        samples = {codec: spread(s) for codec, s in alternate(arms, repeats).items()}
        found[state] = {**samples, "compressed_to_raw": samples[CODEC]["median"] / samples["none"]["median"]}
    bound = sum(map(entropy_bytes, blocks))
    sizes = {"bytes": sum(map(len, blocks)), "bound_bytes": bound, "stored_bytes": live}
    return {"blocks": len(blocks), **sizes, "stored_to_bound": live[CODEC] / bound, **found}


def _read(store: Store, keys: Sequence[bytes]) -> None:
    for outcome in store.get_many(keys, keep=False):
        hit(outcome)


def entropy_bytes(value: bytes) -> float:
    """The least bytes that a value takes if each of its two byte planes is coded byte by byte."""
    both: npt.NDArray[np.uint8] = np.frombuffer(value, dtype=np.uint8)
    return sum(_plane_bytes(both[first::2]) for first in (0, 1))


def _plane_bytes(plane: npt.NDArray[np.uint8]) -> float:
    counts = np.bincount(plane, minlength=_SYMBOLS)
    shares = counts[counts > 0] / max(1, plane.size)
    return float(-(shares * np.log2(shares)).sum() * plane.size / 8)
