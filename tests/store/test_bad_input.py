"""Each kind of bad input is a clear typed error or a counted miss, and nothing is lost by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from kvtier import (
    Config,
    ConfigError,
    CorruptStore,
    ForkedStore,
    Hint,
    KvtierError,
    LimitError,
    Miss,
    MissReason,
    NotAStore,
    PutItem,
    ReadOnlyStore,
    Store,
    StoreClosed,
    StoreLocked,
    StoreUnwritable,
    UnsupportedFormat,
)
from kvtier.events import BlockQuarantined, Event
from kvtier.segment.format import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from tests.stores import KIB, MIB, config, disk_tier, fill, flip, names, noise, only_segment, settle, tier, value_of

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file, to see that a refusal changed none."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def filled(tmp_path: Path) -> Config:
    """A closed store with blocks ``k0000`` to ``k0003`` of 10 KiB, chained."""
    c = config(tmp_path)
    with Store.open(c) as store:
        fill(store, names(4), 10 * KIB, chain=True)
    return c


# -- folders that are no store -----------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("content", ["another file", "a tier", "an empty STORE", "text in STORE"])
def test_a_folder_that_is_no_store_is_refused_and_left_alone(tmp_path: Path, content: str, read_only: bool) -> None:
    root = tmp_path / "store"
    root.mkdir()
    file = {"another file": "notes.txt", "a tier": "TIER"}.get(content, "STORE")
    (root / file).write_text("" if content == "an empty STORE" else "my notes")
    before = tree(tmp_path)
    error = CorruptStore if file == "STORE" else NotAStore
    with pytest.raises(error, match="store"):
        Store.open(config(tmp_path), read_only=read_only)
    assert {k: v for k, v in tree(tmp_path).items() if not k.endswith("LOCK")} == before


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_is_no_store(tmp_path: Path, read_only: bool) -> None:
    (tmp_path / "store").write_text("x")
    with pytest.raises(NotAStore, match="not a folder"):
        Store.open(config(tmp_path), read_only=read_only)


@pytest.mark.parametrize("exists", [False, True])
def test_reading_creates_nothing(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "store").mkdir()
    with pytest.raises(NotAStore, match="no store here"):
        Store.open(config(tmp_path), read_only=True)
    assert tree(tmp_path) == {}
    assert (tmp_path / "store").exists() is exists


def test_a_tier_folder_with_other_things_in_it_is_refused(tmp_path: Path, filled: Config) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"x")
    more = config(tmp_path, tier(), tier("other", path=tmp_path / "mine"))
    with pytest.raises(NotAStore, match="'other'"):
        Store.open(more)
    with Store.open(filled) as store:
        assert store.match(names(4)) == 4


def test_a_tier_of_another_store_or_name_is_refused(tmp_path: Path, filled: Config) -> None:
    with pytest.raises(NotAStore, match="belongs to tier 'disk'"):
        Store.open(config(tmp_path / "second", tier(path=tmp_path / "store" / "disk")))
    swapped = config(tmp_path, tier("a", path=tmp_path / "store" / "disk"))
    with pytest.raises(NotAStore, match="belongs to tier 'disk'"):
        Store.open(swapped)
    with Store.open(filled) as store:
        assert store.match(names(4)) == 4


# -- formats -----------------------------------------------------------------------------------------


def reseal(file: Path, **changes: object) -> None:
    fields = {**json.loads(file.read_text()), **changes}
    del fields["sum"]
    body = json.dumps(fields, sort_keys=True)
    file.write_text(json.dumps({**fields, "sum": xxhash.xxh3_64_hexdigest(body.encode())}))


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("name", ["STORE", "disk/TIER"])
def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path, filled: Config, name: str, read_only: bool) -> None:
    newest = 4 if name == "STORE" else 1
    reseal(tmp_path / "store" / name, format=newest + 1)
    before = tree(tmp_path)
    with pytest.raises(UnsupportedFormat, match=f"format {newest + 1} is newer than {newest}"):
        Store.open(filled, read_only=read_only)
    assert tree(tmp_path) == before
    reseal(tmp_path / "store" / name, format=3 if name == "STORE" else 1)
    with Store.open(filled) as store:
        assert store.match(names(4)) == 4


def test_an_index_of_another_engine_is_refused(tmp_path: Path, filled: Config) -> None:
    reseal(tmp_path / "store" / "STORE", engine="lmdb-1.0")
    with pytest.raises(UnsupportedFormat, match=r"lmdb-1\.0"):
        Store.open(filled)


def test_a_damaged_identity_is_said_to_be_damaged(tmp_path: Path, filled: Config) -> None:
    file = tmp_path / "store" / "STORE"
    text = file.read_text()
    file.write_text(text.replace('"disk"', '"disc"'))
    with pytest.raises(CorruptStore, match="checksum"):
        Store.open(filled)
    file.write_text(text)
    with Store.open(filled) as store:
        assert store.match(names(4)) == 4


# -- locks -------------------------------------------------------------------------------------------

HOLDER = """
import sys
from kvtier import Store
with Store.open(sys.argv[1]) as store:
    store.put(b"theirs", b"x")
    store.flush()
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_store_open_in_another_process_is_locked(tmp_path: Path) -> None:
    root = tmp_path / "s"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(StoreLocked, match=f"open for writing in process {holder.pid}"):
            Store.open(root)
        with Store.open(root, read_only=True) as reader:
            assert value_of(reader.get(b"theirs")) == b"x"
        assert holder.stdin is not None
        holder.stdin.close()
        assert holder.wait(60) == 0
    with Store.open(root) as store:
        assert value_of(store.get(b"theirs")) == b"x"


