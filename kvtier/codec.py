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

A value is decoded in one pass: frames straight into the memory where it is wanted, planes in pieces that stay in a
core's cache between zstd and the merge. Nothing is allocated for it, but for a value that is cut into several targets.

All functions may be called from several threads, and again on a thread that is in the midst of one, by a signal handler
or a finalizer: each call borrows the zstd contexts and the memory for a piece of a plane that it uses. As many are kept
as were in use at once, 16 at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

import zstandard

from kvtier import planes
from kvtier.blocks import Buffer

__all__ = ["CODEC_IDS", "NONE", "ZSTD", "ZSTD_PLANES", "CodecError", "codec_name", "decode_into", "encode"]

NONE: Final = 0
ZSTD: Final = 1
ZSTD_PLANES: Final = 2

#: Name, as in the configuration, to number, as on disk. Numbers are never reused.
CODEC_IDS: Final = {"none": NONE, "zstd": ZSTD, "zstd-planes": ZSTD_PLANES}

_LEVEL = 1
_WORTH_IT = 0.98  # stored ÷ original; above it the value is stored as it is
_PIECE_BYTES = 512 << 10  # of a plane
_SPARES_MAX = 16
_WINDOW_BYTES_MAX = 8 << 20  # of a frame with more content than that; ours have half a megabyte
_BLOCK_HEADER_BYTES, _RLE, _RESERVED = 3, 1, 3
_FEW_BLOCKS, _BLOCK_BYTES_MIN = 16, 256  # of a frame: few, or as large on average; ours hold 8 KiB or more

_T = TypeVar("_T")


class CodecError(ValueError):
    """Stored bytes do not decode to a value of the wanted size (or the codec's name or number is unknown)."""


class _Spares(Generic[_T]):
    """Things that are made when none is spare, and belong to whoever borrowed them until they come back."""

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._spare: deque[_T] = deque(maxlen=_SPARES_MAX)

    @contextmanager
    def borrowed(self) -> Iterator[_T]:
        try:
            one = self._spare.pop()
        except IndexError:
            one = self._make()
        try:
            yield one
        finally:
            self._spare.append(one)


def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=False, write_dict_id=False)


_compressors = _Spares(_compressor)
_decompressors = _Spares(zstandard.ZstdDecompressor)
_pieces = _Spares(lambda: memoryview(bytearray(_PIECE_BYTES)))


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
        stored = [_compressed(_joined(buffers))]
    elif codec_id == ZSTD_PLANES:
        high, low = planes.split(_joined(buffers))
        stored = [_compressed(high), low]
    total = sum(b.nbytes for b in buffers)
    if codec_id == NONE or sum(map(len, stored)) > _WORTH_IT * total:
        return NONE, list(buffers)
    return codec_id, stored


def decode_into(codec_id: int, stored: memoryview, targets: Sequence[memoryview]) -> None:
    """Fill the targets (writable flat byte views), whose total size is the value's, from the stored bytes.

    :class:`CodecError` if they do not decode to exactly that size; what the targets hold is then undefined. Into one
    target nothing is allocated, into several the value's size, whatever the stored bytes claim.
    """
    total = sum(t.nbytes for t in targets)
    if codec_id == NONE:
        if stored.nbytes != total:
            raise CodecError(f"stored {stored.nbytes} bytes, wanted {total}")
        _scatter(stored, targets)
    elif codec_id in (ZSTD, ZSTD_PLANES):
        fill = _fill_from_frame if codec_id == ZSTD else _fill_from_planes
        if len(targets) == 1:
            fill(stored, targets[0])
        else:
            fill(stored, value := memoryview(bytearray(total)))
            _scatter(value, targets)
    else:
        raise CodecError(f"unknown codec id {codec_id}")


def _compressed(value: Buffer) -> bytes:
    with _compressors.borrowed() as compressor:
        return compressor.compress(value)


def _joined(buffers: Sequence[memoryview]) -> Buffer:
    return buffers[0] if len(buffers) == 1 else b"".join(buffers)


def _scatter(value: memoryview, targets: Sequence[memoryview]) -> None:
    at = 0
    for target in targets:
        target[:] = value[at : at + target.nbytes]
        at += target.nbytes


def _fill_from_frame(frame: memoryview, value: memoryview) -> None:
    with _frame(frame, value.nbytes) as content:
        content.read_into(value)


def _fill_from_planes(stored: memoryview, value: memoryview) -> None:
    size = value.nbytes // 2
    frame_bytes = stored.nbytes - (value.nbytes - size)
    if frame_bytes < 0:
        raise CodecError("stored bytes are shorter than their raw plane")
    low = stored[frame_bytes:]
    with _frame(stored[:frame_bytes], size) as content, _pieces.borrowed() as piece:
        for at in range(0, size, _PIECE_BYTES):
            end = min(size, at + _PIECE_BYTES)
            high = piece[: end - at]
            content.read_into(high)
            planes.merge(high, low[at:end], value[2 * at : 2 * end])
    value[2 * size :] = low[size:]


@contextmanager
def _frame(frame: memoryview, size: int) -> Iterator[_Frame]:
    """Reads one whole frame of exactly ``size`` bytes of content, which must be read to its end.

    What the frame says of itself is checked first: its content's size and its window, before anything is allocated by
    them, and that it ends where the bytes end.
    """
    try:
        said = zstandard.get_frame_parameters(frame)
        at = zstandard.frame_header_size(frame)
    except zstandard.ZstdError as e:
        raise CodecError(f"not a sound zstd frame: {e}") from e
    if said.content_size != size:
        raise CodecError(f"the frame holds {said.content_size} bytes, wanted {size}")
    if said.window_size > max(size, _WINDOW_BYTES_MAX):
        raise CodecError(f"the frame wants a window of {said.window_size} bytes")
    if said.has_checksum or _blocks_end(frame, at, _FEW_BLOCKS + size // _BLOCK_BYTES_MIN) != frame.nbytes:
        raise CodecError("the frame does not end where its bytes end")
    with _decompressors.borrowed() as decompressor, decompressor.stream_reader(frame) as reader:
        yield (content := _Frame(reader))
        if content.read(memoryview(bytearray(1))):
            raise CodecError("the frame goes on")


class _Frame:
    """The content of a frame, in the order in which it is read."""

    def __init__(self, reader: zstandard.ZstdDecompressionReader) -> None:
        self._reader = reader

    def read_into(self, view: memoryview) -> None:
        """Fill ``view`` with what comes next."""
        while view.nbytes:
            count = self.read(view)
            if not count:
                raise CodecError("the frame holds less than it says")
            view = view[count:]

    def read(self, view: memoryview) -> int:
        """How many bytes come next, up to the view's size; they are in it then."""
        try:
            count: int = self._reader.readinto(view)
        except zstandard.ZstdError as e:
            raise CodecError(f"not a sound zstd frame: {e}") from e
        return count


def _blocks_end(frame: memoryview, at: int, blocks_max: int) -> int:
    """Where the last block of a frame ends whose first one begins ``at``. :class:`CodecError` if it has no last one."""
    for _ in range(blocks_max):
        header = int.from_bytes(frame[at : at + _BLOCK_HEADER_BYTES], "little")
        is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if at + _BLOCK_HEADER_BYTES > frame.nbytes or kind == _RESERVED:
            break
        at += _BLOCK_HEADER_BYTES + (1 if kind == _RLE else size)
        if is_last:
            return at
    raise CodecError("the frame has no end")
