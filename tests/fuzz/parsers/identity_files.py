"""The ``STORE`` and ``TIER`` files: ``identity.load_identity`` and ``check_tier``. The first byte says which."""

from __future__ import annotations

import json

import xxhash

from kvtier.errors import CorruptStore, NotAStore, UnsupportedFormat
from kvtier.identity import SECRET_BYTES, check_tier, dump_identity, load_identity
from tests.fuzz.parsers.one_file import OneFile
from tests.fuzz.parsers.target import Target, expect, expect_same

ENGINE = "lmdb-0.9"
STORE_ID = bytes(range(16))


def parse(data: bytes) -> None:
    if data[:1] == b"T":
        check_tier(OneFile(data[1:]), "TIER", STORE_ID, "nvme", 1)
        return
    identity = load_identity(OneFile(data[1:]), "STORE", ENGINE)
    expect(len(identity.store_id) == len(STORE_ID), f"a store id of {len(identity.store_id)} bytes")
    if identity.sealed_secret is None:
        expect(len(identity.secret) == SECRET_BYTES, f"a secret of {len(identity.secret)} bytes")
        identity.block_id(b"ns", b"key")
        identity.content_hasher(b"ns")
    expect_same(lambda: load_identity(OneFile(dump_identity(identity)), "STORE", ENGINE), identity)


def reseal(data: bytes) -> bytes:
    try:
        fields = json.loads(data[1:])
        fields.pop("sum", None)
        body = json.dumps(fields, sort_keys=True)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return data
    return data[:1] + json.dumps({**fields, "sum": xxhash.xxh3_64_hexdigest(body.encode())}, sort_keys=True).encode()


WORDS = [
    *(f'"{key}": '.encode() for key in ("kvtier", "format", "store_id", "secret", "sealed_secret", "engine", "tiers")),
    *(b'"name": ', b'"tier_no": ', b"null", b"true", b"1", b"2", b"1e9", b"-1", b"[", b"]", b"{}", b'""', b'"00"'),
    *(b'"\\ud800"', b"[" * 700, b"NaN", b"1" * 4400, b'"nvme"', b'["a", "a"]'),
]

TARGET = Target(parse, (CorruptStore, NotAStore, UnsupportedFormat), reseal, WORDS)