def test_a_store_open_in_this_process_is_locked(filled: Config) -> None:
    with Store.open(filled) as store:
        with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
            Store.open(filled)
        with pytest.raises(StoreLocked, match="in this process"):
            Store.open(filled, read_only=True)
        assert store.match(names(4)) == 4
    Store.open(filled).close()  # and free again


def test_a_refused_opening_leaves_the_store_unlocked(tmp_path: Path, filled: Config) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("")
    for _ in range(2):
        with pytest.raises(NotAStore):
            Store.open(config(tmp_path, tier(), tier("other", path=tmp_path / "mine")))
    Store.open(filled).close()


# -- folders that cannot be written ------------------------------------------------------------------


@pytest.fixture
def read_only_mount(tmp_path: Path, filled: Config) -> Iterator[Config]:
    """The same store, seen through a read-only bind mount: root, too, is refused there."""
    view = tmp_path / "view"
    view.mkdir()
    mounts = (["mount", "--bind", str(tmp_path / "store"), str(view)], ["mount", "-o", "remount,ro,bind", str(view)])
    done = 0
    try:
        for command in mounts:
            if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
                pytest.skip("a read-only bind mount needs root on Linux")
            done += 1
        yield Config.from_dict({"store": {"path": view, "value_bytes_max": 512 * KIB}, "tier": [tier()]})
    finally:
        if done:
            subprocess.run(["umount", str(view)], check=True)


def test_a_read_only_mount_can_be_read_not_written(read_only_mount: Config, filled: Config) -> None:
    with pytest.raises(StoreUnwritable, match="Read-only"):
        Store.open(read_only_mount)
    with Store.open(read_only_mount, read_only=True) as store:
        assert [value_of(h) for h in store.get_many(names(4))] == [noise(k, 10 * KIB) for k in names(4)]
    with Store.open(filled) as store:
        assert store.match(names(4)) == 4


def test_a_new_store_on_a_read_only_mount_is_refused(read_only_mount: Config) -> None:
    assert read_only_mount.store.path is not None
    inside = Config.from_dict(
        {
            "store": {"path": read_only_mount.store.path / "new"},
            "tier": [tier(bytes_max="1GiB", segment_bytes="256MiB")],
        }
    )
    with pytest.raises(StoreUnwritable):
        Store.open(inside)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_write_permission_can_be_read(tmp_path: Path, filled: Config) -> None:
    folders = [tmp_path / "store", *[p for p in (tmp_path / "store").rglob("*") if p.is_dir()]]
    for folder in folders:
        folder.chmod(0o500)
    try:
        (tmp_path / "store" / "LOCK").chmod(0o400)
        with pytest.raises(StoreUnwritable):
            Store.open(filled)
        with Store.open(filled, read_only=True) as store:
            assert store.match(names(4)) == 4
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_a_store_opened_for_reading_refuses_writes(filled: Config) -> None:
    with Store.open(filled, read_only=True) as store:
        for act in (
            lambda: store.put(b"k", b"x"),
            lambda: store.put_many([PutItem(b"k", b"x")]),
            lambda: store.delete(b"k0000"),
        ):
            with pytest.raises(ReadOnlyStore):
                act()
        store.flush()  # nothing to do
        assert store.match(names(4)) == 4


