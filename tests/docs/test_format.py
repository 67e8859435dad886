"""docs/format.md against the code, and a store read by the document alone."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import time
from pathlib import Path
from typing import Any, NamedTuple

import blake3
import lmdb
import pytest
import xxhash
import zstandard
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kvtier import Config, Key, Store, codec
from kvtier.identity import STORE_FORMAT
from kvtier.index import lmdb_index, schema
from kvtier.index.schema import BlockEntry, ContentEntry, Departure, ExpiryEntry, Reason, SegmentEntry
from kvtier.segment import format as fmt
from tests.stores import KIB, MIB, config, names, noise, settle, tier

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}


def section(title: str) -> str:
    """The text under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows(title: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


class Layout(NamedTuple):
    """A byte table as a struct with named fields."""

    layout: struct.Struct
    fields: list[str]

    def read(self, raw: bytes, at: int = 0) -> dict[str, Any]:
        return dict(zip(self.fields, self.layout.unpack_from(raw, at), strict=True))


def byte_table(title: str) -> Layout:
    """Every offset must be where the row before it ended, every size that of its type."""
    at, codes, fields = 0, "<", []
    for offset, size, kind, field, _ in rows(title):
        assert int(offset) == at, (title, field)
        code = CODES.get(kind, f"{size}s")
        assert struct.calcsize("<" + code) == int(size), (title, field)
        assert kind in (*CODES, "bytes"), (title, kind)
        at += int(size)
        codes += code
        fields.append(field.strip("`"))
    return Layout(struct.Struct(codes), fields)


# -- the page against the code -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "layout"),
    [
        ("Segment header", fmt.SEGMENT_HEADER),
        ("Record", fmt.RECORD_HEADER),
        ("Head checksum", fmt._PLACE),
        ("blocks", schema._BLOCK),
        ("contents", schema._CONTENT),
        ("segments", schema._SEGMENT),
        ("namespaces", schema._NAMESPACE),
        ("expiries", schema._EXPIRY),
        ("departures", schema._DEPARTURE),
    ],
)
def test_a_byte_table_is_the_struct(title: str, layout: struct.Struct) -> None:
    assert byte_table(title).layout.format == layout.format
    assert byte_table(title).layout.size == layout.size


@pytest.mark.parametrize(
    ("title", "fields"),
    [
        ("Record", fmt._Fixed._fields),
        ("Head checksum", fmt.Place._fields),
        ("segments", SegmentEntry._fields),
        ("expiries", ExpiryEntry._fields),
        ("departures", Departure._fields),
    ],
)
def test_fields_have_the_names_of_the_code(title: str, fields: tuple[str, ...]) -> None:
    assert tuple(byte_table(title).fields) == fields


def test_entries_of_blocks_and_contents_have_all_fields_of_the_code() -> None:
    fixed, numbers = byte_table("blocks").fields, [field.strip("`") for field, _ in rows("Numbers of a block")]
    inside = {"namespace", "key", "meta", "kind"}  # by their lengths, and in the shape
    assert {*fixed, *numbers, *inside, "expires_at"} == {*BlockEntry._fields, "shape", "ns_len", "key_len", "buffers"}
    numbers = [field.strip("`") for field, _ in rows("Numbers of a content")]
    assert ("codec", *numbers) == ContentEntry._fields
    assert f"index has a format of its own, **{schema.INDEX_FORMAT}**" in " ".join(PAGE.split())
    assert f"the first {schema.CONTENT_KEY_BYTES} bytes of the content id" in section("contents")
    assert schema.RECORD_ALIGN == fmt.RECORD_ALIGN
    assert schema.HEAD_BYTES_MIN == fmt.RECORD_HEADER_BYTES


