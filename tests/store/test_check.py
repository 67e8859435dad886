"""Looking a store over and putting it in order: what is damaged is found, counted and taken out, and nothing else."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtier import Config, MissReason, NotAStore, Store, StoreLocked, TierMissing, WrongKeys, single_key
from kvtier.check import Kind, Report, rebuild_index, repair, subject, verify
from kvtier.events import Event, RebuildProgress
from kvtier.fs import OsFileSystem
from kvtier.segment.format import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, STATE_OFFSET, RecordKind, RecordState
from kvtier.testing.faulty_fs import Call, FaultyFileSystem
from kvtier.tiers.reading import Located
from tests.concurrency.processes import running
from tests.stores import KIB, config, fill, flip, names, noise, segments, settle, tier, value_of

KEYS = names(12)
SIZE = 20 * KIB
KEEPS = single_key(bytes(32))


class Checked:
    """A store in two tiers with twelve blocks of their own and three that share, closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = config(
            folder,
            tier("top", bytes_max=768 * KIB, segment_bytes=80 * KIB),
            tier("low", segment_bytes=80 * KIB),
            value_bytes_max=64 * KIB,
        )
        with self.open() as store:
            self.values = fill(store, names(24, "early"), SIZE) | fill(store, KEYS, SIZE)
            for number, key in enumerate((KEYS[-1], KEYS[-1], b"early0000")):
                self.values[b"twin%d" % number] = self.values[key]
                store.put(b"twin%d" % number, self.values[key], meta=b"shared")
            store.flush()
            assert store.delete(KEYS[0])
            store.flush()
            del self.values[KEYS[0]]
            self.located = {key: self._located(store, key) for key in self.values}
        assert {"top", "low"} == {found.tier.name for found in self.located.values()}

    def open(self) -> Store:
        return Store.open(self.settings, background=False)

    def _located(self, store: Store, key: bytes) -> Located:
        assert store._back is not None
        (located,) = store._back.locate([store._wanted(key, b"")])
        assert not isinstance(located, MissReason)
        return located

    @property
    def root(self) -> Path:
        return self.folder / "store"

    def file_of(self, key: bytes) -> Path:
        return self.root / self.located[key].tier.name / f"{self.located[key].content.segment_no:08d}.seg"

    def offset(self, key: bytes) -> int:
        return self.located[key].content.offset

    def keys_in(self, file: Path) -> set[bytes]:
        return {key for key in self.values if self.file_of(key) == file}

    def verify(self) -> Report:
        return verify(self.settings)

    def check_repaired(self, lost: set[bytes]) -> None:
        """After a repair the store is sound; exactly ``lost`` are gone, and can be stored again."""
        before = self.verify()
        assert not before.is_sound
        done = repair(self.settings)
        assert done.left.is_sound, done.left.findings
        assert self.verify().is_sound
        with self.open() as store:
            for key, value in self.values.items():
                hit = store.get(key)
                assert not hit if key in lost else value_of(hit) == value
            for key in lost:
                store.put(key, self.values[key])
            store.flush()
            settle(store)
        assert self.verify().is_sound
        with self.open() as store:
            assert {key for key, value in self.values.items() if value_of(store.get(key)) == value} == set(self.values)

    def check_made_anew(self) -> None:
        """An index made anew knows all blocks."""
        rebuild_index(self.settings)
        with self.open() as store:
            assert {key for key, value in self.values.items() if value_of(store.get(key)) == value} == set(self.values)


@pytest.fixture
def checked(tmp_path: Path) -> Checked:
    return Checked(tmp_path)


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """All files but LMDB's table of readers, with the time of their last change."""
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != "lock.mdb"]
    return {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in files}


# -- nothing is damaged ------------------------------------------------------------------------------


def test_a_sound_store(checked: Checked) -> None:
    report = checked.verify()
    assert (report.is_sound, report.findings, report.blocks) == (True, [], len(checked.values))
    assert report.segments == len(segments(checked.folder, "top")) + len(segments(checked.folder, "low"))
    assert report.records >= report.blocks
    assert report.as_dict()["sound"] is True


def test_nothing_is_changed(checked: Checked) -> None:
    flip(checked.file_of(KEYS[5]), checked.offset(KEYS[5]) + 5000)
    before = contents(checked.root)
    assert not checked.verify().is_sound
    assert contents(checked.root) == before


def test_progress_ends_with_all_segments(checked: Checked) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(checked.settings, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, report.segments) for n in range(1, report.segments + 1)]


