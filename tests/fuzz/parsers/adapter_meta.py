"""What the llama.cpp adapter stores beside state: the metadata of pieces and snapshots, fingerprints and their list.

The first byte of the input says which.
"""

from __future__ import annotations

import json
import struct
from typing import cast

from kvtier import Hit, Store
from kvtier_adapters.llama_cpp.fingerprint import Fingerprint, catalogue
from kvtier_adapters.llama_cpp.snapshots import read_meta
from kvtier_adapters.prefix import first_row
from tests.fuzz.parsers.target import Target, expect, expect_same

END = 96


class Refused(ValueError):
    """A parser that says None instead of raising."""


class Holder:
    """In place of a store: every key has this value."""

    def __init__(self, value: bytes) -> None:
        self._hit = Hit(b"key", (memoryview(value),), b"", "ram")

    def get(self, key: bytes, *, namespace: bytes) -> Hit:
        return self._hit


def parse(data: bytes) -> None:
    kind, text = data[:1], data[1:]
    if kind == b"P":
        start = first_row(text, END)
        if start is None:
            raise Refused
        expect(struct.pack("<4sII", b"kvp1", start, END) == text, "another piece after a round trip")
    elif kind == b"S":
        snapshot = read_meta(bytes(32), END, text)
        if snapshot is None:
            raise Refused
        expect(snapshot.meta(0) == text, "another snapshot after a round trip")
    elif kind == b"F":
        same(Fingerprint.from_json(text))
    else:
        for fingerprint in catalogue(cast(Store, Holder(text))):
            same(fingerprint)


def same(fingerprint: Fingerprint) -> None:
    expect_same(lambda: Fingerprint.from_json(fingerprint.to_json()).digest(), fingerprint.digest())


def reseal(data: bytes) -> bytes:
    """With the tags and positions that are looked for; the text of a fingerprint as the list of it."""
    if data[:1] == b"P":
        return b"P" + struct.pack("<4s4sI", b"kvp1", data[5:9], END)
    if data[:1] == b"S":
        return b"S" + struct.pack("<4sII", b"kvs1", END, 0) + data[13:]
    try:
        return b"C" + json.dumps([json.loads(data[1:])]).encode() if data[:1] == b"F" else data
    except (ValueError, RecursionError):
        return data


WORDS = [b"[" * 700, b'{"a": ' * 700, b"null", b"NaN", b"1e999", b'"\\ud800"', b"[]", b"{}", b"1" * 4400, b'"layout": ']

TARGET = Target(parse, (Refused, ValueError, TypeError), reseal, WORDS)
