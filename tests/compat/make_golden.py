"""Writes a small store of the present format, to be kept: ``python -m tests.compat.make_golden FILE.zip``.

Run it once for each new format version, check the file in, and never touch it again: later versions must still
open it and give its bytes.
"""

from __future__ import annotations

import random
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from kvtier import Config, Store


class Block(NamedTuple):
    namespace: bytes
    key: bytes
    parent: bytes | None
    meta: bytes
    buffers: list[bytes]


def noise(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def soft(size: int) -> bytes:
    return bytes(i // 100 % 256 if i % 2 else i % 7 for i in range(size))


#: What is in the store.
BLOCKS = [
    Block(b"", b"root", None, b"", [noise("root", 700)]),
    Block(b"", b"child", b"root", b"metadata", [noise("keys", 300), b"", noise("values", 5)]),
    Block(b"", b"empty", None, b"", [b""]),
    Block(b"tenant", b"root", None, b"\0\xff", [noise("root", 700)]),
    Block(b"tenant", b"twin", b"root", b"", [noise("root", 200), noise("root", 700)[200:]]),
    Block(b"tenant", b"same", None, b"", [noise("root", 700)]),
    Block(b"", bytes(range(128)), None, bytes(1024), [b"a"] * 64),
    *(Block(b"", codec.encode(), None, b"", [soft(5001)]) for codec in ("none", "zstd", "zstd-planes")),
]


#: In stores of formats 3 and 4: its head is padded.
LONG = Block(b"", b"long", b"root", b"", [soft(600_000), soft(7)])


def configuration(folder: Path, codec: str = "none") -> Config:
    tier = {"kind": "ssd", "bytes_max": "8MiB", "segment_bytes": "1MiB"}
    tiers = [{"name": "first", "codec": codec, **tier}, {"name": "second", **tier}]
    return Config.from_dict({"store": {"path": folder, "value_bytes_max": "700KiB"}, "tier": tiers})


def make(folder: Path) -> None:
    for codec in ("none", "zstd", "zstd-planes"):
        with Store.open(configuration(folder, codec)) as store:
            for b in (*BLOCKS, LONG):
                if b.key == codec.encode() or (codec == "none" and b.key not in (b"zstd", b"zstd-planes")):
                    store.put(b.key, b.buffers, meta=b.meta, parent=b.parent, namespace=b.namespace)
            store.put(b"dead", noise("dead", 100))
            store.flush()
            store.delete(b"dead")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED) as archive:
        root = Path(scratch) / "store"
        make(root)
        for file in sorted(root.rglob("*")):
            if file.is_file() and file.name not in ("LOCK", "lock.mdb"):
                content = file.read_bytes().replace(str(root).encode(), b"/store")  # in CONFIG
                archive.writestr(zipfile.ZipInfo(str(file.relative_to(root))), content, zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    main()
