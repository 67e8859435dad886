"""A blob is cut where its content says so: what two blobs share, they share as chunks."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llama_cpp")

from kvtier_adapters.llama_cpp.snapshots import CHUNK_MAX, CHUNK_MIN, Snapshot, chunk_key, cut, read_meta, snapshot_key

SECRET = bytes(32)

seeds = st.integers(0, 2**32)
sizes = st.one_of(
    st.integers(0, 64),
    st.integers(0, 3 * CHUNK_MAX),
    st.sampled_from([CHUNK_MIN - 1, CHUNK_MIN, CHUNK_MIN + 1, CHUNK_MAX, CHUNK_MAX + CHUNK_MIN, 2 * CHUNK_MAX + 1]),
)
#: Noise, and noise with runs of one byte, as the rows of a cache that was not filled.
blobs = st.builds(lambda seed, size: random.Random(seed).randbytes(size), seeds, sizes)
runs = st.builds(lambda a, size, byte, b: a + bytes([byte]) * size + b, blobs, sizes, st.integers(0, 255), blobs)


def chunks_of(blob: bytes) -> list[bytes]:
    return [bytes(chunk) for chunk in cut(memoryview(blob))]


@settings(max_examples=60)
@given(st.one_of(blobs, runs))
def test_chunks_join_to_the_blob_and_their_sizes_are_bounded(blob: bytes) -> None:
    chunks = chunks_of(blob)
    assert b"".join(chunks) == blob
    assert all(CHUNK_MIN <= len(chunk) <= CHUNK_MAX for chunk in chunks[:-1])
    assert 0 <= len(chunks[-1]) <= CHUNK_MAX
    assert len(chunks) == 1 or chunks[-1], "no empty chunk behind others"
    assert chunks_of(blob) == chunks


@pytest.mark.parametrize("size", [0, 1, CHUNK_MIN, CHUNK_MAX, 5 * CHUNK_MAX, 5 * CHUNK_MAX + 3])
def test_a_blob_of_zeros_is_cut_too(size: int) -> None:
    chunks = chunks_of(bytes(size))
    assert sum(map(len, chunks)) == size
    assert max(map(len, chunks)) <= CHUNK_MAX
    assert len(set(chunks)) <= 2, "but for the last, it is one chunk over and over"


@settings(max_examples=20)
@given(seeds, st.integers(1, 64), st.integers(0, 16))
def test_an_insertion_at_the_front_changes_few_chunks(seed: int, words: int, place: int) -> None:
    blob = random.Random(seed).randbytes(8 << 20)
    inserted = blob[: 4 * place] + random.Random(words).randbytes(4 * words) + blob[4 * place :]
    before, after = chunks_of(blob), chunks_of(inserted)
    new = set(after) - set(before)
    assert sum(map(len, new)) <= 3 * CHUNK_MAX
    assert len(new) < len(after) // 2
    assert after[-1] == before[-1]


@settings(max_examples=20)
@given(seeds, st.integers(0, (8 << 20) - 1))
def test_a_changed_byte_changes_the_chunks_around_it(seed: int, at: int) -> None:
    blob = random.Random(seed).randbytes(8 << 20)
    changed = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
    before, after = set(chunks_of(blob)), set(chunks_of(changed))
    assert len(after - before) >= 1
    assert sum(map(len, after - before)) <= 3 * CHUNK_MAX


@given(st.integers(1, 2**31), st.integers(1, 1 << 24), st.integers(0, 2**40), st.data())
def test_metadata_of_the_first_chunk_tells_of_the_snapshot(
    end: int, chunks: int, nbytes: int, data: st.DataObject
) -> None:
    key = snapshot_key(b"position", SECRET)
    snapshot = Snapshot(key, end, chunks, nbytes, content=bytes(range(16)))
    meta = snapshot.meta(0)
    assert read_meta(key, end, meta) == snapshot
    assert read_meta(key, end + 1, meta) is None, "a snapshot as of another position"
    assert read_meta(key, end, snapshot.meta(1)) is None, "another chunk than the first"
    assert read_meta(key, end, meta[: data.draw(st.integers(0, len(meta) - 1))]) is None


def test_each_chunk_has_a_key_of_its_own() -> None:
    keys = [
        key
        for position in (b"a", b"b")
        for key in Snapshot(snapshot_key(position, SECRET), 1, 300, 1, bytes(16)).keys(SECRET)
    ]
    assert len(set(keys)) == 600
    assert keys[0] == chunk_key(snapshot_key(b"a", SECRET), 0, SECRET)
