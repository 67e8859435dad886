"""Writes the inputs that fuzzing starts from: ``python -m tests.fuzz.make_corpus``.

They are taken from a small store that is made here, where the parser reads what a store writes. Files whose names
begin with ``found`` are inputs that once led to a bug; they are kept.
"""

from __future__ import annotations

import json
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb

from kvtier import Config, Store, codec
from kvtier.fs import OsFileSystem
from kvtier.identity import Identity, dump_identity, dump_tier
from kvtier.index.lmdb_index import LmdbIndex
from kvtier.index.schema import Departure, Reason, departures_of, empty_row, set_departure
from kvtier.segment.format import SEGMENT_HEADER_BYTES, pack_head
from kvtier.segment.scanner import Found, scan
from kvtier_adapters.llama_cpp.fingerprint import Fingerprint
from kvtier_adapters.llama_cpp.snapshots import Snapshot
from tests.adapters import blobs
from tests.adapters.blobs import NO_ROWS, Recurrent, Rows
from tests.fuzz.parsers import codecs, encrypted, identity_files, index_entries, llama_state, record_heads, segment_scan
from tests.fuzz.parsers.index_meta import META_BYTES
from tests.fuzz.plain import CORPUS
from tests.stores import KIB, config, only_segment, tier

Inputs = dict[str, bytes]
GOLDEN = Path(__file__).parents[1] / "compat" / "store-v1.zip"


