"""Snapshots: what a checkpoint holds besides rows, as blocks of the store.

A snapshot is one blob, cut into chunks where its *content* says so (after Muthitacharoen, Chen and Mazières, "A
Low-bandwidth Network File System", 2001), so that two snapshots that share long runs of bytes share chunks,
and the store keeps those once. Chunk ``i`` of the snapshot as of a position has the key
``derive(derive(key(position)), i)``; its metadata says how many there are and of what snapshot. One that is missing,
or another one's, makes the whole snapshot a miss.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from kvtier_adapters.prefix import derive

CHUNK_MIN = 32 << 10
CHUNK_MAX = 512 << 10
_STRIDE = 1 << 22  # words
_MEAN_BITS = 14  # a candidate every 2**14 words of 4 bytes: 64 KiB

_META = struct.Struct("<4sIIIQ16s")  # tag, position, number of this chunk; chunks, bytes and hash of the snapshot
_HASH_BYTES = 16
_META_TAG = b"kvs1"
_SNAPSHOT = b"kvtier.snapshot"
_CHUNKS_MAX = 1 << 24
_A, _B = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)  # odd, with well-mixed bits


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A stored snapshot as of ``end`` tokens."""

    key: bytes
    """Derived from the key of the position; the chunks' keys are derived from it."""
    end: int
    chunks: int
    nbytes: int
    content: bytes
    """Hash of all of it: what was captured at the same position another time may differ in few bits."""

    def keys(self, secret: bytes) -> list[bytes]:
        return [chunk_key(self.key, number, secret) for number in range(self.chunks)]

    def meta(self, number: int) -> bytes:
        """The metadata of chunk ``number``."""
        return _META.pack(_META_TAG, self.end, number, self.chunks, self.nbytes, self.content)


def snapshot_key(position_key: bytes, secret: bytes) -> bytes:
    """The key of the snapshot of a prefix, from the key of the prefix."""
    return derive(position_key, secret, _SNAPSHOT)


def chunk_key(key: bytes, number: int, secret: bytes) -> bytes:
    """The key of one chunk of a snapshot."""
    return derive(key, secret, b"chunk" + number.to_bytes(4, "little"))


def read_meta(key: bytes, end: int, meta: bytes) -> Snapshot | None:
    """The snapshot that a first chunk's metadata speaks of; None if it is none as of ``end``."""
    if len(meta) != _META.size:
        return None
    tag, position, number, chunks, nbytes, content = _META.unpack(meta)
    if tag != _META_TAG or position != end or number != 0 or not 1 <= chunks <= _CHUNKS_MAX:
        return None
    return Snapshot(key, end, chunks, nbytes, content)


def content_hash(blob: memoryview) -> bytes:
    """What tells a snapshot from another one of the same position."""
    return blake3(blob).digest(_HASH_BYTES)


def cut(blob: memoryview, most: int = CHUNK_MAX) -> list[memoryview]:
    """The blob as chunks of ``CHUNK_MIN`` to ``CHUNK_MAX`` bytes (the last may be shorter), in order.

    ``most``: what a value of the store may have; chunks stay within it.
    """
    most = min(most, CHUNK_MAX)
    least = min(most, CHUNK_MIN)
    cuts = _candidates(blob)
    chunks = []
    start = 0
    while blob.nbytes - start > least:
        at = int(np.searchsorted(cuts, start + least))
        end = min(int(cuts[at]) if at < len(cuts) else blob.nbytes, start + most, blob.nbytes)
        chunks.append(blob[start:end])
        start = end
    if start < blob.nbytes or not chunks:
        chunks.append(blob[start:])
    return chunks


def _candidates(blob: memoryview) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Where the blob may be cut: after two words of 4 bytes whose hash begins with so many zeros."""
    words = np.frombuffer(blob, dtype=np.uint32, count=blob.nbytes // 4)
    found = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(words) - 1, _STRIDE):  # in strides: what is mixed is as big as what it is mixed from
        stride = words[start : start + _STRIDE + 1]
        mixed = stride[:-1] * _A
        mixed ^= stride[1:] * _B
        mixed *= _A
        mixed >>= np.uint32(32 - _MEAN_BITS)
        found.append((np.flatnonzero(mixed == 0) + start + 2) * 4)
    return np.concatenate(found)
