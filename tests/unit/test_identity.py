"""Identity files, and the ids derived from a store's secret."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvtier.errors import CorruptStore, NotAStore, UnsupportedFormat
from kvtier.fs import OsFileSystem
from kvtier.identity import Identity, check_tier, dump_identity, dump_tier, load_identity

FS = OsFileSystem()
SECRET = Identity(bytes(16), bytes(range(32)), "engine", ("a", "b"))
names = st.tuples(st.binary(max_size=64), st.binary(min_size=1, max_size=128))


def load(tmp_path: Path, raw: bytes) -> Identity:
    (tmp_path / "STORE").write_bytes(raw)
    return load_identity(FS, str(tmp_path / "STORE"), "engine")


def resealed(raw: bytes, **changes: object) -> bytes:
    """The same file with other fields and a checksum that fits."""
    fields = {**json.loads(raw), **changes}
    del fields["sum"]
    fields = {k: v for k, v in fields.items() if v is not None}
    body = json.dumps(fields, sort_keys=True)
    return json.dumps({**fields, "sum": xxhash.xxh3_64_hexdigest(body.encode())}).encode()


def test_an_identity_comes_back(tmp_path: Path) -> None:
    for identity in (SECRET, Identity.new("engine")):
        assert load(tmp_path, dump_identity(identity)) == identity


def test_every_store_is_another() -> None:
    a, b = Identity.new("e"), Identity.new("e")
    assert a.store_id != b.store_id
    assert a.secret != b.secret
    assert (len(a.store_id), len(a.secret)) == (16, 32)


def test_tiers_only_grow_and_keep_their_numbers() -> None:
    grown = SECRET.written_to(["b", "c"]).written_to(["c", "a"])
    assert grown.tiers == ("a", "b", "c")
    assert [grown.tier_no(n) for n in "abc"] == [0, 1, 2]


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    raw = dump_identity(SECRET)
    for i in range(len(raw)):
        bad = bytearray(raw)
        bad[i] ^= 1
        try:
            assert load(tmp_path, bytes(bad)) == SECRET  # white space only
            assert raw[i : i + 1].isspace()
        except (CorruptStore, NotAStore, UnsupportedFormat):
            continue


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"kvtier": "tier"}, NotAStore),
        ({"format": 5}, UnsupportedFormat),
        ({"format": 1_000_000}, UnsupportedFormat),
        ({"engine": "lmdb-1.0"}, UnsupportedFormat),
        ({"secret": "xyz"}, CorruptStore),
        ({"store_id": None}, CorruptStore),
        ({"tiers": 3}, CorruptStore),
    ],
)
def test_wrong_fields_are_refused_by_name(tmp_path: Path, changes: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match="STORE"):
        load(tmp_path, resealed(dump_identity(SECRET), **changes))


def test_a_newer_format_is_told_from_damage(tmp_path: Path) -> None:
    """Its checksum may be made in a way that this version does not know."""
    raw = dump_identity(SECRET).replace(b'"format": 3', b'"format": 7')
    with pytest.raises(UnsupportedFormat, match="format 7 is newer than 4"):
        load(tmp_path, raw)


@pytest.mark.parametrize("sealed", [None, bytes(10)])
@pytest.mark.parametrize("has_padding", [True, False])
def test_a_store_of_an_older_format_is_known_as_such_until_it_is_written_to(
    tmp_path: Path, sealed: bytes | None, has_padding: bool
) -> None:
    secret = SECRET.secret if sealed is None else b""
    identity = replace(SECRET, secret=secret, sealed_secret=sealed, has_padding=has_padding)
    raw = dump_identity(identity)
    assert json.loads(raw)["format"] == 1 + 2 * has_padding + (sealed is not None)
    assert load(tmp_path, raw) == identity
    assert identity.written_to([]).has_padding


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 50_000, b"null", b"[]", b'{"a": 1}'])
def test_what_is_no_identity_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises((CorruptStore, NotAStore)):
        load(tmp_path, raw)


def test_a_tier_file_is_of_one_tier_of_one_store(tmp_path: Path) -> None:
    path = str(tmp_path / "TIER")
    (tmp_path / "TIER").write_bytes(dump_tier(bytes(16), "nvme", 3))
    check_tier(FS, path, bytes(16), "nvme", 3)
    for wrong in ((bytes(15) + b"x", "nvme", 3), (bytes(16), "hdd", 3), (bytes(16), "nvme", 2)):
        with pytest.raises(NotAStore, match="belongs to tier 'nvme'"):
            check_tier(FS, path, *wrong)


# -- derived ids -------------------------------------------------------------------------------------


@given(names, names)
def test_two_names_get_two_ids(a: tuple[bytes, bytes], b: tuple[bytes, bytes]) -> None:
    ids = {SECRET.block_id(*a), SECRET.block_id(*b)}
    assert len(ids) == len({a, b})
    assert all(0 < i < 2**64 for i in ids)


def test_a_name_cut_elsewhere_is_another_name() -> None:
    assert SECRET.block_id(b"a", b"bc") != SECRET.block_id(b"ab", b"c") != SECRET.block_id(b"", b"abc")


def test_ids_depend_on_the_secret() -> None:
    other = Identity(SECRET.store_id, bytes(32), "engine")
    assert other.block_id(b"", b"k") != SECRET.block_id(b"", b"k")
    assert other.derive_key(b"p") != SECRET.derive_key(b"p")
    assert other.content_hasher(b"").update(b"x").digest() != SECRET.content_hasher(b"").update(b"x").digest()


def test_contents_are_apart_by_namespace_and_from_other_purposes() -> None:
    digests = {SECRET.content_hasher(n).update(b"x").digest() for n in (b"", b"a", b"b")}
    assert len(digests) == 3
    assert len({SECRET.derive_key(p) for p in (b"", b"content:", b"content:a", b"user:")}) == 4


def test_derived_ids_never_change() -> None:
    """Stores on disk depend on them."""
    assert SECRET.block_id(b"ns", b"key") == 0xD77E11A1457F2140
    assert SECRET.content_hasher(b"ns").update(b"value").digest(length=16).hex() == "c2aa3df4f9ad49631f6d58668f8d68d4"
    assert SECRET.derive_key(b"p").hex() == "07bc4a0c04428015130f1ea0af923392e94c06f098d03a65601090f6a82679ab"
