"""Stored payloads: ``codec.decode_into``. The input: the codec (1 byte), the size wanted (2 bytes), what is stored."""

from __future__ import annotations

import struct

import zstandard

from kvtier.codec import NONE, ZSTD_PLANES, CodecError, codec_name, decode_into, encode
from tests.fuzz.parsers.target import Target, expect, expect_same

HEAD = struct.Struct("<BH")


class NoHead(ValueError):
    """The input is too short to say anything."""


def parse(data: bytes) -> None:
    if len(data) < HEAD.size:
        raise NoHead
    codec_id, size = HEAD.unpack_from(data)
    value = decoded(codec_id, memoryview(data)[HEAD.size :], size)
    again_id, stored = encode(codec_name(codec_id), [memoryview(value)])
    expect(again_id in (codec_id, NONE), f"codec {again_id} instead of {codec_id}")
    expect_same(lambda: decoded(again_id, memoryview(b"".join(stored)), size), value)


def decoded(codec_id: int, stored: memoryview, size: int) -> bytes:
    """Into two buffers, with guards around them."""
    memory = bytearray(b"\xa5" * (size + 16))
    view = memoryview(memory)[8 : size + 8]
    decode_into(codec_id, stored, [view[: size // 3], view[size // 3 :]])
    expect(memory[:8] == memory[size + 8 :] == b"\xa5" * 8, "written beside the targets")
    return bytes(view)


def reseal(data: bytes) -> bytes:
    """With the size that the frame claims."""
    if len(data) < HEAD.size:
        return data
    try:
        size = zstandard.frame_content_size(data[HEAD.size :])
    except zstandard.ZstdError:
        return data
    size = 2 * size if data[0] == ZSTD_PLANES else size
    return data[:1] + struct.pack("<H", size) + data[HEAD.size :] if 0 <= size < 1 << 16 else data


TARGET = Target(parse, (CodecError, NoHead), reseal, spare=1 << 16)  # scratch for a piece, which is kept