def test_numbers_and_names_are_those_of_the_code() -> None:
    assert {(int(i), name) for i, name, _ in rows("Codecs")} == {(i, n) for n, i in codec.CODEC_IDS.items()}
    assert [(b.strip("`"), n) for b, n, _ in rows("States")] == [
        (chr(s), s.name.lower().replace("_", " ")) for s in fmt.RecordState
    ]
    assert [(int(n), name) for n, name, _ in rows("Reasons")] == [(r, r.name.lower().replace("_", " ")) for r in Reason]
    ring = section("departures")
    assert tuple(int(n) for n in re.findall(r"`n % (\d+)`.*?`place // (\d+)`", ring)[0]) == (
        schema.DEPARTURES_MAX,
        schema.DEPARTURES_A_ROW,
    )
    assert f"; {schema.NO_TIER} for none" in ring
    meanings = {field.strip("`"): meaning for *_, field, meaning in rows("Record")}
    kinds = dict(re.findall(r"(\d): an? (\w+)", meanings["kind"]))
    assert {int(n): name.upper() for n, name in kinds.items()} == {k.value: k.name for k in fmt.RecordKind}
    assert f"`{fmt.RECORD_MAGIC.decode()}`" == meanings["magic"]
    assert re.search(rf"multiple of {fmt.RECORD_ALIGN}\b", section("Record"))
    assert f"Format **{STORE_FORMAT}**" in PAGE
    assert f"format {STORE_FORMAT + 1}, which is the same\nbut encrypted" in PAGE
    assert f'"{lmdb_index.ENGINE}"' in section("STORE")
    limits = (meanings["ns_len"], meanings["key_len"], meanings["meta_len"], meanings["buffers"])
    assert [re.findall(r"\d+", m)[-1] for m in limits] == ["64", "128", "1024", "64"]
    assert re.findall(r"\d+", meanings["meta_len"])[0] == str(fmt.META_STORED_BYTES_MAX)


# -- a reader made from the page ---------------------------------------------------------------------


