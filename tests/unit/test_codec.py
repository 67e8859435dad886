from __future__ import annotations

import contextlib
import itertools
import os
import random
import struct
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kvtier import codec, planes
from kvtier.codec import CODEC_IDS, NONE, ZSTD, ZSTD_PLANES, CodecError, codec_name, decode_into, encode


def stored_bytes(codec_name: str, value: bytes) -> tuple[int, bytes]:
    codec_id, stored = encode(codec_name, [memoryview(value)])
    return codec_id, b"".join(stored)


def decoded(codec_id: int, stored: bytes, size: int) -> bytes:
    target = bytearray(b"?" * size)
    decode_into(codec_id, memoryview(stored), [memoryview(target)])
    return bytes(target)


def half_floats(count: int, seed: int = 1) -> bytes:
    rng = random.Random(seed)
    return struct.pack(f"<{count}e", *(rng.gauss(0, 1) for _ in range(count)))


def cut(value: bytes, cuts: list[int]) -> list[memoryview]:
    edges = [0, *sorted(c % (len(value) + 1) for c in cuts), len(value)]
    return [memoryview(value)[a:b] for a, b in itertools.pairwise(edges)]


def test_numbers_and_names_are_stable() -> None:
    assert CODEC_IDS == {"none": 0, "zstd": 1, "zstd-planes": 2}
    assert [codec_name(i) for i in (0, 1, 2)] == ["none", "zstd", "zstd-planes"]


compressible = st.builds(
    lambda piece, times, tail: piece * times + tail,
    st.binary(min_size=1, max_size=9),
    st.integers(0, 300),
    st.binary(max_size=5),
)