def test_repairing_a_sound_store_takes_nothing_out(checked: Checked) -> None:
    done = repair(checked.settings)
    assert done.left.is_sound
    assert (done.payloads_taken_out, done.references_written, done.headers_written) == (0, 0, 0)
    assert not done.index_rebuilt
    with checked.open() as store:
        assert all(value_of(store.get(key)) == value for key, value in checked.values.items())


def test_an_encrypted_store_needs_no_keys_to_be_verified(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    settings = config(tmp_path)
    with Store.open(settings, keys=KEEPS, background=False) as store:
        values = fill(store, KEYS, SIZE)
    assert verify(settings).blocks == len(KEYS)
    assert verify(settings).is_sound
    flip(segments(tmp_path)[0], SEGMENT_HEADER_BYTES + 5000)
    assert verify(settings).damage == {"payload": 1}
    with pytest.raises(WrongKeys):
        repair(settings)
    assert repair(settings, keys=KEEPS).left.is_sound
    assert rebuild_index(settings, keys=KEEPS).rebuilt
    assert verify(settings).is_sound
    with Store.open(settings, keys=KEEPS, background=False) as store:
        assert sum(bool(store.get(key)) for key in values) == len(KEYS) - 1


#: Flushes as often as it is told, line by line.
WRITER = """
import sys
from pathlib import Path
from tests.stores import KIB, config, noise, tier
from kvtier import Store

settings = config(Path(sys.argv[1]), tier(bytes_max=3 << 20, segment_bytes=80 * KIB), value_bytes_max=64 * KIB)
with Store.open(settings) as store:
    number = 0
    for line in sys.stdin:
        for _ in range(int(line)):
            for _ in range(10):
                store.put(b"k%d" % (number % 180), noise(number // 3, 20 * KIB))
                number += 1
            store.delete(b"k%d" % ((number + 7) % 180))
            store.flush()
        print("written", flush=True)
"""


def test_while_another_process_writes(tmp_path: Path) -> None:
    """Blocks are overwritten, evicted and deleted, and segments dropped, all the time."""
    with running(WRITER, tmp_path) as writer:
        assert writer.ask("20") == "written"
        reports = []
        for _ in range(10):
            writer.tell("8")  # no more: the index, which counts in the tier, grows while a look at it goes on
            reports.append(verify(tmp_path / "store"))
            for refused in (repair, rebuild_index):
                with pytest.raises(StoreLocked):
                    refused(tmp_path / "store")
            assert writer.line() == "written"
        assert writer.end() == 0
    assert [r.findings for r in reports] == [[]] * 10
    assert min(r.blocks for r in reports) > 10
    assert verify(tmp_path / "store").is_sound


def test_a_process_that_was_killed_leaves_no_damage(checked: Checked) -> None:
    """A torn tail behind the last commit belongs to nobody."""
    with segments(checked.folder, "top")[-1].open("ab") as file:
        file.write(noise("tail", 5000))
    report = checked.verify()
    assert report.is_sound
    assert report.notes["tail_bytes"] == 5000


# -- what is no store --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [verify, repair, rebuild_index])
def test_a_folder_without_a_store_is_refused_and_left_alone(tmp_path: Path, command: Callable[[Path], object]) -> None:
    with pytest.raises(NotAStore):
        command(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [verify, repair, rebuild_index])
def test_a_tier_that_is_not_mounted_is_refused(checked: Checked, command: Callable[[Config], object]) -> None:
    (checked.root / "low").rename(checked.folder / "elsewhere")
    (checked.root / "low").mkdir(0o700)
    with pytest.raises(TierMissing):
        command(checked.settings)
    (checked.root / "low").rmdir()
    (checked.folder / "elsewhere").rename(checked.root / "low")
    assert checked.verify().is_sound


# -- damage ------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_payload(checked: Checked) -> None:
    found, offset = checked.located[KEYS[5]], checked.offset(KEYS[5])
    flip(checked.file_of(KEYS[5]), offset + 5000)
    report = checked.verify()
    assert [f[0:1] + f[2:] for f in report.findings] == [
        (Kind.PAYLOAD, found.tier.name, found.content.segment_no, offset)
    ]
    assert (report.damage, report.blocks_damaged) == ({"payload": 1}, 1)
    assert verify(checked.settings, payloads=False).is_sound
    checked.check_repaired({KEYS[5]})


def test_a_payload_that_three_blocks_share(checked: Checked) -> None:
    flip(checked.file_of(KEYS[-1]), checked.offset(KEYS[-1]) + 5000)
    report = checked.verify()
    assert (report.damage, report.blocks_damaged) == ({"payload": 1}, 3)
    checked.check_repaired({KEYS[-1], b"twin0", b"twin1"})


@pytest.mark.parametrize("at", [0, 8, RECORD_HEADER_BYTES + 1])
def test_a_flipped_bit_in_a_head(checked: Checked, at: int) -> None:
    flip(checked.file_of(KEYS[5]), checked.offset(KEYS[5]) + at)
    report = checked.verify()
    assert (report.damage, report.blocks_damaged) == ({"record": 1}, 1)
    assert not verify(checked.settings, payloads=False).is_sound
    checked.check_repaired({KEYS[5]})


def test_a_flipped_bit_in_a_reference(checked: Checked) -> None:
    """The block can be read all the same, but an index made anew would not know it."""
    found = checked.located[b"twin1"]
    assert found.entry.kind == RecordKind.REFERENCE
    flip(checked.root / found.tier.name / f"{found.entry.segment_no:08d}.seg", found.entry.offset + 60)
    report = checked.verify()
    assert (report.damage, report.blocks_damaged) == ({"record": 1}, 0)
    checked.check_repaired(set())
    checked.check_made_anew()


@pytest.mark.parametrize("key", [KEYS[-1], b"twin1"])
def test_a_mark_that_outlived_its_commit(checked: Checked, key: bytes) -> None:
    """A block was deleted, then the power took the commit, but not the mark on its record: all three can be read."""
    found = checked.located[key]
    state = RecordState.PAYLOAD_ONLY if found.entry.kind == RecordKind.BLOCK else RecordState.DEAD
    with (checked.root / found.tier.name / f"{found.entry.segment_no:08d}.seg").open("r+b") as file:
        file.seek(found.entry.offset + STATE_OFFSET)
        file.write(bytes((state,)))
    report = checked.verify()
    assert (report.damage, report.blocks_damaged) == ({"record": 1}, 0)
    checked.check_repaired(set())
    checked.check_made_anew()


def test_a_segment_that_was_cut(checked: Checked) -> None:
    file = checked.file_of(KEYS[5])
    os.truncate(file, checked.offset(KEYS[5]) + 1000)
    lost = {k for k in checked.keys_in(file) if checked.offset(k) >= checked.offset(KEYS[5])}
    report = checked.verify()
    assert report.blocks_damaged == len(lost)
    assert verify(checked.settings, payloads=False).blocks_damaged == len(lost)
    checked.check_repaired(lost)


def test_a_segment_that_was_deleted(checked: Checked) -> None:
    file = checked.file_of(KEYS[5])
    lost = checked.keys_in(file)
    file.unlink()
    report = checked.verify()
    assert (report.damage["segment"], report.blocks_damaged) == (1, len(lost))
    checked.check_repaired(lost)


def test_segments_that_were_swapped(checked: Checked) -> None:
    one, two = segments(checked.folder, "top")[:2]
    lost = checked.keys_in(one) | checked.keys_in(two)
    raw = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(raw)
    report = checked.verify()
    assert (report.damage["segment"], report.blocks_damaged) == (2, len(lost))
    checked.check_repaired(lost)


def test_the_last_segments_of_two_tiers_were_swapped(checked: Checked) -> None:
    """Those to which more would have been appended."""
    one, two = segments(checked.folder, "top")[-1], segments(checked.folder, "low")[-1]
    shutil.copy(one, checked.folder / "one")
    shutil.copy(two, one)
    shutil.copy(checked.folder / "one", two)
    done = repair(checked.settings)
    assert done.found.damage["segment"] == 2
    assert done.left.is_sound, done.left.findings
    with checked.open() as store:
        fill(store, names(3, "more"), SIZE)
    shutil.rmtree(checked.root / "index")
    with checked.open() as store:
        assert all(store.get(key) for key in names(3, "more"))


@pytest.mark.parametrize("index_is_lost", [False, True])
def test_a_segment_header(checked: Checked, index_is_lost: bool) -> None:
    """Its records prove themselves, so nothing is lost: the header is written anew."""
    for file in segments(checked.folder, "top")[:2]:
        flip(file, 9)
    if index_is_lost:
        shutil.rmtree(checked.root / "index")
    assert checked.verify().damage["segment"] == 2
    assert repair(checked.settings).headers_written == 2
    assert checked.verify().is_sound
    with checked.open() as store:
        assert all(value_of(store.get(key)) == value for key, value in checked.values.items())


def test_a_segment_of_another_store(checked: Checked, tmp_path: Path) -> None:
    other = Checked(tmp_path / "other")
    shutil.copy(segments(other.folder, "top")[0], checked.root / "top" / "00000099.seg")
    assert checked.verify().damage == {"segment": 1}
    checked.check_repaired(set())


def test_a_file_that_a_new_index_keeps_is_not_counted_wrongly(checked: Checked, tmp_path: Path) -> None:
    other = Checked(tmp_path / "other")
    shutil.copy(segments(other.folder, "top")[0], checked.root / "top" / "00000099.seg")
    rebuild_index(checked.settings)
    assert checked.verify().damage == {"segment": 1}
    assert not repair(checked.settings).index_rebuilt


def test_files_of_others_are_no_damage_and_stay(checked: Checked) -> None:
    strange = [checked.root / "top" / name for name in ("notes.txt", "7.seg", "TIER.tmp")]
    for file in strange:
        file.write_bytes(b"strange")
        file.chmod(0o600)
    report = checked.verify()
    assert report.is_sound
    assert (report.notes["unknown_files"], report.notes["temporary_files"]) == (2, 1)


# -- disks that fail ---------------------------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FaultyFileSystem:
    """What verify and repair read through."""
    fs = FaultyFileSystem(OsFileSystem())
    for name in ("repair", "verify"):
        monkeypatch.setattr(sys.modules[f"kvtier.check.{name}"], "default_file_system", lambda: fs)
    return fs


def fail(disk: FaultyFileSystem, what: Callable[[Call], bool], code: int = errno.EIO) -> None:
    """From now on every call that is like this fails."""

    def check(call: Call) -> None:
        if what(call):
            raise OSError(code, os.strerror(code), call.path)

    disk.on_call = check


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM, errno.ENOENT])
def test_a_disk_that_fails_in_the_middle_of_an_audit(checked: Checked, disk: FaultyFileSystem, code: int) -> None:
    """Nothing is known of what it holds, so nothing is taken out, though some of it is damaged."""
    flip(checked.file_of(KEYS[5]), checked.offset(KEYS[5]) + 5000)
    assert checked.verify().blocks_damaged == 1
    reads, low = disk.counts["read_at"], str(checked.root / "low")
    fail(disk, lambda call: call.path.startswith(low) and disk.counts["read_at"] > limit, code)
    for command in (verify, repair):
        limit = disk.counts["read_at"] + reads - len(checked.values)  # one of the last, of the blocks
        with pytest.raises(OSError, match=os.strerror(code)):
            command(checked.settings)
    disk.on_call = None
    assert checked.verify().damage == {"payload": 1}
    with checked.open() as store:
        assert all(value_of(store.get(k)) == value for k, value in checked.values.items() if k != KEYS[5])


