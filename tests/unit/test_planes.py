"""Byte planes: the same bytes with NumPy and without it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier import planes
from kvtier.codec import decode_into, encode


@pytest.fixture(params=["numpy", "slices"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "slices":
        monkeypatch.setattr(planes, "_numpy", lambda: None)
    else:
        pytest.importorskip("numpy")
    return str(request.param)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 1001])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_value_is_split_at_odd_and_even_offsets(how: str, kind: type, size: int) -> None:
    value = bytes(i * 37 % 256 for i in range(size))
    high, low = planes.split(kind(value))
    assert (bytes(high), bytes(low)) == (value[1::2], value[0::2])


@pytest.mark.parametrize("at", [0, 1, 2, 3])
@given(numbers=st.lists(st.integers(0, 65535), max_size=300))
def test_planes_are_merged_wherever_they_lie(at: int, numbers: list[int]) -> None:
    value = b"".join(n.to_bytes(2, "little") for n in numbers)
    for numpy in (planes._numpy(), None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(planes, "_numpy", lambda numpy=numpy: numpy)
            memory = bytearray(b"?" * (at + len(value) + 1))
            high, low = (memoryview(b"??" + plane)[2:] for plane in (value[1::2], value[0::2]))
            planes.merge(high, low, memoryview(memory)[at : at + len(value)])
            assert bytes(memory) == b"?" * at + value + b"?"


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, (2 << 20) - 2, (2 << 20) + 3])
def test_a_value_of_several_pieces_comes_back(how: str, size: int) -> None:
    value = (bytes([1, 60, 2, 61, 3, 60]) * (size // 6 + 1))[:size]
    codec_id, stored = encode("zstd-planes", [memoryview(value)])
    target = bytearray(size)
    decode_into(codec_id, memoryview(b"".join(stored)), [memoryview(target)])
    assert target == value
