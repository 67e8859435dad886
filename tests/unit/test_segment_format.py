"""Segment and record bytes: round trips, and refusal of anything else."""

from __future__ import annotations

import dataclasses

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvtier.segment.format import (
    ALIGNED_BYTES_MIN,
    HEAD_BYTES_MAX,
    PAGE,
    RECORD_ALIGN,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    STATE_OFFSET,
    FormatError,
    Place,
    RecordHead,
    RecordKind,
    RecordState,
    align_up,
    check_payload,
    check_segment_header,
    head_bytes,
    identity_of,
    pack_head,
    pack_segment_header,
    payload_sum,
    unpack_head,
)

STORE = bytes(range(16))
PLACE = Place(STORE, 3, 7, 4096)
UINT64 = st.integers(0, 2**64 - 1)

heads = st.builds(
    RecordHead,
    kind=st.sampled_from(RecordKind),
    codec=st.integers(0, 255),
    seq=UINT64,
    parent_id=UINT64,
    namespace=st.binary(max_size=64),
    key=st.binary(max_size=128),
    meta=st.binary(max_size=1024),
    lengths=st.lists(st.integers(0, 2**32), max_size=64).map(tuple),
    content_id=st.binary(min_size=16, max_size=16),
    stored_len=st.integers(0, 2**39),
    payload_sum=st.binary(min_size=16, max_size=16),
    state=st.sampled_from(RecordState),
    expires_at=st.integers(0, 2**16 - 1).map(lambda day: day * 86_400),
    padding=st.one_of(st.just(0), st.integers(0, PAGE - 1)),
)
places = st.builds(Place, st.binary(min_size=16, max_size=16), st.integers(0, 255), UINT64, UINT64)

HEAD = RecordHead(
    kind=RecordKind.BLOCK,
    codec=0,
    seq=9,
    parent_id=5,
    namespace=b"ns",
    key=b"key",
    meta=b"meta",
    lengths=(2, 3),
    content_id=bytes(16),
    stored_len=5,
    payload_sum=payload_sum([b"hello"]),
)


@given(heads, places, st.binary(max_size=100))
def test_a_head_comes_back_whole(head: RecordHead, place: Place, behind: bytes) -> None:
    raw = pack_head(head, place)
    assert len(raw) == head.head_len <= HEAD_BYTES_MAX
    assert unpack_head(raw + behind, place) == head
    assert unpack_head(memoryview(raw + behind), place) == head


@given(heads)
def test_a_record_is_as_long_as_its_parts_and_aligned(head: RecordHead) -> None:
    assert head.record_len % RECORD_ALIGN == 0
    assert 0 <= head.record_len - head.head_len - head.stored_len < RECORD_ALIGN
    assert head.raw_len == sum(head.lengths)


@given(heads, st.integers(0, 2**30).map(lambda n: n * RECORD_ALIGN))
def test_a_long_payload_starts_where_a_page_does_wherever_its_record_stands(head: RecordHead, offset: int) -> None:
    there = head.at(offset)
    assert dataclasses.replace(there, padding=head.padding) == head
    assert there.at(offset) == there
    if head.stored_len >= ALIGNED_BYTES_MIN:
        assert (offset + there.head_len) % PAGE == 0
        assert 0 <= there.padding < PAGE
    else:
        assert there.padding == 0
    assert there.record_len <= dataclasses.replace(head, padding=0).record_len_max


def test_padding_is_zeros() -> None:
    padded = dataclasses.replace(HEAD, padding=1000)
    raw = bytearray(pack_head(padded, PLACE))
    assert raw.endswith(bytes(1000))
    assert unpack_head(raw, PLACE) == padded
    raw[-1] = 1
    fixed, variable = bytes(raw[:88]), bytes(raw[RECORD_HEADER_BYTES:])
    summed = PLACE.seed() + fixed[:STATE_OFFSET] + b"\0" + fixed[STATE_OFFSET + 1 :] + variable
    raw[88:RECORD_HEADER_BYTES] = xxhash.xxh3_64_intdigest(summed).to_bytes(8, "little")
    with pytest.raises(FormatError, match="lengths"):
        unpack_head(raw, PLACE)


@pytest.mark.parametrize("more", [-1, 0, PAGE - 1, PAGE])
def test_a_head_is_as_long_as_it_says_but_for_a_page(more: int) -> None:
    """``variable_len`` alone says how much padding there is."""
    raw = bytearray(pack_head(HEAD, PLACE) + bytes(2 * PAGE))
    variable_len = HEAD.variable_len + more
    raw[48:50] = variable_len.to_bytes(2, "little")
    raw[16:24] = align_up(RECORD_HEADER_BYTES + variable_len + HEAD.stored_len).to_bytes(8, "little")
    end = RECORD_HEADER_BYTES + variable_len
    summed = PLACE.seed() + raw[:STATE_OFFSET] + b"\0" + raw[STATE_OFFSET + 1 : 88] + raw[RECORD_HEADER_BYTES:end]
    raw[88:RECORD_HEADER_BYTES] = xxhash.xxh3_64_intdigest(bytes(summed)).to_bytes(8, "little")
    assert head_bytes(raw) == end
    if 0 <= more < PAGE:
        assert unpack_head(raw, PLACE) == dataclasses.replace(HEAD, padding=more)
    else:
        with pytest.raises(FormatError, match="lengths"):
            unpack_head(raw, PLACE)