def test_a_sector_that_cannot_be_read(checked: Checked, disk: FaultyFileSystem) -> None:
    file, sector = str(checked.file_of(KEYS[5])), checked.offset(KEYS[5]) + 5000
    fail(disk, lambda c: c.op == "read_at" and c.path == file and c.offset <= sector < c.offset + c.nbytes)
    report = checked.verify()
    assert (report.damage, report.blocks_damaged) == ({"payload": 1}, 1)
    assert "cannot be read" in report.findings[0].what
    done = repair(checked.settings)
    assert (done.payloads_taken_out, done.left.is_sound) == (1, True)
    assert done.left.blocks == len(checked.values) - 1


def test_a_read_that_fails_once(checked: Checked, disk: FaultyFileSystem) -> None:
    """Be it on the walk, or when a block is looked at."""
    checked.verify()
    for number in range(1, disk.counts["read_at"] + 1):
        disk.fail_at(disk.counts["read_at"] + number, errno.EIO, op="read_at")
        report = checked.verify()
        assert report.is_sound, (number, report.findings)
        disk.heal()


@pytest.mark.parametrize("op", ["read_at", "open"])
def test_a_header_that_cannot_be_read(checked: Checked, disk: FaultyFileSystem, op: str) -> None:
    """No header is written there; what else is damaged is mended all the same."""
    flip(checked.file_of(KEYS[5]), checked.offset(KEYS[5]) + 5000)
    file = str(segments(checked.folder, "top")[0])
    disk.fail_at(1, errno.EIO, op=op)
    fail(disk, lambda c: c.op == "read_at" and c.path == file and c.offset == 0)
    done = repair(checked.settings)
    assert (done.headers_written, done.payloads_taken_out) == (0, 1)
    assert done.left.is_sound