# -- configurations ----------------------------------------------------------------------------------


def test_a_cap_smaller_than_one_segment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tier\[0\]\.bytes_max: 1MiB is smaller than one segment \(2MiB\)"):
        config(tmp_path, tier(bytes_max=MIB, segment_bytes=2 * MIB))
    assert tree(tmp_path) == {}


def test_unknown_keys_are_refused_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        '[store]\npaht = "x"\n[ramm]\n[[tier]]\nname = "a"\nkind = "ssd"\nbytes_max = "1GiB"\nsize = 3\n'
    )
    with pytest.raises(ConfigError) as e:
        Store.open(tmp_path / "c.toml")
    assert {"store.paht", "ramm", "tier[0].size"} <= {p.path for p in e.value.problems}


# -- damaged records ---------------------------------------------------------------------------------

FIRST = SEGMENT_HEADER_BYTES
HEAD_LEN = RECORD_HEADER_BYTES + 5 + 8
RECORD = 10368  # of a block of 10 KiB


@pytest.mark.parametrize(
    "offset", [FIRST, FIRST + 8, FIRST + 60, FIRST + 90, FIRST + 97, FIRST + HEAD_LEN, FIRST + HEAD_LEN + 10 * KIB - 1]
)
def test_a_flipped_bit_is_a_counted_miss_and_the_key_can_be_put_again(
    tmp_path: Path, filled: Config, offset: int
) -> None:
    events: list[Event] = []
    flip(only_segment(tmp_path), offset)
    with Store.open(filled, listeners=[events.append], background=False) as store:
        for _ in range(2):
            assert store.get(b"k0000").reason is MissReason.CORRUPT  # type: ignore[union-attr]
            assert not store.get_into(b"k0000", bytearray(10 * KIB))
            assert store.get_many_into([b"k0000"], [bytearray(10 * KIB)]) == [Miss(b"k0000", MissReason.CORRUPT)]
            assert not next(store.get_many([b"k0000"]))
        settle(store)
        assert not store.contains(b"k0000")
        assert store.get(b"k0000").reason is MissReason.ABSENT  # type: ignore[union-attr]
        (event,) = events
        assert isinstance(event, BlockQuarantined)
        assert (event.tier, event.segment, event.offset) == ("disk", 1, FIRST)
        stats = store.stats()
        assert stats.quarantined == 1
        assert stats.misses == {"corrupt": 8, "absent": 1}
        assert [value_of(h) for h in store.get_many(names(4)[1:])] == [noise(k, 10 * KIB) for k in names(4)[1:]]
        store.put(b"k0000", noise(b"k0000", 10 * KIB))
        store.flush()
        assert value_of(store.get(b"k0000")) == noise(b"k0000", 10 * KIB)
    with Store.open(filled) as store:
        assert [value_of(h) for h in store.get_many(names(4))] == [noise(k, 10 * KIB) for k in names(4)]


