"""Keys of token prefixes, and finding the longest stored one."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier import BlockInfo, Config, Store
from kvtier_adapters.prefix import Piece, PrefixKeys, first_row, new_pieces, stored_prefixes

ROOT, SECRET, BLOCK = b"r" * 32, b"s" * 32, 4
tokens = st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=21)


def encoded(ids: list[int]) -> bytes:
    return struct.pack(f"<{len(ids)}i", *ids)


def keys_of(ids: list[int], root: bytes = ROOT, secret: bytes = SECRET) -> PrefixKeys:
    return PrefixKeys(root, secret, encoded(ids), BLOCK)


@given(tokens)
def test_keys_are_the_documented_chain(ids: list[int]) -> None:
    keys = keys_of(ids)
    expected = {0: ROOT}
    for p in range(1, len(ids) + 1):
        b = (p - 1) // BLOCK * BLOCK
        expected[p] = blake2b(expected[b] + encoded(ids[b:p]), key=SECRET, digest_size=32).digest()
    assert [keys.at(p) for p in range(len(ids) + 1)] == list(expected.values())


@given(tokens)
def test_keys_inside_a_block_are_the_keys_at_its_positions(ids: list[int]) -> None:
    keys = keys_of(ids)
    for start in range(0, len(ids), BLOCK):
        end = min(len(ids), start + BLOCK)
        assert keys.inside(start, end) == [keys.at(p) for p in range(start + 1, end + 1)]


def test_a_key_depends_on_every_token_before_it_the_root_and_the_secret() -> None:
    ids = list(range(11))
    seen = {keys_of(ids).at(11), keys_of(ids, root=b"q" * 32).at(11), keys_of(ids, secret=b"t" * 32).at(11)}
    for changed in range(11):
        seen.add(keys_of([*ids[:changed], 99, *ids[changed + 1 :]]).at(11))
    assert len(seen) == 3 + 11
    assert keys_of([*ids, 7, 8]).at(11) in seen


def test_a_position_outside_the_sequence_has_no_key() -> None:
    with pytest.raises(IndexError):
        keys_of([1, 2]).at(3)
    with pytest.raises(ValueError, match="block_tokens"):
        PrefixKeys(ROOT, SECRET, b"", 0)


@given(tokens, st.integers(0, 20), st.integers(1, BLOCK))
def test_new_pieces_tile_the_rows_and_stay_inside_blocks(ids: list[int], start: int, most: int) -> None:
    start = min(start, len(ids))
    at = start
    for piece in new_pieces(keys_of(ids), start, len(ids), most):
        assert piece.start == at < piece.end <= at + most
        assert piece.start // BLOCK == (piece.end - 1) // BLOCK
        at = piece.end
    assert at == len(ids)


class Pieces:
    """A store that knows metadata only, and counts how often it is asked, and for how many keys."""

    def __init__(self) -> None:
        self.metas: dict[bytes, bytes] = {}
        self.calls = self.asked = 0

    def info(self, key: bytes, *, namespace: bytes = b"") -> BlockInfo | None:
        return self.info_many([key])[0]

    def info_many(self, keys: Sequence[bytes], *, namespace: bytes = b"") -> list[BlockInfo | None]:
        self.calls += 1
        self.asked += len(keys)
        return [BlockInfo(key, self.metas[key], (1,), "ram") if key in self.metas else None for key in keys]

    def turn(self, ids: list[int]) -> None:
        """Store what a session would: everything after the longest prefix that is there."""
        keys = keys_of(ids)
        found = longest(self, ids)
        for piece in new_pieces(keys, found[-1].end if found else 0, len(ids), BLOCK):
            self.metas[piece.key] = piece.meta


def longest(store: Any, ids: list[int]) -> list[Piece]:
    return next(stored_prefixes(cast(Store, store), keys_of(ids)), [])


conversations = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14), min_size=1, max_size=6)


@given(conversations)
def test_what_turns_stored_is_found_to_the_token(turns: list[list[int]]) -> None:
    store = Pieces()
    for number, turn in enumerate(turns):
        store.turn(turn)
        for stored in turns[: number + 1]:
            assert longest(store, stored)[-1].end == len(stored)
            assert longest(store, [*stored, 2, 2, 2, 2, 2])[-1].end >= len(stored)


@given(conversations, st.data())
def test_a_prefix_is_never_found_across_a_gap(turns: list[list[int]], data: st.DataObject) -> None:
    store = Pieces()
    for turn in turns:
        store.turn(turn)
    for key in data.draw(st.lists(st.sampled_from(sorted(store.metas)), max_size=3)):
        store.metas.pop(key, None)
    for turn in turns:
        for pieces in stored_prefixes(cast(Store, store), keys_of(turn)):
            assert [p.start for p in pieces] == [0, *(p.end for p in pieces[:-1])]
            assert all(store.metas[p.key] == p.meta for p in pieces)


def test_prefixes_come_longest_first_and_without_what_is_unusable() -> None:
    store = Pieces()
    ids = list(range(10))
    for end in (3, 6, 10):
        store.turn(ids[:end])
    found = [p[-1].end for p in stored_prefixes(cast(Store, store), keys_of(ids))]
    assert found == [10, 8, 6, 4, 3]
    gone = keys_of(ids).at(6)
    rest = stored_prefixes(cast(Store, store), keys_of(ids), unusable={gone})
    assert [p[-1].end for p in rest] == [4, 3]


def test_metadata_that_is_not_a_pieces_is_no_piece() -> None:
    piece = Piece(4, 6, b"k")
    assert first_row(piece.meta, 6) == 4
    assert first_row(piece.meta, 7) is None
    assert first_row(b"", 6) is None
    assert first_row(b"x" * len(piece.meta), 6) is None
    store = Pieces()
    store.metas[keys_of([1, 2, 3]).at(3)] = Piece(3, 3, b"").meta  # begins where it ends
    assert longest(store, [1, 2, 3]) == []


def test_keys_are_looked_up_once_and_many_in_one_call() -> None:
    """One a piece, and one a position of the last block."""
    store = Pieces()
    ids = list(range(40 * BLOCK))
    store.turn(ids)
    store.calls = store.asked = 0
    assert longest(store, [*ids, 99, 99, 99])[-1].end == len(ids)
    assert (store.asked, store.calls) == (40 + 3, 2 + 1)


@given(tokens, st.integers(0, 20))
def test_keys_known_from_pieces_are_not_computed_again(ids: list[int], end: int) -> None:
    end = min(end, len(ids))
    whole = keys_of(ids)
    known = list(new_pieces(whole, 0, end, 3))
    keys = PrefixKeys(ROOT, SECRET, encoded(ids), BLOCK, known)
    assert len(keys._boundaries) == 1 + end // BLOCK
    assert [keys.at(position) for position in range(len(ids) + 1)] == [whole.at(p) for p in range(len(ids) + 1)]


def test_prefixes_of_the_real_store() -> None:
    with Store.open(Config.from_dict({"ram": {"bytes_max": "1MiB"}})) as store:
        ids = list(range(10))
        for piece in new_pieces(keys_of(ids), 0, 10, BLOCK):
            store.put(piece.key, b"rows", meta=piece.meta, namespace=b"me")
        assert next(stored_prefixes(store, keys_of(ids), namespace=b"me"))[-1].end == 10
        assert next(stored_prefixes(store, keys_of(ids)), None) is None