# -- the index ---------------------------------------------------------------------------------------


def cut(index: Path) -> None:
    os.truncate(index / "data.mdb", 3 * 4096)


def scribble(index: Path) -> None:
    data = index / "data.mdb"
    data.write_bytes(noise("scribble", data.stat().st_size))


def spoil_pages(index: Path) -> None:
    data = bytearray((index / "data.mdb").read_bytes())
    data[3 * 4096 :] = noise("pages", len(data) - 3 * 4096)
    (index / "data.mdb").write_bytes(data)


def spoil_entry(index: Path) -> None:
    """Only its checksum can tell."""
    raw = bytearray((index / "data.mdb").read_bytes())
    at = raw.find(KEYS[5])
    while at >= 0:
        raw[at - 20] ^= 1
        at = raw.find(KEYS[5], at + 1)
    (index / "data.mdb").write_bytes(raw)


@pytest.mark.parametrize("spoil", [shutil.rmtree, cut, scribble, spoil_pages, spoil_entry])
def test_a_damaged_index(checked: Checked, spoil: Callable[[Path], None]) -> None:
    spoil(checked.root / "index")
    assert checked.verify().damage["index"] == 1
    checked.check_repaired(set())


def test_damage_is_taken_out_only_by_an_index_that_counts_right(checked: Checked) -> None:
    """By this one, a segment would be empty once the damaged block is gone."""
    found = checked.located[KEYS[5]]
    place = found.tier.tier_no, found.content.segment_no
    assert len(checked.keys_in(checked.file_of(KEYS[5]))) > 1
    with checked.open() as store:
        assert store._back is not None
        with store._back.parts.index.write() as txn:
            entry = txn.segment(*place)
            assert entry is not None
            txn.put_segment(*place, entry._replace(live_bytes=found.content.record_len, sealed=True))
    flip(checked.file_of(KEYS[5]), checked.offset(KEYS[5]) + 5000)
    assert checked.verify().damage == {"payload": 1, "index": 1}
    checked.check_repaired({KEYS[5]})