def checked_json(file: Path, title: str, *without: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(file.read_text())
    assert set(fields) == {name.strip("`") for name, *_ in rows(title)} - set(without)
    found = fields.pop("sum")
    body = json.dumps(fields, sort_keys=True, separators=(", ", ": "), ensure_ascii=True)
    assert found == f"{xxhash.xxh3_64(body.encode()).intdigest():016x}"
    return fields


def decoded(codec_id: int, stored: bytes, n: int) -> bytes:
    if codec_id == 0:
        return stored
    frame = stored if codec_id == 1 else stored[: len(stored) - (n + 1) // 2]
    plain: bytes = zstandard.decompress(frame)
    if codec_id == 1:
        return plain
    value = bytearray(n)
    value[1::2], value[0::2] = plain, stored[len(frame) :]
    return bytes(value)


class Record(NamedTuple):
    head: dict[str, Any]
    namespace: bytes
    key: bytes
    meta: bytes
    lengths: tuple[int, ...]
    payload: bytes
    place: tuple[int, int, int]


def cut(raw: bytes, at: int, head: dict[str, Any]) -> tuple[bytes, bytes, bytes, tuple[int, ...]]:
    """Namespace, key, metadata and lengths, as they follow a fixed part."""
    parts = []
    for size in (head["ns_len"], head["key_len"], head["meta_len"]):
        parts.append(raw[at : at + size])
        at += size
    return parts[0], parts[1], parts[2], struct.unpack_from(f"<{head['buffers']}Q", raw, at)


def records(file: Path, store: dict[str, Any], tier_no: int) -> list[Record]:
    raw, found = file.read_bytes(), []
    header = byte_table("Segment header")
    h = header.read(raw)
    assert h["magic"] == b"KVTSEG\r\n"
    assert (h["format"], h["store_id"].hex(), h["tier_no"]) == (1, store["store_id"], tier_no)
    assert h["segment_no"] == int(file.stem)
    assert h["header_sum"] == xxhash.xxh3_64(raw[:56]).intdigest()
    table, at = byte_table("Record"), header.layout.size
    while at < len(raw):
        head = table.read(raw, at)
        body = at + table.layout.size
        payload_at = body + head["variable_len"]
        place = byte_table("Head checksum").layout.pack(h["store_id"], tier_no, h["segment_no"], at)
        fixed = raw[at : body - 8]
        summed = place + fixed[:4] + b"\0" + fixed[5:] + raw[body:payload_at]
        assert (head["magic"], head["head_sum"]) == (b"KVR1", xxhash.xxh3_64(summed).intdigest())
        payload = raw[payload_at : payload_at + head["stored_len"]]
        name = cut(raw, body, head)
        assert sum(name[3]) == head["raw_len"]
        if head["kind"] == 1 and head["state"] != ord("D"):
            assert head["payload_sum"] == xxhash.xxh3_128(payload).digest()
        found.append(Record(head, *name, payload, (tier_no, h["segment_no"], at)))
        at += head["record_len"]
    assert at == len(raw)
    return found


def test_long_payloads_start_where_the_page_says(tmp_path: Path) -> None:
    least, page = map(int, re.findall(r"payload of (\d+) bytes or more starts at a multiple of (\d+)", PAGE)[0])
    assert (least, page) == (fmt.ALIGNED_BYTES_MIN, fmt.PAGE)
    sizes = [least - 1, least, 700, least + 1]
    c = config(tmp_path, tier(segment_bytes=4 * MIB), value_bytes_max=MIB)
    with Store.open(c) as store:
        for i, size in enumerate(sizes):
            store.put(b"%d" % i, noise(i, size))
    identity = checked_json(tmp_path / "store" / "STORE", "STORE", "sealed_secret")
    (file,) = (tmp_path / "store" / "disk").glob("*.seg")
    found = {r.key: r for r in records(file, identity, 0)}
    starts = [r.place[2] + byte_table("Record").layout.size + r.head["variable_len"] for r in found.values()]
    assert [start % page == 0 for start in starts] == [size >= least for size in sizes]
    assert [r.payload for r in found.values()] == [noise(i, size) for i, size in enumerate(sizes)]


def keyed(secret: bytes, purpose: bytes) -> bytes:
    return hashlib.blake2b(purpose, digest_size=32, key=secret, person=b"kvtier key").digest()


def block_id(secret: bytes, namespace: bytes, key: bytes) -> int:
    name = bytes((len(namespace),)) + namespace + key
    h = hashlib.blake2b(name, digest_size=8, key=secret, person=b"kvtier block").digest()
    return int.from_bytes(h, "big") or 1


def checked(key: bytes, value: bytes, seed: int = 0) -> bytes:
    body, found = value[:-4], value[-4:]
    assert int.from_bytes(found, "little") == xxhash.xxh32(key + body, seed).intdigest()
    return body


def opened(key: bytes, value: bytes, title: str) -> dict[str, Any]:
    return byte_table(title).read(checked(key, value))


def numbers_of(raw: bytes, title: str, shape: int, last: int = 1) -> tuple[dict[str, Any], bytes]:
    """The numbers that a table names, of the last of which there are so many; and what follows them."""
    numbers: dict[str, Any] = {}
    at = 0
    for i, (field, meaning) in enumerate(rows(title)):
        width = 1 << (shape >> 2 * i & 3)
        count = last if "as many as" in meaning else 1
        ends = range(at + width, at + width * count + 1, width)
        found = [int.from_bytes(raw[end - width : end], "little", signed="sign" in meaning) for end in ends]
        numbers[field.strip("`")] = tuple(found) if "as many as" in meaning else found[0]
        at += width * count
    return numbers, raw[at:]


TTL_S = 1e6
DELETED = {(b"tenant", b"old-a"), (b"tenant", b"new-a")}


def make(folder: Path) -> tuple[Config, dict[tuple[bytes, bytes], tuple[list[bytes], bytes]]]:
    """A store with two tiers, all codecs, references, dead records and a chain; and what is in it (and is not any
    more: ``DELETED``)."""
    limits = {"write_bytes_per_day": "1TiB"}
    c = config(folder, tier("top", bytes_max=MIB + 512 * KIB, **limits), tier("low", codec="zstd-planes", **limits))
    soft = bytes(i % 256 if i % 2 else i % 3 for i in range(30_001))
    blocks: dict[tuple[bytes, bytes], tuple[list[bytes], bytes]] = {}
    with Store.open(c, background=False) as store:

        def put(key: bytes, buffers: list[bytes], meta: bytes = b"", namespace: bytes = b"", **more: Any) -> None:
            store.put(key, buffers, meta=meta, namespace=namespace, **more)
            blocks[namespace, key] = (buffers, meta)

        put(b"planes", [soft], b"about")
        put(b"empty", [b"", b""], ttl=TTL_S)
        put(b"child", [b"x"], parent=b"planes")
        put(b"replaced", [b"old"])
        store.flush()
        put(b"replaced", [b"new", b"er"])
        for round_ in (b"old", b"new"):  # shared bytes, in both tiers in the end
            shared = [round_ + key for key in (b"-a", b"-b", b"-c")]
            for key in shared:
                put(key, [noise(round_, 9000)], meta=key, namespace=b"tenant")
            store.flush()
            store.delete(shared[0], namespace=b"tenant")  # the owner
            del blocks[b"tenant", shared[0]]
            for key in names(14) if round_ == b"old" else []:
                put(key, [noise(key, 100 * KIB)])
                store.flush()
        settle(store)
        assert {t.segments > 0 for t in store.stats().tiers} == {True}
    return c, blocks


def test_a_store_can_be_read_by_the_page_alone(tmp_path: Path) -> None:
    _, blocks = make(tmp_path)
    root = tmp_path / "store"
    store = checked_json(root / "STORE", "STORE", "sealed_secret")
    secret = bytes.fromhex(store["secret"])
    found: list[Record] = []
    for tier_no, name in enumerate(store["tiers"]):
        label = checked_json(root / name / "TIER", "TIER")
        assert (label["store_id"], label["name"], label["tier_no"]) == (store["store_id"], name, tier_no)
        for file in sorted((root / name).glob("*.seg")):
            found += records(file, store, tier_no)
    assert {r.head["codec"] for r in found} == {0, 2}
    assert {r.head["kind"] for r in found} == {1, 2}
    assert {chr(r.head["state"]) for r in found} == set("LPD")

    payloads = {
        (r.place[0], r.head["content_id"]): r for r in found if r.head["kind"] == 1 and r.head["state"] != ord("D")
    }
    live: dict[tuple[bytes, bytes], Record] = {}
    for r in found:
        old = live.get((r.namespace, r.key))
        if r.head["state"] == ord("L") and (old is None or r.head["seq"] > old.head["seq"]):
            live[r.namespace, r.key] = r
    assert set(live) == set(blocks)
    for (namespace, key), r in live.items():
        source = payloads[r.place[0], r.head["content_id"]]
        value = decoded(source.head["codec"], source.payload, r.head["raw_len"])
        buffers, meta = blocks[namespace, key]
        assert (value, r.meta, r.lengths) == (b"".join(buffers), meta, tuple(map(len, buffers)))
        hasher = blake3.blake3(value, key=keyed(secret, b"content:" + namespace))
        assert r.head["content_id"] == hasher.digest()[:16]
    assert live[b"", b"child"].head["parent_id"] == block_id(secret, b"", b"planes")

    check_index(root / "index", store, secret, live, payloads)


def check_expiries(tables: dict[str, dict[bytes, bytes]], number: int, record: Record) -> None:
    """The one block that expires."""
    ((key, value),) = tables["expiries"].items()
    ((place, seal),) = tables["expiry_order"].items()
    expiry = opened(key, value, "expiries")
    assert (key, expiry["seq"]) == (number.to_bytes(8, "big"), record.head["seq"])
    assert place == expiry["when"].to_bytes(8, "big") + key
    assert checked(place, seal) == b""
    now = int.from_bytes(tables["meta"][b"time"], "little")
    assert TTL_S - 100 < expiry["when"] - now <= TTL_S + 1
    day = record.head["day_low"] + 256 * record.head["day_high"]
    assert (day - 1) * 86_400 < expiry["when"] <= day * 86_400


def check_index(
    folder: Path,
    store: dict[str, Any],
    secret: bytes,
    live: dict[tuple[bytes, bytes], Record],
    payloads: dict[tuple[int, bytes], Record],
) -> None:
    """Every entry of the index, byte by byte, against the records."""
    names_of_tables = ("blocks", "contents", "segments", "namespaces", "expiries", "expiry_order", "departures", "meta")
    with lmdb.open(str(folder), max_dbs=8, readonly=True) as env, env.begin() as txn:
        last_commit = txn.id()
        tables = {n: dict(txn.cursor(db=env.open_db(n.encode(), txn=txn, create=False))) for n in names_of_tables}
    assert set(tables["blocks"]) == {block_id(secret, *name).to_bytes(8, "big") for name in live}
    refs: dict[tuple[int, bytes], int] = {}
    clock = int.from_bytes(tables["meta"][b"clock"], "little")
    for (namespace, key), r in live.items():
        id_bytes = block_id(secret, namespace, key).to_bytes(8, "big")
        body = checked(id_bytes, tables["blocks"][id_bytes], seed=2)
        entry, names_ = byte_table("blocks").read(body), body[byte_table("blocks").layout.size :]
        assert names_.startswith(namespace + key)
        assert (entry["ns_len"], entry["key_len"]) == (len(namespace), len(key))
        shape = entry["shape"]
        numbers, meta = numbers_of(names_[len(namespace + key) :], "Numbers of a block", shape, entry["buffers"])
        assert (numbers["lengths"], meta) == (r.lengths, r.meta)
        assert (entry["tier_no"], numbers["segment_no"], 64 * numbers["offset"]) == r.place
        assert (numbers["seq"], 64 * numbers["record_len"]) == (r.head["seq"], r.head["record_len"])
        assert 0 < numbers["seq"] + numbers["clock"] <= clock
        same = ("parent_id", "content_id")
        assert [entry[f] for f in same] == [r.head[f] for f in same]
        assert shape >> 12 == r.head["kind"]
        content = (entry["tier_no"], entry["content_id"])
        refs[content] = refs.get(content, 0) + 1
    assert set(tables["contents"]) == {bytes((tier_no,)) + content_id[:10] for tier_no, content_id in refs}
    for (tier_no, content_id), count in refs.items():
        raw_key = bytes((tier_no,)) + content_id[:10]
        body = checked(raw_key, tables["contents"][raw_key], seed=2)
        entry = byte_table("contents").read(body)
        behind = body[byte_table("contents").layout.size :]
        numbers, rest = numbers_of(behind, "Numbers of a content", entry["shape"])
        source = payloads[tier_no, content_id]
        assert (tier_no, numbers["segment_no"], 64 * numbers["offset"]) == source.place
        assert 96 + numbers["head_len"] == byte_table("Record").layout.size + source.head["variable_len"]
        assert (numbers["stored_len"], entry["codec"]) == (source.head["stored_len"], source.head["codec"])
        assert (numbers["refs"], rest) == (count, b"")
    check_expiries(tables, block_id(secret, b"", b"empty"), live[b"", b"empty"])
    check_segments(folder.parent, store, tables["segments"], live, payloads)
    owned: dict[bytes, list[int]] = {}
    for (namespace, _), r in live.items():
        owned.setdefault(bytes((len(namespace),)) + namespace, []).append(sum(r.lengths))
    assert set(tables["namespaces"]) == set(owned)
    for raw_key, value in tables["namespaces"].items():
        entry = opened(raw_key, value, "namespaces")
        assert entry == {"blocks": len(owned[raw_key]), "nbytes": sum(owned[raw_key])}
    counters = {k.decode(): int.from_bytes(v, "little") for k, v in tables["meta"].items()}
    pages = {n.strip("`").replace(":N", f":{i}") for n, _ in rows("meta") for i in range(len(store["tiers"]))}
    assert set(counters) == pages
    assert counters["complete2"] == 1
    assert counters["counted"] == last_commit
    gone = departures(tables["departures"], counters["departures"])
    assert {d["block_id"] for d in gone} == {block_id(secret, *name) for name in DELETED}
    assert {(d["reason"], store["tiers"][d["tier_no"]]) for d in gone} == {(2, "top")}
    assert all(abs(d["when"] - time.time()) < 3600 for d in gone)
    assert counters["seq"] >= max(r.head["seq"] for r in live.values())


def departures(table: dict[bytes, bytes], count: int) -> list[dict[str, Any]]:
    """Those that are remembered, oldest first."""
    layout, found = byte_table("departures"), []
    for n in range(max(0, count - 65536), count):
        key = (n % 65536 // 64).to_bytes(2, "big")
        found.append(layout.read(checked(key, table[key]), n % 64 * layout.layout.size))
    return found


def check_segments(
    root: Path,
    store: dict[str, Any],
    table: dict[bytes, bytes],
    live: dict[tuple[bytes, bytes], Record],
    payloads: dict[tuple[int, bytes], Record],
) -> None:
    files = {
        (no, int(f.stem)): f.stat().st_size
        for no, name in enumerate(store["tiers"])
        for f in (root / name).glob("*.seg")
    }
    needed: dict[tuple[int, int, int], int] = {
        r.place: r.head["record_len"] for r in (*live.values(), *payloads.values())
    }
    found = {}
    for key, value in table.items():
        entry = opened(key, value, "segments")
        tier_no, number = key[0], int.from_bytes(key[1:], "big")
        found[tier_no, number] = entry["committed_len"]
        assert entry["live_bytes"] == sum(n for p, n in needed.items() if p[:2] == (tier_no, number))
        assert entry["sealed"] in (0, 1)
    assert found == files


# -- a reader of an encrypted store, made from the page -----------------------------------------------

SLIP, TAG_BYTES = 56, 16


def data_key(key: bytes, encrypted: bytes, purpose: bytes, length: int) -> bytes:
    """The data key for what begins with this slip, which must be of ``key``."""
    slip = slip_of(encrypted)
    made = HKDF(hashes.SHA256(), length + 8, slip["salt"], purpose).derive(key)
    assert made[length:] == slip["key_check"]
    return made[:length]


def slip_of(encrypted: bytes) -> dict[str, Any]:
    return byte_table("Slip").read(encrypted)


def test_an_encrypted_store_can_be_read_by_the_page_alone(tmp_path: Path) -> None:
    keys = {None: b"S" * 32, b"": b"E" * 32, b"tenant": b"T" * 32}

    def provider(namespace: bytes | None, key_id: str | None) -> Key:
        return Key("the id", keys[namespace])

    blocks = {
        (b"", b"soft"): ([bytes(i % 256 if i % 2 else i % 3 for i in range(30_001))], b"about"),
        (b"tenant", b"two"): ([noise(1, 5000), b"", b"end"], b""),
        (b"tenant", b"three"): ([noise(2, 500)], b"meta"),
    }
    with Store.open(config(tmp_path, tier(codec="zstd-planes")), keys=provider) as store:
        for (namespace, key), (buffers, meta) in blocks.items():
            parent = b"two" if key == b"three" else None
            store.put(key, buffers, meta=meta, namespace=namespace, parent=parent)

    root = tmp_path / "store"
    identity = checked_json(root / "STORE", "STORE", "secret")
    assert identity["format"] == 4
    store_id, sealed = bytes.fromhex(identity["store_id"]), bytes.fromhex(identity["sealed_secret"])
    key = data_key(keys[None], sealed, b"kvtier store" + store_id, 32)
    secret = AESGCM(key).decrypt(bytes(12), sealed[SLIP:], store_id)

    (file,) = (root / "disk").glob("*.seg")
    found = {r.key: r for r in records(file, identity, 0)}
    names_of = {
        hashlib.blake2b(
            bytes((len(namespace),)) + namespace + key, digest_size=32, key=secret, person=b"kvtier name"
        ).digest(): (namespace, key)
        for namespace, key in blocks
    }
    assert set(found) == set(names_of)
    for name, r in found.items():
        buffers, meta = blocks[names_of[name]]
        mine = keys[r.namespace]
        assert slip_of(r.payload)["key_id"] == b"the id".ljust(32, b"\0")
        assert r.head["codec"] >= 128
        place = byte_table("Head checksum").layout.pack(store_id, *r.place)
        segment = byte_table("Head checksum").layout.pack(store_id, *r.place[:2], 0)
        blank = {"state": 0, "payload_sum": bytes(16), "head_sum": 0}
        fixed = byte_table("Record").layout.pack(*({**r.head, **blank}).values())
        variable = r.namespace + r.key + r.meta + struct.pack(f"<{len(r.lengths)}Q", *r.lengths)
        key = data_key(mine, r.payload, b"kvtier segment" + segment + b"\0" + r.namespace, 32)
        nonce = r.place[2].to_bytes(12, "little")
        plain = AESGCM(key).decrypt(nonce, r.payload[SLIP:], place + fixed + variable)
        value = decoded(r.head["codec"] - 128, plain, r.head["raw_len"])
        assert value == b"".join(buffers)

        key = data_key(mine, r.meta, b"kvtier meta" + store_id + b"\0" + r.namespace, 64)
        bound = [r.namespace, r.key, r.head["content_id"], struct.pack("<Q", r.head["parent_id"])]
        bound.append(struct.pack(f"<{len(r.lengths)}Q", *r.lengths))
        assert AESSIV(key).decrypt(r.meta[SLIP:], bound) == meta

        purpose = b"kvtier content" + store_id + b"\0" + r.namespace
        made = HKDF(hashes.SHA256(), 40, bytes(16), purpose).derive(mine)[:32]
        assert r.head["content_id"] == blake3.blake3(value, key=made).digest()[:16]
