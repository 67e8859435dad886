"""Encryption at rest: what is on disk without the key, and what becomes of blocks when keys change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvtier import (
    FlushError,
    Hit,
    HitInto,
    Key,
    Miss,
    MissReason,
    Store,
    UnsupportedFormat,
    WrongKeys,
    key_file,
    single_key,
)
from kvtier.fs import default_file_system
from kvtier.identity import load_identity
from kvtier.index.lmdb_index import ENGINE
from kvtier.segment.format import Place, RecordHead, identity_of, pack_head, payload_sum, unpack_head
from kvtier.tiers.ram import RamBlock
from kvtier.tiers.reading import Located
from tests import stores
from tests.stores import MIB, config, disk_tier, noise, only_segment, settle, tier, value_of

pytest.importorskip("cryptography")

SECRET = bytes(range(32))
VALUE = [noise("a", 5000), b"", noise("b", 70_000)]
BYTES = b"".join(VALUE)


class Safe:
    """Keys by namespace, which can be added and dropped."""

    def __init__(self, *namespaces: bytes) -> None:
        self.keys: dict[bytes | None, dict[str, bytes]] = {}
        for namespace in (None, b"", *namespaces):
            self.add(namespace, "first")

    def add(self, namespace: bytes | None, key_id: str) -> None:
        self.keys.setdefault(namespace, {})[key_id] = os.urandom(32)

    def drop(self, namespace: bytes | None, key_id: str) -> None:
        del self.keys[namespace][key_id]

    def __call__(self, namespace: bytes | None, key_id: str | None) -> Key:
        mine = self.keys[namespace]
        chosen = key_id or next(reversed(mine))
        return Key(chosen, mine[chosen])


def opened(folder: Path, keys: Any, **options: Any) -> Store:
    return Store.open(config(folder), keys=keys, **options)


def counters(store: Store) -> dict[str, int]:
    counted: dict[str, int] = store.stats().as_dict()["counters"]
    return counted


def files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


# -- there and back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "zstd", "zstd-planes"])
def test_values_come_back(tmp_path: Path, codec: str) -> None:
    made = config(tmp_path, tier(codec=codec))
    values = {b"a": VALUE, b"b": [b"compressible" * 9000], b"c": [b"x"], b"empty": [b""]}
    with Store.open(made, keys=single_key(SECRET)) as store:
        for key, value in values.items():
            store.put(key, value, meta=b"meta of " + key, namespace=b"ns")
    with Store.open(made, keys=single_key(SECRET)) as store:
        for key, value in values.items():
            hit = store.get(key, namespace=b"ns")
            assert isinstance(hit, Hit)
            assert (hit.key, hit.meta, [bytes(b) for b in hit.buffers]) == (key, b"meta of " + key, value)
            info = store.info(key, namespace=b"ns")
            assert info is not None
            assert (info.key, info.meta, info.lengths) == (key, b"meta of " + key, tuple(map(len, value)))
        assert [value_of(h) for h in store.get_many(values, namespace=b"ns", keep=False)] == [
            b"".join(v) for v in values.values()
        ]
        assert store.match(list(values), namespace=b"ns") == 4
    with Store.open(made, keys=single_key(SECRET), read_only=True) as store:
        for key, value in values.items():
            into = [bytearray(len(part)) for part in value]
            got = store.get_into(key, into, namespace=b"ns")
            assert isinstance(got, HitInto)
            assert (got.meta, [bytes(part) for part in into]) == (b"meta of " + key, value)


def test_values_come_back_from_a_rebuilt_index(tmp_path: Path) -> None:
    with opened(tmp_path, single_key(SECRET)) as store:
        store.put(b"k", VALUE, meta=b"m", namespace=b"ns")
        store.put(b"same", VALUE, meta=b"other", namespace=b"ns")
    (tmp_path / "store" / "index" / "data.mdb").unlink()
    with opened(tmp_path, single_key(SECRET)) as store:
        for key, meta in ((b"k", b"m"), (b"same", b"other")):
            hit = store.get(key, namespace=b"ns")
            assert value_of(hit) == BYTES
            assert isinstance(hit, Hit)
            assert hit.meta == meta


def test_values_come_back_from_the_tier_below_and_above(tmp_path: Path) -> None:
    made = config(tmp_path, tier("ssd", bytes_max=2 * MIB, codec="zstd"), tier("hdd", kind="hdd"))
    with Store.open(made, keys=single_key(SECRET), background=False) as store:
        values = stores.fill(store, stores.names(40), 100_000)
        below = [k for k in values if (i := store.info(k)) and i.tier == "hdd"]
        for key in below[:3]:
            assert value_of(store.get(key)) == values[key]
        settle(store)
        assert counters(store)["promotions"] > 0
        for key in values:
            assert value_of(store.get(key)) == values[key]


# -- what is on disk ---------------------------------------------------------------------------------


def test_nothing_that_was_put_is_on_disk(tmp_path: Path) -> None:
    marks = [b"a value that can be found", b"a key that can be found", b"metadata that can be found"]

    def found(keys: Any) -> set[bytes]:
        folder = tmp_path / ("plain" if keys is None else "encrypted")
        with opened(folder, keys) as store:
            store.put(marks[1], marks[0] * 100, meta=marks[2])
            secret = store._identity.secret
            store.flush()
            return {m for m in (*marks, secret.hex().encode()) for _, content in files(folder) if m in content}

    assert len(found(None)) == 4, "the marks are such as can be found"
    assert found(single_key(SECRET)) == set()


def test_what_is_on_disk_derives_no_name(tmp_path: Path) -> None:
    """Names, content ids and the keys of ``derive_key`` hang on a secret that is not in the folder."""
    with opened(tmp_path, single_key(SECRET)) as store:
        store.put(b"k", b"v")
        derived = store.derive_key(b"prefix")
    found = load_identity(default_file_system(), str(tmp_path / "store" / "STORE"), ENGINE)
    assert found.secret == b""
    assert found.derive_key(b"prefix") != derived
    with opened(tmp_path, single_key(SECRET)) as store:
        assert store.derive_key(b"prefix") == derived


def test_content_ids_hang_on_the_key_of_the_namespace(tmp_path: Path) -> None:
    with opened(tmp_path, Safe(b"one", b"two")) as store:
        for namespace in (b"one", b"two"):
            store.put(b"a", VALUE, namespace=namespace)
            store.put(b"b", VALUE, meta=b"of b", namespace=namespace)
        store.flush()
        assert (counters(store)["blocks_written"], store.stats().dedup.blocks) == (2, 2)
        for namespace in (b"one", b"two"):
            for key in (b"a", b"b"):
                assert value_of(store.get(key, namespace=namespace)) == BYTES


def test_no_nonce_is_used_twice_after_a_crash(tmp_path: Path) -> None:
    """The power takes a record, and another one is written to the same place: under another key stream."""
    with opened(tmp_path / "before", single_key(SECRET)) as store:
        store.put(b"first", b"first")
    start = only_segment(tmp_path / "before").stat().st_size
    streams = set()
    for life in ("one", "two", "three"):
        shutil.copytree(tmp_path / "before", tmp_path / life)
        with opened(tmp_path / life, single_key(SECRET)) as store:
            store.put(b"again", bytes(4096))
            store.flush()
            head, place, _ = record_of(store, b"again")
            assert place.offset == start
            streams.add(stored_payload(store, head, place)[-16 - 4096 : -16])  # of zeros: the key stream itself
    assert len(streams) == 3


def test_no_nonce_is_used_twice_by_one_writer(tmp_path: Path) -> None:
    """An append is broken off before anything is written, and made again at the same offset."""
    with opened(tmp_path, single_key(SECRET)) as store:
        store.put(b"k", bytes(4096))
        store.flush()
        head, place, _ = record_of(store, b"k")
        encrypt = store._vault.encryptor()
        once, again = (bytes(encrypt(head, place, [memoryview(bytes(4096))])[0]) for _ in range(2))
        assert once[56:] != again[56:]


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    with opened(tmp_path, single_key(SECRET)) as store:
        assert repr(store._identity.secret) not in repr(store._identity)
    assert repr(SECRET) not in repr(Key("k", SECRET))


# -- keys that are not the right ones ----------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("keys", [None, single_key(bytes(32)), single_key(SECRET, "other")])
def test_without_the_right_key_it_does_not_open(tmp_path: Path, keys: Any, read_only: bool) -> None:
    with opened(tmp_path, single_key(SECRET)) as store:
        store.put(b"k", b"v")
    before = dict(files(tmp_path))
    with pytest.raises(WrongKeys):
        opened(tmp_path, keys, read_only=read_only)
    assert dict(files(tmp_path)) == before
    with opened(tmp_path, single_key(SECRET)) as store:
        assert store.get(b"k")


def test_a_plain_store_is_not_opened_with_keys(tmp_path: Path) -> None:
    with opened(tmp_path, None) as store:
        store.put(b"k", b"v")
    with pytest.raises(WrongKeys, match="made without encryption"):
        opened(tmp_path, single_key(SECRET))


def test_an_older_reader_says_that_the_format_is_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path, single_key(SECRET)).close()
    monkeypatch.setattr("kvtier.identity.NEWEST_FORMATS", {"store": 3, "tier": 1})
    with pytest.raises(UnsupportedFormat):
        opened(tmp_path, single_key(SECRET))


@pytest.mark.parametrize("key", [("", SECRET), ("x" * 33, SECRET), ("ü", SECRET), ("k", b"short"), ("k", "text")])
def test_what_is_no_key_is_refused(tmp_path: Path, key: Any) -> None:
    with pytest.raises(WrongKeys):
        opened(tmp_path, lambda namespace, key_id: Key(*key))


def test_a_single_key_has_its_length() -> None:
    with pytest.raises(ValueError, match="5 bytes"):
        single_key(b"short")


@pytest.mark.parametrize("content", [SECRET, SECRET.hex().encode(), SECRET.hex().encode() + b"\r\n"])
def test_a_key_from_a_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    file.chmod(0o600)
    assert key_file(file)(b"ns", None) == single_key(SECRET)(b"ns", None)


@pytest.mark.parametrize(
    "content", [b"", b"short", SECRET[1:], SECRET + b"\n", SECRET.hex().encode() + b"00", b"x" * 64]
)
def test_a_file_that_holds_no_key(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(WrongKeys, match="neither 32 bytes nor 64"):
        key_file(file)


@pytest.mark.skipif(os.name != "posix", reason="files have no such modes here")
def test_a_key_file_that_others_may_read(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(SECRET)
    file.chmod(0o640)
    with pytest.raises(WrongKeys, match="chmod 600"):
        key_file(file)


def test_a_namespace_without_a_key_is_refused_at_put_and_missed_at_get(tmp_path: Path) -> None:
    with opened(tmp_path, Safe(b"known")) as store:
        with pytest.raises(WrongKeys):
            store.put(b"k", b"v", namespace=b"unknown")
        assert store.get(b"k", namespace=b"unknown") == Miss(b"k", MissReason.ABSENT)
        store.put(b"k", b"v", namespace=b"known")
        store.flush()
        assert store.get(b"k", namespace=b"known")


def test_a_key_that_goes_between_put_and_write_costs_its_own_blocks_only(tmp_path: Path) -> None:
    safe = Safe(b"one", b"two")
    with opened(tmp_path, safe, background=False) as store:
        for namespace in (b"one", b"two"):
            store.put(b"k", VALUE, namespace=namespace)
        safe.drop(b"one", "first")
        store._vault.forget_keys()
        with pytest.raises(Exception, match="1 blocks did not become durable"):
            store.flush()
        assert value_of(store.get(b"k", namespace=b"two")) == BYTES
        assert not store.get(b"k", namespace=b"one")


def test_a_namespace_is_erased_by_dropping_its_key(tmp_path: Path) -> None:
    safe = Safe(b"one", b"two")
    with Store.open(config(tmp_path, ram=MIB), keys=safe) as store:
        for namespace in (b"one", b"two"):
            store.put(b"k", VALUE, namespace=namespace)
        store.flush()
        safe.drop(b"one", "first")
        assert store.get(b"k", namespace=b"one"), "until the store is told"
        store.forget_keys()
        for _ in range(2):
            assert store.get(b"k", namespace=b"one") == Miss(b"k", MissReason.UNAVAILABLE)
        assert list(store.get_many([b"k"], namespace=b"one")) == [Miss(b"k", MissReason.UNAVAILABLE)]
        assert not store.get_into(b"k", [bytearray(len(b)) for b in VALUE], namespace=b"one")
        assert store.info(b"k", namespace=b"one") is None
        assert value_of(store.get(b"k", namespace=b"two")) == BYTES
        assert (counters(store)["key_missing"], counters(store).get("quarantined", 0)) == (4, 0)
        safe.add(b"one", "second")
        store.forget_keys()
        store.put(b"k", VALUE, namespace=b"one")
        store.flush()
        store.forget_keys()
        assert value_of(store.get(b"k", namespace=b"one")) == BYTES, "written anew, not taken for there"


def test_another_key_under_the_same_id_is_a_miss_and_no_damage(tmp_path: Path) -> None:
    safe = Safe(b"ns")
    with opened(tmp_path, safe) as store:
        store.put(b"k", VALUE, namespace=b"ns")
    right = safe.keys[b"ns"]["first"]
    safe.keys[b"ns"]["first"] = os.urandom(32)
    with opened(tmp_path, safe) as store:
        assert store.get(b"k", namespace=b"ns") == Miss(b"k", MissReason.UNAVAILABLE)
    safe.keys[b"ns"]["first"] = right
    with opened(tmp_path, safe) as store:
        assert value_of(store.get(b"k", namespace=b"ns")) == BYTES


def test_a_provider_that_fails_costs_misses_only(tmp_path: Path) -> None:
    safe = Safe(b"ns")
    with opened(tmp_path, safe) as store:
        store.put(b"k", VALUE, namespace=b"ns")
        store.flush()
        kept, safe.keys = safe.keys, None  # type: ignore[assignment]
        store.forget_keys()
        assert store.get(b"k", namespace=b"ns") == Miss(b"k", MissReason.UNAVAILABLE)
        safe.keys = kept
        assert value_of(store.get(b"k", namespace=b"ns")) == BYTES


# -- rotation ----------------------------------------------------------------------------------------


def test_after_a_rotation_older_keys_are_not_needed(tmp_path: Path) -> None:
    safe = Safe(b"ns", b"gone")
    made = config(tmp_path, tier("ssd", bytes_max=2 * MIB), tier("hdd", kind="hdd"))
    with Store.open(made, keys=safe) as store:
        store.put(b"lost", b"lost", namespace=b"gone")
        values = {key: noise(key, 100_000) for key in stores.names(40)}
        for key, value in values.items():
            store.put(key, value, meta=key, namespace=b"ns")
        store.put(b"same", values[b"k0001"], namespace=b"ns")
        store.flush()
        assert {info.tier for key in values if (info := store.info(key, namespace=b"ns"))} == {"ssd", "hdd"}
        for namespace in (None, b"", b"ns"):
            safe.add(namespace, "second")
        safe.drop(b"gone", "first")
        assert store.rotate_keys() == 41
        assert store.rotate_keys() == 0
        for namespace in (None, b"", b"ns"):
            safe.drop(namespace, "first")
    with Store.open(made, keys=safe) as store:
        for key, value in values.items():
            hit = store.get(key, namespace=b"ns")
            assert value_of(hit) == value
            assert isinstance(hit, Hit)
            assert hit.meta == key
        assert value_of(store.get(b"same", namespace=b"ns")) == values[b"k0001"]
        assert store.get(b"lost", namespace=b"gone") == Miss(b"lost", MissReason.UNAVAILABLE)


def test_what_was_encrypted_with_an_older_key_is_gone_from_disk(tmp_path: Path) -> None:
    safe = Safe()
    with opened(tmp_path, safe) as store:
        store.put(b"k", VALUE)
        store.flush()
        before = only_segment(tmp_path).read_bytes()
        payload = before[-60_000:-50_000]
        safe.add(b"", "second")
        assert store.rotate_keys() == 1
        assert all(payload not in content for _, content in files(tmp_path))


def test_a_plain_store_has_nothing_to_rotate(tmp_path: Path) -> None:
    with opened(tmp_path, None) as store:
        store.put(b"k", VALUE)
        assert store.rotate_keys() == 0


def test_the_stores_own_key_must_be_there_to_rotate(tmp_path: Path) -> None:
    safe = Safe()
    with opened(tmp_path, safe) as store:
        del safe.keys[None]
        with pytest.raises(WrongKeys, match="the store itself"):
            store.rotate_keys()


def test_a_provider_that_fails_in_a_rotation_is_no_success(tmp_path: Path) -> None:
    """It fails for one namespace, for a moment: older keys are still needed."""
    safe = Safe(b"a", b"b")
    with opened(tmp_path, safe) as store:
        for namespace in (b"a", b"b"):
            store.put(b"k", VALUE, namespace=namespace)
            safe.add(namespace, "second")
        kept, safe.keys[b"b"] = safe.keys[b"b"], None  # type: ignore[assignment]
        with pytest.raises(FlushError, match="1 blocks could not be encrypted anew"):
            store.rotate_keys()
        safe.keys[b"b"] = kept
        assert store.rotate_keys() == 1
        for namespace in (b"a", b"b"):
            safe.drop(namespace, "first")
        store.forget_keys()
        for namespace in (b"a", b"b"):
            assert value_of(store.get(b"k", namespace=namespace)) == BYTES


def test_keys_are_asked_for_once(tmp_path: Path) -> None:
    asked = []

    def keys(namespace: bytes | None, key_id: str | None) -> Key:
        asked.append((namespace, key_id))
        return Key("1", SECRET)

    with opened(tmp_path, keys) as store:
        for number in range(40):  # several segments
            store.put(b"%d" % number, noise(number, 100_000), namespace=b"ns")
        store.flush()
        for number in range(40):
            assert store.get(b"%d" % number, namespace=b"ns")
    assert asked == [(None, None), (b"ns", None)]


def test_an_answer_from_before_keys_were_forgotten_is_not_kept(tmp_path: Path) -> None:
    """A put is asking for its key while keys are rotated: the next one asks anew."""
    safe = Safe(b"ns")
    with opened(tmp_path, safe) as store:
        vault = store._vault
        provide = vault._provider  # type: ignore[attr-defined]

        def slow(namespace: bytes | None, key_id: str | None) -> Key:
            found = provide(namespace, key_id)
            safe.add(b"ns", "second")
            vault.forget_keys()
            return found  # type: ignore[no-any-return]

        vault._provider = slow  # type: ignore[attr-defined]
        vault.check_writable(b"ns")
        vault._provider = safe  # type: ignore[attr-defined]
        store.put(b"k", VALUE, namespace=b"ns")
        store.flush()
        safe.drop(b"ns", "first")
        store.forget_keys()
        assert value_of(store.get(b"k", namespace=b"ns")) == BYTES


def test_what_was_being_read_when_keys_were_forgotten_does_not_enter_ram(tmp_path: Path) -> None:
    safe = Safe(b"ns")
    with Store.open(config(tmp_path, ram=MIB), keys=safe) as store:
        store.put(b"k", VALUE, namespace=b"ns")
        store.flush()
        store.forget_keys()
        assert store._back is not None
        wanted = store._wanted(b"k", b"ns")
        located = store._back.locate([wanted])[0]
        assert isinstance(located, Located)
        block = store._back._reader.read_one(located)
        assert isinstance(block, RamBlock)
        safe.drop(b"ns", "first")
        store.forget_keys()
        store._back._keep(located, block)
        assert store.get(b"k", namespace=b"ns") == Miss(b"k", MissReason.UNAVAILABLE)


@pytest.mark.parametrize("gone", [True, False])
def test_a_namespace_without_a_current_key_does_not_disturb_others(tmp_path: Path, gone: bool) -> None:
    """Its blocks have to make room, and cannot be encrypted for the tier below."""
    safe = Safe(b"frozen", b"busy")
    made = config(tmp_path, tier("ssd", bytes_max=2 * MIB), tier("hdd", kind="hdd"))
    with Store.open(made, keys=safe, background=False) as store:
        for number in range(14):
            store.put(b"%d" % number, noise(number, 100_000), namespace=b"frozen")
        store.flush()
        safe.keys[b"frozen"] = {} if gone else None  # type: ignore[assignment]
        store.forget_keys()
        for number in range(30):
            store.put(b"%d" % number, noise(("busy", number), 100_000), namespace=b"busy")
            store.flush()
        for number in range(30):
            assert value_of(store.get(b"%d" % number, namespace=b"busy")) == noise(("busy", number), 100_000)


# -- somebody changes what is on disk, and knows the format ------------------------------------------


def record_of(store: Store, key: bytes) -> tuple[RecordHead, Place, Any]:
    wanted = store._wanted(key, b"")
    assert store._back is not None
    located: Any = store._back.locate([wanted])[0]
    found = disk_tier(store)
    place = located.extent.place(store._identity.store_id, found.tier_no)
    with open(found.path_of(place.segment_no), "rb") as f:
        f.seek(place.offset)
        return unpack_head(f.read(4096), place), place, located


def forge(store: Store, head: RecordHead, place: Place, payload: bytes) -> None:
    """A record whose checksums are right."""
    forged = pack_head(replace(head, payload_sum=payload_sum([payload])), place)
    with open(disk_tier(store).path_of(place.segment_no), "r+b") as f:
        f.seek(place.offset)
        f.write(forged + payload)


def stored_payload(store: Store, head: RecordHead, place: Place) -> bytes:
    with open(disk_tier(store).path_of(place.segment_no), "rb") as f:
        f.seek(place.offset + head.head_len)
        return f.read(head.stored_len)


def test_a_changed_payload_with_a_right_checksum_is_damage(tmp_path: Path) -> None:
    with opened(tmp_path, single_key(SECRET)) as store:
        store.put(b"k", VALUE)
        store.flush()
        head, place, _ = record_of(store, b"k")
        payload = bytearray(stored_payload(store, head, place))
        payload[1000] ^= 1
        forge(store, head, place, bytes(payload))
        assert store.get(b"k") == Miss(b"k", MissReason.CORRUPT)


def test_a_payload_moved_to_another_record_is_damage(tmp_path: Path) -> None:
    with opened(tmp_path, single_key(SECRET)) as store:
        for key in (b"a", b"b"):
            store.put(key, noise(key, 5000))
        store.flush()
        (head_a, place_a, _), (head_b, place_b, _) = record_of(store, b"a"), record_of(store, b"b")
        forge(store, head_a, place_a, stored_payload(store, head_b, place_b))
        assert store.get(b"a") == Miss(b"a", MissReason.CORRUPT)
        assert value_of(store.get(b"b")) == noise(b"b", 5000)


def test_a_payload_that_is_not_encrypted_is_damage(tmp_path: Path) -> None:
    with opened(tmp_path, single_key(SECRET)) as store:
        store.put(b"k", noise("k", 5000))
        store.flush()
        head, place, _ = record_of(store, b"k")
        plain = noise("forged", head.stored_len)
        forge(store, replace(head, codec=0), place, plain)
        assert store.get(b"k") == Miss(b"k", MissReason.CORRUPT)


@pytest.mark.parametrize("way", ["get", "get_into", "get_many"])
def test_a_forged_plain_record_that_the_index_agrees_with_is_damage(tmp_path: Path, way: str) -> None:
    """Record and index say with right checksums that the payload is not encrypted."""
    with opened(tmp_path, single_key(SECRET), background=False) as store:
        store.put(b"k", noise("k", 5000))
        store.flush()
        head, place, located = record_of(store, b"k")
        evil = b"EVIL" * 1250
        forged = replace(head, codec=0, stored_len=5000, payload_sum=payload_sum([evil]))
        forge(store, forged, place, evil)
        assert store._back is not None
        with store._back.parts.index.write() as txn:
            changed = located.content._replace(codec=0, stored_len=5000)
            txn.put_content(0, head.content_id, changed)
        assert reads(store, b"k")[way]() == Miss(b"k", MissReason.CORRUPT)


def reads(store: Store, key: bytes) -> dict[str, Callable[[], Any]]:
    """The ways to read a block of 5,000 bytes."""
    return {
        "get": lambda: store.get(key),
        "get_into": lambda: store.get_into(key, bytearray(5000)),
        "get_many": lambda: next(iter(store.get_many([key]))),
    }


@pytest.mark.parametrize("way", ["get", "get_into", "get_many"])
def test_a_name_that_is_led_to_another_content_is_damage(tmp_path: Path, way: str) -> None:
    """The index is changed so that one name means the value of another of the same namespace and length."""
    with opened(tmp_path, single_key(SECRET), background=False) as store:
        for key in (b"a", b"b"):
            store.put(key, noise(key, 5000))
        store.flush()
        assert store._back is not None
        a, b = store._wanted(b"a", b""), store._wanted(b"b", b"")
        with store._back.parts.index.write() as txn:
            entry_a, entry_b = txn.block(a.block_id), txn.block(b.block_id)
            assert entry_a is not None
            assert entry_b is not None
            txn.put_block(a.block_id, entry_a._replace(content_id=entry_b.content_id))
        assert reads(store, b"a")[way]() == Miss(b"a", MissReason.CORRUPT)


def test_the_identity_of_a_record_is_all_that_it_says(tmp_path: Path) -> None:
    with opened(tmp_path, single_key(SECRET)) as store:
        store.put(b"k", VALUE, meta=b"m")
        store.flush()
        head, place, _ = record_of(store, b"k")
    mine = identity_of(head, place)
    others = [
        identity_of(replace(head, seq=head.seq + 1), place),
        identity_of(replace(head, codec=head.codec ^ 1), place),
        identity_of(replace(head, namespace=b"x"), place),
        identity_of(replace(head, key=b"x" * 32), place),
        identity_of(replace(head, meta=head.meta[:-1] + bytes((head.meta[-1] ^ 1,))), place),
        identity_of(replace(head, lengths=(*head.lengths[:-1], head.lengths[-1] + 1)), place),
        identity_of(replace(head, parent_id=5), place),
        identity_of(replace(head, content_id=bytes(16)), place),
        identity_of(head, place._replace(tier_no=9)),
        identity_of(head, place._replace(segment_no=9)),
        identity_of(head, place._replace(offset=9)),
        identity_of(head, place._replace(store_id=bytes(16))),
    ]
    assert mine not in others
    assert len(set(others)) == len(others)