def test_any_flipped_bit_is_noticed_but_in_the_state() -> None:
    raw = pack_head(HEAD, PLACE)
    for bit in range(8 * len(raw)):
        bad = bytearray(raw)
        bad[bit // 8] ^= 1 << bit % 8
        if bit // 8 == STATE_OFFSET and bad[STATE_OFFSET] in list(RecordState):
            continue
        with pytest.raises(FormatError):
            unpack_head(bad, PLACE)


def test_the_state_changes_in_place() -> None:
    raw = bytearray(pack_head(HEAD, PLACE))
    for state in RecordState:
        raw[STATE_OFFSET] = state
        assert unpack_head(raw, PLACE) == dataclasses.replace(HEAD, state=state)


@pytest.mark.parametrize("other", [{"store_id": bytes(16)}, {"tier_no": 4}, {"segment_no": 8}, {"offset": 4160}])
def test_a_record_that_stands_elsewhere_is_not_believed(other: dict[str, object]) -> None:
    with pytest.raises(FormatError, match="checksum"):
        unpack_head(pack_head(HEAD, PLACE), PLACE._replace(**other))  # type: ignore[arg-type]


def test_a_head_that_is_cut_short_is_refused() -> None:
    raw = pack_head(HEAD, PLACE)
    for n in range(len(raw)):
        with pytest.raises(FormatError):
            unpack_head(raw[:n], PLACE)


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        unpack_head(b"KVR1" + raw, PLACE)


@given(st.data())
def test_lengths_that_lie_are_refused_though_the_checksum_is_right(data: st.DataObject) -> None:
    """A head made by a program with a bug: sums fit, lengths do not."""
    import xxhash

    raw = bytearray(pack_head(HEAD, PLACE))
    at, size = data.draw(st.sampled_from([(16, 8), (32, 8), (48, 2), (50, 1), (51, 1), (52, 2), (54, 1)]))
    old = bytes(raw[at : at + size])
    new = data.draw(st.binary(min_size=size, max_size=size).filter(lambda b: b != old))
    raw[at : at + size] = new
    head_sum = RECORD_HEADER_BYTES - 8
    summed = PLACE.seed() + raw[:STATE_OFFSET] + b"\0" + raw[STATE_OFFSET + 1 : head_sum] + raw[RECORD_HEADER_BYTES:]
    raw[head_sum:RECORD_HEADER_BYTES] = xxhash.xxh3_64_intdigest(bytes(summed)).to_bytes(8, "little")
    with pytest.raises(FormatError):
        unpack_head(raw, PLACE)


def test_a_payload_is_checked_however_it_is_cut() -> None:
    check_payload(HEAD, [b"hel", memoryview(b"lo"), b""])
    for wrong in ([b"hellp"], [b"hell"], [b"helloo"], []):
        with pytest.raises(FormatError, match="payload"):
            check_payload(HEAD, wrong)


def test_a_segment_header_is_of_one_segment_only() -> None:
    raw = pack_segment_header(STORE, 3, 7)
    assert len(raw) == SEGMENT_HEADER_BYTES == 64
    check_segment_header(raw, STORE, 3, 7)
    for args in ((bytes(16), 3, 7), (STORE, 4, 7), (STORE, 3, 8)):
        with pytest.raises(FormatError):
            check_segment_header(raw, *args)
    for i in range(len(raw)):
        bad = bytearray(raw)
        bad[i] ^= 1
        with pytest.raises(FormatError):
            check_segment_header(bad, STORE, 3, 7)
    with pytest.raises(FormatError):
        check_segment_header(raw[:-1], STORE, 3, 7)


def test_align_up() -> None:
    assert [align_up(n) for n in (0, 1, 63, 64, 65)] == [0, 64, 64, 64, 128]
    assert align_up(4097, 4096) == 8192


@pytest.mark.parametrize(
    ("expires_at", "day"), [(0, 0), (1, 1), (86_400, 1), (86_401, 2), (2**32 - 1, 49_711), (2**40, 2**16 - 1)]
)
def test_a_record_knows_the_day_rounded_up(expires_at: int, day: int) -> None:
    head = dataclasses.replace(HEAD, expires_at=expires_at)
    place = Place(bytes(16), 0, 1, 64)
    assert unpack_head(pack_head(head, place), place).expires_at == day * 86_400
    assert identity_of(head, place) == identity_of(HEAD, place)  # an older kvtier decrypts it too