def soft(size: int) -> bytes:
    """Compresses, and its planes too."""
    return bytes(i // 50 % 7 if i % 2 else i % 5 for i in range(size))


def store_in(folder: Path) -> tuple[bytes, Identity]:
    """A store with blocks of every codec, one twice, one deleted; its segment."""
    for name in ("none", "zstd", "zstd-planes"):
        small = tier(codec=name, segment_bytes=64 * KIB)
        with Store.open(config(folder, small, value_bytes_max=16 * KIB)) as store:
            parent = None
            for key, size in ((b"root", 300), (b"child", 301), (b"twin", 300)):
                store.put(name.encode() + key, [soft(size), b"", b"x"], meta=b"meta" * (size % 2), parent=parent)
                parent = name.encode() + key
            store.put(b"gone" + name.encode(), soft(64), namespace=b"tenant")
            store.flush()
            store.delete(b"gone" + name.encode(), namespace=b"tenant")
    raw = only_segment(folder).read_bytes()
    store_id = bytes.fromhex(json.loads((folder / "store" / "STORE").read_bytes())["store_id"])
    return raw, Identity(store_id, bytes(32), identity_files.ENGINE)


def records(folder: Path) -> Iterator[Found]:
    _, identity = store_in(folder)
    fs = OsFileSystem()
    fd = fs.open(str(only_segment(folder)))
    number = int(only_segment(folder).stem.split("-")[-1], 16)
    for found in scan(fs, fd, identity.store_id, 0, number):
        if isinstance(found, Found):
            yield found
    fs.close(fd)


def segment_inputs(folder: Path) -> tuple[Inputs, Inputs]:
    """Of ``record_heads`` and ``segment_scan``: the store's records, in the place that the targets are in."""
    raw = b""
    heads: Inputs = {}
    segment = bytes(SEGMENT_HEADER_BYTES)
    for number, found in enumerate(records(folder)):
        raw = raw or only_segment(folder).read_bytes()
        heads[f"{number:02d}"] = pack_head(found.head, record_heads.PLACE)
        segment += raw[found.offset : found.offset + found.head.record_len]
    whole = segment_scan.reseal(segment)
    torn, damaged = whole[:-100], bytearray(whole)
    damaged[SEGMENT_HEADER_BYTES + 200] ^= 1
    return heads, {"whole": whole, "torn": torn, "damaged": bytes(damaged), "empty": whole[:SEGMENT_HEADER_BYTES]}


def index_inputs(folder: Path) -> tuple[Inputs, Inputs]:
    """Of ``index_entries`` and ``index_meta``."""
    file = folder / "store" / "index" / "data.mdb"
    raw = file.read_bytes()
    index = LmdbIndex(str(file.parent), map_bytes=1 << 20, read_only=True, lock=False)
    entries: dict[str, Any] = {}
    with index.read() as view:
        for number, (_, block) in enumerate(view.blocks()):
            entries[f"0-block-{number}"] = block
        for number, (_, content) in enumerate(view.contents(0)):
            entries[f"1-content-{number}"] = content
        entries["2-segment"] = next(iter(view.segments(0).values()))
    index.close()
    row = empty_row()
    set_departure(row, 3, Departure(5, 1_700_000_000, Reason.EVICTED, 0))
    assert list(departures_of(5, bytes(row)))
    entries["3-row"] = row
    inputs = {}
    for name, entry in entries.items():
        table = index_entries.TABLES[int(name[0])]
        assert table.encode is not None
        inputs[name] = bytes((int(name[0]),)) + table.encode(table.key, entry)
    inputs |= older_entries(folder)
    metas = raw[:META_BYTES] + raw[4096 : 4096 + META_BYTES]
    lengths = {"whole": len(raw), "cut": len(raw) // 2, "head": 200, "one": 4096}
    return inputs, {name: metas + struct.pack("<Q", length) for name, length in lengths.items()}


def older_entries(folder: Path) -> Inputs:
    """Of the first format, from a store that an older kvtier wrote."""
    with zipfile.ZipFile(GOLDEN) as archive:
        archive.extract("index/data.mdb", folder)
    found: Inputs = {}
    with lmdb.open(str(folder / "index"), readonly=True, lock=False, max_dbs=2) as env, env.begin() as txn:
        for table, name in ((5, "blocks"), (6, "contents")):
            for number, (_, value) in enumerate(txn.cursor(db=env.open_db(name.encode(), txn=txn, create=False))):
                found[f"{table}-older-{name}-{number}"] = index_entries.reseal(bytes((table,)) + value)
    return found


def identity_inputs() -> Inputs:
    identity = Identity(identity_files.STORE_ID, bytes(range(32)), identity_files.ENGINE, ("nvme", "disk"))
    sealed = replace(identity, secret=b"", sealed_secret=bytes(104))
    return {
        "plain": b"S" + dump_identity(identity),
        "sealed": b"S" + dump_identity(sealed),
        "tier": b"T" + dump_tier(identity.store_id, "nvme", 1),
    }


def codec_inputs() -> Inputs:
    inputs = {}
    for name in codec.CODEC_IDS:
        for size in (0, 1, 65, 900):
            codec_id, stored = codec.encode(name, [memoryview(soft(size))])
            inputs[f"{name}-{size}"] = codecs.HEAD.pack(codec_id, size) + b"".join(stored)
    return inputs


def encrypted_inputs() -> Inputs:
    inside = {"payload": b"P", "meta": b"M", "secret": b"S"}
    made = {}
    for name, kind in inside.items():
        for size in (0, 1, 32) if kind != b"S" else (32,):
            made[f"{name}-{size}"] = encrypted.reseal(kind + bytes(encrypted.OVERHEAD) + soft(size))
    return made


TOML = """\
[store]
path = "cache"
value_bytes_max = "16MiB"
[ram]
bytes_max = 0
eviction = "leaf-lru"
[write_behind]
bytes_max = "64 MiB"
when_full = "skip"
[prefetch]
threads = 3
[[tier]]
name = "nvme"
kind = "ssd"
path = "../fast"
bytes_max = "12.5%"
codec = "zstd-planes"
[[tier]]
name = "disk"
kind = "hdd"
bytes_max = "50GiB"
segment_bytes = 67108864
"""


def toml_inputs() -> Inputs:
    return {"full": TOML.encode(), "ram": b'ram.bytes_max = "1GiB"\n', "folder": b'store = { path = "~/x" }\n'}


def saved_inputs(folder: Path) -> Inputs:
    full = folder / "full.toml"
    full.write_text(TOML)
    one = Config.for_folder(folder / "store")
    return {"full": Config.from_toml(full).to_json().encode(), "one": one.to_json().encode()}


def state_inputs() -> Inputs:
    positions = range(llama_state.START, llama_state.END)
    window = Rows(positions, seed=1)
    tail = llama_state.TAIL
    rows: Sequence[tuple[str, int, bytes]] = [
        ("rows", 0, blobs.blob(Rows(positions))),
        ("transposed", 0, blobs.blob(Rows(positions, v_trans=True))),
        ("no-sequence", 0, blobs.blob(Rows(positions, with_sequence=False), sequence=2)),
        ("window", 1, blobs.blob(Rows(positions), window)),
        ("window-empty", 1, blobs.blob(Rows(positions), NO_ROWS)),
        ("words", 2, blobs.blob(Rows(positions, extra=3))),
        ("latent", 3, blobs.blob(Rows(positions, values=False))),
        ("hybrid", 4, blobs.blob(Rows(positions), tail=tail)),
        ("hybrid-window", 5, blobs.blob(Rows(positions), window, tail=tail)),
        ("hybrid-recurrent", 4, blobs.blob(NO_ROWS, tail=blobs.recurrent(Recurrent(llama_state.END - 1)))),
        ("recurrent", 6, blobs.blob(tail=blobs.recurrent(Recurrent(llama_state.END - 1)))),
    ]
    return {name: bytes((layout,)) + blob for name, layout, blob in rows}


def adapter_inputs() -> Inputs:
    kinds: dict[str, Any] = {"str": "x", "int": 3, "float": 1.5, "bool": True}
    fields = {name: kinds[str(kind)] for name, kind in Fingerprint.__annotations__.items()}
    text = Fingerprint(**fields).to_json()
    return {
        "piece": b"P" + struct.pack("<4sII", b"kvp1", 32, 96),
        "snapshot": b"S" + Snapshot(bytes(32), 96, 3, 1 << 20, bytes(16)).meta(0),
        "fingerprint": b"F" + text,
        "catalogue": b"C[" + text + b"]",
        "empty": b"C[]",
    }


def audit_inputs() -> Inputs:
    return {"whole": b"", "same": struct.pack("<I2s", 0, b"\0\0")}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        heads, segments = segment_inputs(folder)
        entries, metas = index_inputs(folder)
        made: dict[str, Inputs] = {
            "record_heads": heads,
            "segment_scan": segments,
            "index_entries": entries,
            "index_meta": metas,
            "index_audit": audit_inputs(),
            "identity_files": identity_inputs(),
            "codecs": codec_inputs(),
            "encrypted": encrypted_inputs(),
            "toml_config": toml_inputs(),
            "saved_config": saved_inputs(folder),
            "llama_state": state_inputs(),
            "adapter_meta": adapter_inputs(),
        }
    for parser, inputs in made.items():
        target = CORPUS / parser
        target.mkdir(parents=True, exist_ok=True)
        for old in target.iterdir():
            if not old.name.startswith("found"):
                old.unlink()
        for name, data in inputs.items():
            (target / name).write_bytes(data)


if __name__ == "__main__":
    main()
