"""Codecs: how a value's bytes are stored, each with a number that never changes.

=====  ============  ==============================================================================
id     name          stored bytes, for a value of ``n`` bytes (its buffers, one after another)
=====  ============  ==============================================================================
0      none          the ``n`` bytes
1      zstd          one zstd frame of the ``n`` bytes
2      zstd-planes   one zstd frame of the ``n // 2`` bytes at odd offsets, then, raw, the
                     ``(n + 1) // 2`` bytes at even offsets
=====  ============  ==============================================================================

A frame carries its content size and no checksum (records have their own), and nothing may follow it
within its part. ``zstd-planes`` suits little-endian 16-bit floats, as in KV caches: the odd offsets hold
sign, exponent and the top of the mantissa, which compress; the even ones hold noise, which does not and
which zstd would only spend time on. The split runs over the whole value, not buffer by buffer, so that a
value can be read into buffers of other lengths than it was written from; 16-bit elements must therefore begin
at an even offset *of the value*, or the noise is what gets compressed and the value ends up stored as it is.

All functions may be called from several threads: zstd contexts, which are not thread-safe, are one a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import zstandard

from kvtier.blocks import Buffer

__all__ = ["CODEC_IDS", "NONE", "ZSTD", "ZSTD_PLANES", "CodecError", "codec_name", "decode_into", "encode"]

NONE: Final = 0
ZSTD: Final = 1
ZSTD_PLANES: Final = 2

#: Name, as in the configuration, to number, as on disk. Numbers are never reused.
CODEC_IDS: Final = {"none": NONE, "zstd": ZSTD, "zstd-planes": ZSTD_PLANES}

_LEVEL = 1
_WORTH_IT = 0.98  # stored ÷ original; above it the value is stored as it is


class CodecError(ValueError):
    """Stored bytes do not decode to a value of the wanted size (or the codec's name or number is unknown)."""


class _Contexts(threading.local):
    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(
            level=_LEVEL, write_content_size=True, write_checksum=False, write_dict_id=False
        )
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def codec_name(codec_id: int) -> str:
    """The name of a codec's number; :class:`CodecError` if there is none such."""
    for name, number in CODEC_IDS.items():
        if number == codec_id:
            return name
    raise CodecError(f"unknown codec id {codec_id}")


def encode(codec: str, buffers: Sequence[memoryview]) -> tuple[int, list[Buffer]]:
    """The codec's number and the bytes to store, in order, for a value given as flat byte views.

    When the result would not be at least 2 % smaller, number 0 and the buffers themselves, uncopied.
    :class:`CodecError` for an unknown name.
    """
    if codec not in CODEC_IDS:
        raise CodecError(f"unknown codec {codec!r}")
    codec_id = CODEC_IDS[codec]
    stored: list[Buffer] = []
    if codec_id == ZSTD:
        stored = [_contexts.compressor.compress(_joined(buffers))]
    elif codec_id == ZSTD_PLANES:
        value = _joined(buffers)
        whole = value if isinstance(value, bytes) else bytes(value)
        stored = [_contexts.compressor.compress(whole[1::2]), whole[0::2]]
    total = sum(b.nbytes for b in buffers)
    if codec_id == NONE or sum(map(len, stored)) > _WORTH_IT * total:
        return NONE, list(buffers)
    return codec_id, stored


def decode_into(codec_id: int, stored: memoryview, targets: Sequence[memoryview]) -> None:
    """Fill the targets (writable flat byte views), whose total size is the value's, from the stored bytes.

    :class:`CodecError` if they do not decode to exactly that size; the targets are then unchanged. Never
    allocates more than about that size, whatever the stored bytes claim.
    """
    total = sum(t.nbytes for t in targets)
    if codec_id == NONE:
        if stored.nbytes != total:
            raise CodecError(f"stored {stored.nbytes} bytes, wanted {total}")
        _scatter(stored, targets)
    elif codec_id == ZSTD:
        _scatter(memoryview(_decompress(stored, total)), targets)
    elif codec_id == ZSTD_PLANES:
        frame_bytes = stored.nbytes - (total + 1) // 2
        if frame_bytes < 0:
            raise CodecError("stored bytes are shorter than their raw plane")
        value = bytearray(total)
        value[1::2] = _decompress(stored[:frame_bytes], total // 2)
        value[0::2] = stored[frame_bytes:]
        _scatter(memoryview(value), targets)
    else:
        raise CodecError(f"unknown codec id {codec_id}")


def _joined(buffers: Sequence[memoryview]) -> Buffer:
    return buffers[0] if len(buffers) == 1 else b"".join(buffers)


def _scatter(value: memoryview, targets: Sequence[memoryview]) -> None:
    at = 0
    for target in targets:
        target[:] = value[at : at + target.nbytes]
        at += target.nbytes


def _decompress(frame: memoryview, size: int) -> bytes:
    """One whole frame of exactly ``size`` bytes of content. The claimed size is checked before allocating."""
    try:
        claimed = zstandard.frame_content_size(frame)
        if claimed != size:
            raise CodecError(f"the frame holds {claimed} bytes, wanted {size}")
        content: bytes = _contexts.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as e:
        raise CodecError(f"not a sound zstd frame: {e}") from e
    if len(content) != size:
        raise CodecError(f"the frame gave {len(content)} bytes, wanted {size}")
    return content