@pytest.mark.parametrize("cut", [1, 200, RECORD - 10, RECORD, 2 * RECORD + 5])
def test_a_truncated_segment_loses_what_was_cut_and_nothing_else(tmp_path: Path, filled: Config, cut: int) -> None:
    file = only_segment(tmp_path)
    size = file.stat().st_size
    assert size == FIRST + 4 * RECORD
    os.truncate(file, size - cut)
    padding = RECORD - HEAD_LEN - 10 * KIB
    left = 4 if cut <= padding else 4 - -(-(cut - padding) // RECORD)
    with Store.open(filled, background=False) as store:
        assert [bool(store.get(k)) for k in names(4)] == [i < left for i in range(4)]
        settle(store)
        fill(store, names(4), 10 * KIB)
    with Store.open(filled) as store:
        assert [value_of(h) for h in store.get_many(names(4))] == [noise(k, 10 * KIB) for k in names(4)]


def test_a_swapped_segment_is_not_believed(tmp_path: Path) -> None:
    """The files of two segments change places: every record is sound in itself, and none is where it belongs."""
    c = config(tmp_path)
    with Store.open(c) as store:
        fill(store, names(8), 250 * KIB)
    a, b = sorted((tmp_path / "store" / "disk").glob("*.seg"))[:2]
    spare = tmp_path / "spare"
    for src, dst in ((a, spare), (b, a), (spare, b)):
        src.rename(dst)
    with Store.open(c, background=False) as store:
        outcomes = [store.get(k) for k in names(8)]
        assert not any(outcomes)
        assert all(o.reason is MissReason.CORRUPT for o in outcomes)  # type: ignore[union-attr]


def test_a_lost_segment_is_a_miss_and_said_once(tmp_path: Path, filled: Config) -> None:
    only_segment(tmp_path).unlink()
    with Store.open(filled) as store:
        assert store.match(names(4)) == 0
        assert store.get(b"k0000").reason is MissReason.ABSENT  # type: ignore[union-attr]
        fill(store, names(4), 10 * KIB)
        assert store.match(names(4)) == 4


def test_a_segment_lost_while_open_is_a_miss(tmp_path: Path, filled: Config) -> None:
    with Store.open(filled, background=False) as store:
        only_segment(tmp_path).unlink()
        disk_tier(store)._files.forget(1)  # a descriptor that is open still gives the bytes
        assert [o.reason for o in store.get_many(names(4))] == [MissReason.CORRUPT] * 4  # type: ignore[union-attr]
        settle(store)
        assert store.match(names(4)) == 0


# -- limits ------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(config(tmp_path, value_bytes_max=100 * KIB)) as s:
        yield s


@pytest.mark.parametrize("key", [b"", b"x" * 129, "text", None, bytearray(b"k"), 7])
def test_a_key_outside_its_limits_is_refused(store: Store, key: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.put(key, b"x"),
        lambda: store.put_many([PutItem(key, b"x")]),
        lambda: store.put(b"k", b"x", parent=key if key is not None else b""),
        lambda: store.get(key),
        lambda: store.get_into(key, bytearray(1)),
        lambda: store.get_many_into([key], [bytearray(1)]),
        lambda: store.get_many([key]),
        lambda: store.match([key]),
        lambda: store.contains(key),
        lambda: store.info(key),
        lambda: store.info_many([key]),
        lambda: store.explain(key),
        lambda: store.prefetch([key]),
        lambda: store.hint([key], Hint()),
        lambda: store.pin([key]),
        lambda: store.unpin([key]),
        lambda: store.delete(key),
    ]
    for call in calls:
        with pytest.raises(LimitError, match="key must be bytes of length 1 to 128"):
            call()
    assert store.stats().puts == 0


@pytest.mark.parametrize("namespace", [b"x" * 65, "text", None])
def test_a_namespace_outside_its_limits_is_refused(store: Store, namespace: Any) -> None:
    for call in (store.get, store.contains, store.info, store.delete):
        with pytest.raises(LimitError, match="namespace must be bytes of length 0 to 64"):
            call(b"k", namespace=namespace)
    with pytest.raises(LimitError, match="namespace"):
        store.put(b"k", b"x", namespace=namespace)


@pytest.mark.parametrize("meta", [b"x" * 1025, "text", None])
def test_metadata_outside_its_limits_is_refused(store: Store, meta: Any) -> None:
    with pytest.raises(LimitError, match="meta must be bytes of length 0 to 1024"):
        store.put(b"k", b"x", meta=meta)
    assert not store.contains(b"k")


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        (bytes(100 * KIB + 1), "value of 102401 bytes is over the limit of 102400"),
        ([bytes(60 * KIB)] * 2, "over the limit"),
        ([], "1 to 64 buffers, got 0"),
        ([b""] * 65, "1 to 64 buffers, got 65"),
        (memoryview(bytes(10))[::2], "contiguous"),
        ("text", "bytes-like"),
        ([b"x", None], "bytes-like"),
        (3, "bytes-like"),
    ],
)
def test_a_value_outside_its_limits_is_refused(store: Store, buffers: Any, message: str) -> None:
    store.put(b"k", b"old")
    with pytest.raises(LimitError, match=message):
        store.put(b"k", buffers)
    with pytest.raises(LimitError):
        store.get_into(b"k", buffers)
    with pytest.raises(LimitError):
        store.get_many_into([b"k"], [buffers])
    store.flush()
    assert value_of(store.get(b"k")) == b"old"


