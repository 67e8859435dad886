"""What checks and encryption cost a restore: the same blocks from a plain store, unchecked, and encrypted."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from bench.measure import alternate, read_files, spread, timed
from bench.workloads import MIB, payloads
from kvtier import Config, Hit, Store, single_key
from kvtier_adapters.llama_cpp.demo import page_cache

BLOCK_BYTES = 2 * MIB


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Bytes a second that ``get_many(keep=False)`` gives, from the disk and from the page cache; ratios to plain."""
    count, repeats = (32, 3) if quick else (128, 9)
    secret = os.urandom(32)
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as scratch:
        folders = {"plain": Path(scratch) / "plain", "encrypted": Path(scratch) / "encrypted"}
        keys = [b"%d" % i for i in range(count)]
        for name, folder in folders.items():
            say(f"writing, {name}")
            with _open(folder, secret if name == "encrypted" else None) as store:
                for key, block in zip(keys, payloads(count, BLOCK_BYTES), strict=True):
                    store.put(key, block.data)
        arms = {
            "unchecked": partial(_unchecked, folders["plain"], keys),
            "checked": partial(_read, folders["plain"], keys, None),
            "encrypted": partial(_read, folders["encrypted"], keys, secret),
        }
        found: dict[str, Any] = {"block_bytes": BLOCK_BYTES, "blocks": count}
        means = set()

        def cold(arm: Callable[[], float]) -> float:
            means.add(page_cache.drop([Path(scratch)]))
            return arm()

        for arm in arms.values():
            arm()  # once unmeasured: the first one pays for what is new
        for state, chosen in {"cold": {n: partial(cold, a) for n, a in arms.items()}, "warm": arms}.items():
            if state == "warm":
                read_files(Path(scratch))
            say(f"reading, {state}")
            rates = {name: spread(s) for name, s in alternate(chosen, repeats).items()}
            medians = {name: rate["median"] for name, rate in rates.items()}
            found[state] = {
                "rates": rates,
                "checked_to_unchecked": medians["checked"] / medians["unchecked"],
                "encrypted_to_checked": medians["encrypted"] / medians["checked"],
            }
    return {**found, "page_cache": ", ".join(sorted(means))}


def _open(folder: Path, secret: bytes | None) -> Store:
    config = Config.from_dict(
        {"store": {"path": str(folder)}, "tier": [{"name": "disk", "kind": "ssd", "bytes_max": "16GiB"}]}
    )
    return Store.open(config, keys=single_key(secret) if secret else None)


def _read(folder: Path, keys: Sequence[bytes], secret: bytes | None) -> float:
    with _open(folder, secret) as store:

        def all_of_them() -> None:
            for hit in store.get_many(keys, keep=False):
                if not isinstance(hit, Hit):
                    raise RuntimeError(f"a block is missing: {hit.reason}")

        return len(keys) * BLOCK_BYTES / timed(all_of_them)


def _unchecked(folder: Path, keys: Sequence[bytes]) -> float:
    """As :func:`_read`, without the payloads' checksums: for this arm only, they are not computed."""
    with mock.patch("kvtier.segment.reader.check_payload", _believe):
        return _read(folder, keys, None)


def _believe(head: object, stored: object) -> None:
    """A function, not a mock: that would remember the buffers, which then could not be used again."""