def test_an_index_that_names_the_place_of_another_payload(checked: Checked) -> None:
    """Which is no reason to give up what stands there."""
    one, other = checked.located[KEYS[5]], checked.located[KEYS[6]]
    assert one.tier.name == other.tier.name
    with checked.open() as store:
        assert store._back is not None
        with store._back.parts.index.write() as txn:
            content = txn.content(one.tier.tier_no, one.entry.content_id)
            assert content is not None
            wrong = content._replace(segment_no=other.content.segment_no, offset=other.content.offset)
            txn.put_content(one.tier.tier_no, one.entry.content_id, wrong)
    assert "another payload" in checked.verify().findings[0].what
    checked.check_repaired(set())


@pytest.mark.parametrize("spoil", [None, scribble, spoil_pages])
def test_an_index_is_made_anew(checked: Checked, spoil: Callable[[Path], None] | None) -> None:
    if spoil:
        spoil(checked.root / "index")
    events: list[Event] = []
    report = rebuild_index(checked.settings, listeners=[events.append])
    assert (report.rebuilt, report.records, report.damaged) == (True, len(checked.values), 0)
    assert checked.verify().is_sound
    progress = [e for e in events if isinstance(e, RebuildProgress)]
    for name in ("top", "low"):
        total = 2 * len(segments(checked.folder, name))
        assert [(e.segments_done, e.segments_total) for e in progress if e.tier == name] == [
            (n, total) for n in range(1, total + 1)
        ]


def test_a_store_that_this_process_has_open(checked: Checked) -> None:
    with checked.open(), pytest.raises(StoreLocked):
        checked.verify()


def test_an_index_that_is_written_to_while_it_is_read_is_read_again(
    checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once more, from a reader's view, which a writer does not touch."""
    answers, commits = iter([False, True]), itertools.count()
    monkeypatch.setattr(subject, "is_sound", lambda _: next(answers))
    monkeypatch.setattr(subject, "last_commit", lambda _: next(commits))
    assert checked.verify().is_sound
    assert next(answers, None) is None