def test_everything_at_its_limit_is_fine(store: Store) -> None:
    key, namespace, meta = b"k" * 128, b"n" * 64, b"m" * 1024
    buffers = [noise(i, 1600) for i in range(64)]
    store.put(key, buffers, meta=meta, namespace=namespace, parent=b"p" * 128)
    store.flush()
    hit = store.get(key, namespace=namespace)
    assert value_of(hit) == b"".join(buffers)
    assert hit.meta == meta  # type: ignore[union-attr]


def test_put_many_stops_at_the_item_that_is_wrong(store: Store) -> None:
    with pytest.raises(LimitError):
        store.put_many([PutItem(b"a", b"1"), PutItem(b"", b"2"), PutItem(b"c", b"3")])
    assert [store.contains(k) for k in (b"a", b"c")] == [True, False]


# -- after close, after fork -------------------------------------------------------------------------


def every_call(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.buffer(1),
        lambda: store.put(b"k", b"x"),
        lambda: store.put_many([PutItem(b"k", b"x")]),
        lambda: store.get(b"k"),
        lambda: store.get_into(b"k", bytearray(1)),
        lambda: store.get_many_into([b"k"], [bytearray(1)]),
        lambda: store.get_many([b"k"]),
        lambda: store.match([b"k"]),
        lambda: store.contains(b"k"),
        lambda: store.info(b"k"),
        lambda: store.info_many([b"k"]),
        lambda: store.explain(b"k"),
        lambda: store.prefetch([b"k"]),
        lambda: store.cancel_prefetch([b"k"]),
        lambda: store.answered([b"k"]),
        lambda: store.hint([b"k"], Hint()),
        lambda: store.pin([b"k"]),
        lambda: store.unpin([b"k"]),
        lambda: store.delete(b"k"),
        lambda: store.flush(),
        lambda: store.stats(),
        lambda: store.derive_key(b"p"),
        lambda: store.rotate_keys(),
        lambda: store.forget_keys(),
        lambda: store.pause_compaction(),
        lambda: store.resume_compaction(),
    ]


def test_the_list_above_has_every_method() -> None:
    public = {n for n in dir(Store) if not n.startswith("_")} - {"open", "close"}
    used = {name for call in every_call(Store.__new__(Store)) for name in call.__code__.co_names}
    assert public <= used


def test_use_after_close_is_refused(tmp_path: Path) -> None:
    for c in (config(tmp_path), Config.from_dict({})):
        store = Store.open(c)
        store.close()
        store.close()  # twice is fine
        for call in every_call(store):
            with pytest.raises(StoreClosed):
                call()


@needs_fork
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # multi-threaded fork: that is the point
def test_use_in_a_forked_child_is_refused_and_harms_nothing(tmp_path: Path, filled: Config) -> None:
    for c in (filled, Config.from_dict({})):
        with Store.open(c) as store:
            store.put(b"k", b"before")
            pid = os.fork()
            if pid == 0:  # pragma: no cover
                refused = 0
                for call in every_call(store):
                    try:
                        call()
                    except ForkedStore:
                        refused += 1
                store.close()  # a no-op
                os._exit(refused)
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == len(every_call(store))
            store.put(b"k", b"after")
            store.flush()
            assert value_of(store.get(b"k")) == b"after"
    with Store.open(filled) as store:
        assert value_of(store.get(b"k")) == b"after"


@needs_fork
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_cannot_open_the_folder_anew(filled: Config) -> None:
    with Store.open(filled) as store:
        pid = os.fork()
        if pid == 0:  # pragma: no cover
            refused = 0
            for read_only in (False, True):
                try:
                    Store.open(filled, read_only=read_only)
                except StoreLocked:
                    refused += 1
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
        assert store.match(names(4)) == 4
    with Store.open(filled) as store:
        assert store.match(names(4)) == 4


def test_every_error_is_in_one_tree() -> None:
    for error in (ConfigError, CorruptStore, ForkedStore, LimitError, NotAStore, ReadOnlyStore, StoreClosed):
        assert issubclass(error, KvtierError)
    assert issubclass(LimitError, ValueError)