@given(
    name=st.sampled_from(sorted(CODEC_IDS)),
    value=compressible | st.binary(max_size=600),
    cuts=st.lists(st.integers(0), max_size=4),
    other_cuts=st.lists(st.integers(0), max_size=4),
)
def test_what_goes_in_comes_out_whatever_the_buffers(
    name: str, value: bytes, cuts: list[int], other_cuts: list[int]
) -> None:
    codec_id, stored = encode(name, cut(value, cuts))
    assert codec_id in (CODEC_IDS[name], NONE)
    assert sum(map(len, stored)) <= len(value)
    target = bytearray(len(value))
    whole = memoryview(target)
    sizes = [view.nbytes for view in cut(value, other_cuts)]
    targets = [whole[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    decode_into(codec_id, memoryview(b"".join(stored)), targets)
    assert target == value


@pytest.mark.parametrize("name", sorted(CODEC_IDS))
def test_incompressible_values_are_the_callers_own_buffers(name: str) -> None:
    buffers = [memoryview(os.urandom(5000)), memoryview(os.urandom(77))]
    codec_id, stored = encode(name, buffers)
    assert codec_id == NONE
    assert all(a is b for a, b in zip(stored, buffers, strict=True))


def test_less_than_two_percent_saved_is_not_worth_it() -> None:
    noise = os.urandom(100_000)
    assert encode("zstd", [memoryview(noise + bytes(1000))])[0] == NONE
    assert encode("zstd", [memoryview(noise + bytes(4000))])[0] == ZSTD


def test_planes_beat_plain_zstd_on_half_floats() -> None:
    value = half_floats(20_000)
    plain, planes = stored_bytes("zstd", value), stored_bytes("zstd-planes", value)
    assert (plain[0], planes[0]) == (ZSTD, ZSTD_PLANES)
    assert len(planes[1]) < len(plain[1])


def test_layout_of_planes_is_the_documented_one() -> None:
    value = b"".join(bytes([i * 37 % 256, 60]) for i in range(1000)) + b"!"
    codec_id, stored = stored_bytes("zstd-planes", value)
    assert codec_id == ZSTD_PLANES
    low_bytes = (len(value) + 1) // 2
    assert stored[-low_bytes:] == value[0::2]
    assert zstandard.ZstdDecompressor().decompress(stored[:-low_bytes]) == value[1::2]


def test_frames_carry_the_size_and_no_checksum() -> None:
    _, stored = stored_bytes("zstd", b"ab" * 5000)
    frame = zstandard.get_frame_parameters(stored)
    assert (frame.content_size, frame.has_checksum, frame.dict_id) == (10_000, False, 0)


# Stored bytes that are not what they should be

VALUE = half_floats(3000)


@pytest.mark.parametrize("name", sorted(CODEC_IDS))
@pytest.mark.parametrize("size", [0, 1, len(VALUE) - 2, len(VALUE) - 1, len(VALUE) + 1, len(VALUE) + 2])
def test_wrong_size_is_refused(name: str, size: int) -> None:
    codec_id, stored = stored_bytes(name, VALUE)
    assert codec_id == CODEC_IDS[name]
    with pytest.raises(CodecError):
        decoded(codec_id, stored, size)


@pytest.mark.parametrize("name", sorted(CODEC_IDS))
def test_cut_or_lengthened_bytes_are_refused_and_targets_left_alone(name: str) -> None:
    codec_id, stored = stored_bytes(name, VALUE)
    frame = zstandard.ZstdCompressor().compress(b"x")
    wrong = [stored[:n] for n in (0, 1, 5, len(stored) // 2, len(stored) - 1)]
    wrong += [stored + b"\0", stored + b"\x28", stored + frame, b"\0" + stored, frame + stored]
    for bad in wrong:
        target = bytearray(b"?" * len(VALUE))
        with pytest.raises(CodecError):
            decode_into(codec_id, memoryview(bad), [memoryview(target)])
        assert target == b"?" * len(VALUE)


@pytest.mark.parametrize("codec_id", [3, 255, -1])
def test_unknown_codecs_are_refused(codec_id: int) -> None:
    with pytest.raises(CodecError, match="unknown codec id"):
        decoded(codec_id, b"abc", 3)
    with pytest.raises(CodecError, match="unknown codec id"):
        codec_name(codec_id)
    with pytest.raises(CodecError, match="unknown codec 'lz4'"):
        encode("lz4", [memoryview(b"abc")])


@pytest.mark.parametrize("name", ["zstd", "zstd-planes"])
def test_into_one_target_nothing_is_allocated(name: str) -> None:
    value = half_floats(3000) * 400
    codec_id, stored = stored_bytes(name, value)
    assert codec_id == CODEC_IDS[name]
    target = memoryview(bytearray(len(value)))
    decode_into(codec_id, memoryview(stored), [target])  # contexts are made once
    tracemalloc.start()
    try:
        decode_into(codec_id, memoryview(stored), [target])
        assert tracemalloc.get_traced_memory()[1] < len(value) // 8
    finally:
        tracemalloc.stop()
    assert target == value


def frame_of(*blocks: tuple[int, bytes], size: int, last: int = -1) -> bytes:
    """A frame of blocks that are not compressed, each with its kind; the one at ``last`` says that it is the last."""
    header = b"\x28\xb5\x2f\xfd" + bytes([0xA0]) + struct.pack("<I", size)  # one segment, its size in 4 bytes
    body = b""
    for number, (kind, content) in enumerate(blocks):
        length = size if kind == 1 else len(content)
        body += (length << 3 | kind << 1 | (number == last % len(blocks))).to_bytes(3, "little") + content
    return header + body


def test_frames_of_other_writers_are_read() -> None:
    for blocks in ([(0, b"abc"), (0, b"defg")], [(0, b"abcdefg"), (0, b"")]):
        assert decoded(ZSTD, frame_of(*blocks, size=7), 7) == b"abcdefg"
    assert decoded(ZSTD, frame_of((1, b"x"), size=7), 7) == b"x" * 7


def test_frames_that_lie_about_their_end_are_refused() -> None:
    checked = zstandard.ZstdCompressor(write_checksum=True).compress(b"ab" * 500)
    for bad, size in [
        (frame_of((0, b"abc"), (0, b"defg"), size=7, last=0), 7),
        (frame_of((0, b"abc"), (0, b"defg"), size=6), 6),
        (frame_of((0, b"abc"), (0, b"defg"), size=8), 8),
        (frame_of((3, b"abcdefg"), size=7), 7),
        (frame_of((0, b"abcdefg"), size=7)[:-8], 7),
        (frame_of((0, b"abcdefg"), size=7)[:-10] + b"\0\0\0", 7),
        (checked, 1000),
    ]:
        with pytest.raises(CodecError):
            decoded(ZSTD, bad, size)


def windowed(frame: bytes, log: int) -> bytes:
    """The frame, which has a window of its own, with one of ``1 << log`` bytes."""
    assert not frame[4] & 0x20, "one segment: its window is its content"
    return frame[:5] + bytes([(log - 10) << 3]) + frame[6:]


def test_a_window_far_beyond_the_content_is_refused() -> None:
    value = half_floats(1000) * 600
    _, frame = stored_bytes("zstd", value)
    assert zstandard.get_frame_parameters(frame).window_size < len(value)
    assert decoded(ZSTD, windowed(frame, 23), len(value)) == value
    for log in (24, 27):
        assert zstandard.get_frame_parameters(windowed(frame, log)).window_size == 1 << log
        with pytest.raises(CodecError, match="window"):
            decoded(ZSTD, windowed(frame, log), len(value))


@pytest.mark.parametrize("block", [(0, b""), (0, b"a"), (1, b"a")])
def test_endless_blocks_are_not_followed(block: tuple[int, bytes]) -> None:
    many = frame_of(*[block] * 100_000, size=1000)
    with pytest.raises(CodecError, match="no end"):
        decoded(ZSTD, many, 1000)


@pytest.mark.parametrize("kind", ["zeros", "noise", "floats", "mixed"])
def test_frames_of_any_size_are_within_the_bounds(kind: str) -> None:
    """What is refused in others' frames, zstd never writes."""
    noise = random.Random(1).randbytes(1 << 20)
    values = {
        "zeros": bytes(1 << 20),
        "noise": noise,
        "floats": half_floats(4000) * 132,
        "mixed": b"".join(noise[i : i + 5000] + bytes(15_000) for i in range(0, 1 << 20, 20_000)),
    }
    compressor = zstandard.ZstdCompressor(level=1)
    for size in [*range(40), *(1 << n for n in range(6, 20)), *((1 << n) + 1 for n in range(6, 20)), 1_000_000]:
        value = values[kind][:size]
        assert decoded(ZSTD, compressor.compress(value), size) == value


def test_a_bomb_is_refused_before_memory_is_taken() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    unsized = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        for bad in (bomb, unsized):
            with pytest.raises(CodecError):
                decoded(ZSTD, bad, 1000)
            with pytest.raises(CodecError):
                decoded(ZSTD_PLANES, bad + bytes(1000), 2000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.sampled_from([NONE, ZSTD, ZSTD_PLANES]), st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_decode_or_raise_codec_error(codec_id: int, stored: bytes, size: int) -> None:
    with contextlib.suppress(CodecError):
        assert len(decoded(codec_id, stored, size)) == size


@given(st.sampled_from(["zstd", "zstd-planes"]), st.integers(0), st.integers(1, 255))
def test_flipped_bytes_decode_or_raise_codec_error(name: str, at: int, flip: int) -> None:
    codec_id, stored = stored_bytes(name, VALUE)
    bad = bytearray(stored)
    bad[at % len(bad)] ^= flip
    with contextlib.suppress(CodecError):
        assert len(decoded(codec_id, bytes(bad), len(VALUE))) == len(VALUE)


def test_threads_get_what_is_theirs() -> None:
    values = [half_floats(20_000, seed) for seed in range(8)]

    def work(value: bytes) -> bool:
        return all(decoded(*stored_bytes(name, value), len(value)) == value for name in CODEC_IDS)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, values * 4))


def test_a_decode_in_the_midst_of_another_on_the_same_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a signal handler, or by what the garbage collector finalizes."""
    outer, inner = (half_floats(1000, seed) * 800 for seed in (1, 2))
    outer_stored, inner_stored = stored_bytes("zstd-planes", outer), stored_bytes("zstd-planes", inner)
    between: list[bytes] = []
    true_merge = planes.merge

    def merge(*args: memoryview) -> None:
        if not between:
            between.append(b"")
            between[0] = decoded(*inner_stored, len(inner))
        true_merge(*args)

    monkeypatch.setattr(planes, "merge", merge)
    assert decoded(*outer_stored, len(outer)) == outer
    assert between == [inner]


def test_only_so_much_is_kept_for_later_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    value = half_floats(3000)
    stored = stored_bytes("zstd-planes", value)
    true_merge, most = planes.merge, codec._SPARES_MAX
    all_there = threading.Barrier(most + 4)

    def merge(*args: memoryview) -> None:
        all_there.wait(60)
        true_merge(*args)

    monkeypatch.setattr(planes, "merge", merge)
    with ThreadPoolExecutor(most + 4) as pool:
        assert set(pool.map(lambda _: decoded(*stored, len(value)), range(most + 4))) == {value}
    assert len(codec._decompressors._spare) == len(codec._pieces._spare) == most


def test_one_after_the_other_uses_the_same_again() -> None:
    value = half_floats(3000)
    for spares in (codec._compressors, codec._decompressors, codec._pieces):
        spares._spare.clear()
    for _ in range(3):
        assert decoded(*stored_bytes("zstd-planes", value), len(value)) == value
    assert [len(s._spare) for s in (codec._compressors, codec._decompressors, codec._pieces)] == [1, 1, 1]
