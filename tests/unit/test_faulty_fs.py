from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier.fs import FileSystem, default_file_system
from kvtier.testing import Call, FaultyFileSystem, SimulatedCrash

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a")


@pytest.fixture
def fs() -> FaultyFileSystem:
    return FaultyFileSystem(default_file_system(), power_loss=True)


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def synced_file(fs: FileSystem, path: str, data: bytes) -> int:
    fd = fs.open(path, create=True)
    fs.write_at(fd, [data], 0)
    fs.sync_data(fd)
    fs.sync_dir(os.path.dirname(path))
    return fd


# Counting


def test_trace_lists_mutating_calls_and_counts_has_all(fs: FaultyFileSystem, path: str) -> None:
    fd = synced_file(fs, path, b"abc")
    fs.read_at(fd, [memoryview(bytearray(9))], 0)
    fs.reserve(fd, 3, 5)
    fs.truncate(fd, 2)
    fs.close(fd)
    fs.rename(path, path + "2")
    fs.unlink(path + "2")
    folder = os.path.dirname(path)
    assert fs.trace == [
        Call("create", path),
        Call("write_at", path, 0, 3),
        Call("sync_data", path),
        Call("sync_dir", folder),
        Call("reserve", path, 3, 5),
        Call("truncate", path, 0, 2),
        Call("rename", path + "2"),
        Call("unlink", path + "2"),
    ]
    assert fs.calls == 8
    assert (fs.counts["read_at"], fs.counts["close"], fs.counts["open"]) == (1, 1, 0)
    assert (fs.bytes_written, fs.bytes_read) == (3, 3)


def test_durable_replacement_counts_as_its_steps_in_order(fs: FaultyFileSystem, path: str) -> None:
    fs.write_file_durably(path, b"abc")
    assert [c.op for c in fs.trace] == ["create", "write_at", "sync_data", "rename", "sync_dir"]


# Failing


def durable_replacement(fs: FileSystem, path: str) -> None:
    fs.write_file_durably(path, b"new")


def test_each_numbered_call_fails_in_its_turn(path: str) -> None:
    """Whatever step fails, the file is whole, nothing is left over, and the error is the one asked for."""
    default_file_system().write_file_durably(path, b"old")
    for n in range(1, 6):
        fs = FaultyFileSystem(default_file_system())
        fs.fail_at(n, errno.ENOSPC)
        with pytest.raises(OSError, match="No space") as e:
            durable_replacement(fs, path)
        assert e.value.errno == errno.ENOSPC
        assert content(path) == (b"old" if n <= 4 else b"new")
        assert os.listdir(os.path.dirname(path)) == ["a"]
        default_file_system().write_file_durably(path, b"old")


def test_a_fault_strikes_once_unless_lasting(fs: FaultyFileSystem, path: str) -> None:
    fd = fs.open(path, create=True)
    fs.fail_at(fs.calls + 1, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        fs.write_at(fd, [b"abc"], 0)
    assert fs.size(fd) == 0
    fs.write_at(fd, [b"abc"], 0)
    fs.fail_at(fs.calls + 1, errno.ENOSPC, lasting=True)
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            fs.write_at(fd, [b"xyz"], 0)
    fs.heal()
    fs.write_at(fd, [b"def"], 3)
    assert content(path) == b"abcdef"


def test_calls_can_be_numbered_by_name_reads_too(fs: FaultyFileSystem, path: str) -> None:
    fd = synced_file(fs, path, b"abc")
    fs.fail_at(2, errno.EIO, op="sync_data")
    fs.fail_at(2, errno.EIO, op="read_at")
    target = bytearray(3)
    fs.write_at(fd, [b"xyz"], 0)
    assert fs.read_at(fd, [memoryview(target)], 0) == 3
    with pytest.raises(OSError, match="Input/output"):
        fs.read_at(fd, [memoryview(target)], 0)
    with pytest.raises(OSError, match="Input/output"):
        fs.sync_data(fd)
    fs.sync_data(fd)


def test_short_write_leaves_its_part(fs: FaultyFileSystem, path: str) -> None:
    fd = fs.open(path, create=True)
    fs.short_write_at(1, 4, errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        fs.write_at(fd, [b"abc", memoryview(b"def")], 1)
    assert content(path) == b"\0abcd"
    assert fs.bytes_written == 4


# Crashing


def test_after_a_crash_every_call_is_dead_until_the_files_are_reaped(fs: FaultyFileSystem, path: str) -> None:
    fd = fs.open(path, create=True)
    lock = fs.lock(path + ".lock")
    fs.crash_at(2, written=2)
    with pytest.raises(SimulatedCrash):
        fs.write_at(fd, [b"abc"], 0)
    assert fs.crashed
    dead: list[Callable[[], object]] = [
        lambda: fs.write_at(fd, [b"abc"], 0),
        lambda: fs.read_at(fd, [], 0),
        lambda: fs.open(path),
        lambda: fs.sync_data(fd),
        lambda: fs.exists(path),
        lambda: fs.write_file_durably(path, b""),
        lambda: fs.close(fd),
        lambda: fs.unlock(lock),
    ]
    for call in dead:
        with pytest.raises(SimulatedCrash):
            call()
    assert content(path) == b"ab"
    with pytest.raises(BlockingIOError):
        default_file_system().lock(path + ".lock")
    fs.reap()
    default_file_system().unlock(default_file_system().lock(path + ".lock"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_crash_is_no_exception_that_a_handler_could_swallow(fs: FaultyFileSystem, path: str) -> None:
    fs.crash()
    with pytest.raises(SimulatedCrash):  # noqa: PT012
        try:
            fs.exists(path)
        except Exception:
            pytest.fail("swallowed")


def test_a_crash_in_each_step_of_a_replacement_leaves_old_or_new(path: str) -> None:
    for n in range(1, 6):
        default_file_system().write_file_durably(path, b"old")
        fs = FaultyFileSystem(default_file_system())
        fs.crash_at(n)
        with pytest.raises(SimulatedCrash):
            durable_replacement(fs, path)
        fs.reap()
        assert content(path) == (b"old" if n <= 4 else b"new")


def test_on_call_can_hold_a_thread_at_a_chosen_call(fs: FaultyFileSystem, path: str) -> None:
    fd = fs.open(path, create=True)
    reached, go = threading.Event(), threading.Event()

    def hold(call: Call) -> None:
        if call.op == "sync_data":
            reached.set()
            assert go.wait(30)

    fs.on_call = hold
    thread = threading.Thread(target=fs.sync_data, args=(fd,))
    thread.start()
    assert reached.wait(30)
    assert fs.size(fd) == 0  # others go on meanwhile
    assert fs.counts["sync_data"] == 0
    go.set()
    thread.join()
    assert fs.counts["sync_data"] == 1


# Losing power


def test_without_the_undo_log_power_cannot_be_lost() -> None:
    with pytest.raises(ValueError, match="power_loss=True"):
        FaultyFileSystem(default_file_system()).lose_unsynced(1)


def test_synced_bytes_stay_and_unsynced_go(fs: FaultyFileSystem, path: str) -> None:
    fd = synced_file(fs, path, b"a" * 2 * PAGE)
    fs.write_at(fd, [b"b" * PAGE], PAGE)
    fs.write_at(fd, [b"c" * PAGE], 2 * PAGE)
    assert content(path) == b"a" * PAGE + b"b" * PAGE + b"c" * PAGE
    lost = fs.lose_unsynced(1, keep_probability=0)
    assert content(path) == b"a" * 2 * PAGE
    assert lost == ["a: page 1", "a: page 2", f"a: size {2 * PAGE} instead of {3 * PAGE}"]


def test_pages_are_lost_one_by_one_and_growth_may_leave_zeros(tmp_path: Path) -> None:
    seen: set[bytes] = set()
    for seed in range(150):
        fs = FaultyFileSystem(default_file_system(), power_loss=True)
        path = str(tmp_path / f"{seed}")
        fd = synced_file(fs, path, b"aa")
        fs.write_at(fd, [b"a" * (PAGE - 2) + b"b" * PAGE + b"c"], 2)
        fs.lose_unsynced(seed)
        data = content(path)
        assert data[:2] == b"aa"
        seen.add(bytes(data[i] for i in (0, 2, PAGE, 2 * PAGE) if i < len(data)))
    assert {b"a", b"aa", b"aab", b"aabc", b"aa\0c", b"a\0bc", b"a\0\0c", b"a\0\0\0"} <= seen
    assert len(seen) == 12  # each of three pages kept or lost, times the tail: zeros, or cut off


def test_a_cut_is_lost_or_kept_as_a_whole(tmp_path: Path) -> None:
    seen = set()
    for seed in range(40):
        fs = FaultyFileSystem(default_file_system(), power_loss=True)
        path = str(tmp_path / f"{seed}")
        fd = synced_file(fs, path, b"a" * 3 * PAGE + b"z")
        fs.truncate(fd, PAGE + 10)
        fs.lose_unsynced(seed)
        seen.add(content(path))
    assert seen == {b"a" * 3 * PAGE + b"z", b"a" * (PAGE + 10)}


def test_punched_pages_may_come_back(fs: FaultyFileSystem, path: str) -> None:
    fd = synced_file(fs, path, b"a" * 3 * PAGE)
    fs.punch(fd, PAGE, PAGE)
    fs.lose_unsynced(1, keep_probability=0)
    assert content(path) == b"a" * 3 * PAGE


def test_a_sync_after_a_failed_one_saves_nothing_that_was_not_written_again(fs: FaultyFileSystem, path: str) -> None:
    fd = synced_file(fs, path, b"a" * 3 * PAGE)
    fs.write_at(fd, [b"b" * 2 * PAGE], 0)
    fs.fail_at(2, errno.EIO, op="sync_data")
    with pytest.raises(OSError, match="Input/output"):
        fs.sync_data(fd)
    fs.write_at(fd, [b"c" * 2 * PAGE], PAGE)
    fs.sync_data(fd)  # succeeds, as on a real kernel
    assert fs.lose_unsynced(1, keep_probability=0) == ["a: page 0"]
    assert content(path) == b"a" * PAGE + b"c" * 2 * PAGE


def test_names_need_the_folder_synced(fs: FaultyFileSystem, tmp_path: Path) -> None:
    a, b, c = (str(tmp_path / name) for name in "abc")
    fs.close(synced_file(fs, a, b"a"))
    fs.close(synced_file(fs, b, b"b"))
    fd = fs.open(c, create=True)
    fs.write_at(fd, [b"c"], 0)
    fs.sync_data(fd)  # its bytes, not its name
    fs.rename(a, b)
    fs.unlink(b)
    assert sorted(os.listdir(tmp_path)) == ["c"]
    fs.lose_unsynced(1, keep_probability=0)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (content(a), content(b)) == (b"a", b"b")


def test_names_are_lost_from_a_point_on(tmp_path: Path) -> None:
    seen = set()
    for seed in range(40):
        folder = tmp_path / f"{seed}"
        folder.mkdir()
        fs = FaultyFileSystem(default_file_system(), power_loss=True)
        for name in "abc":
            fs.close(fs.open(str(folder / name), create=True))
        fs.lose_unsynced(seed)
        seen.add("".join(sorted(os.listdir(folder))))
    assert seen == {"", "a", "ab", "abc"}


def test_a_replacement_survives_power_loss_as_old_or_new(path: str) -> None:
    folder = os.path.dirname(path)
    seen = set()
    for n in range(1, 7):
        for seed in range(8):
            plain = default_file_system()
            for name in plain.list_dir(folder):
                plain.unlink(os.path.join(folder, name))
            plain.write_file_durably(path, b"old" * 2000)
            fs = FaultyFileSystem(default_file_system(), power_loss=True)
            fs.crash_at(n)
            with contextlib.suppress(SimulatedCrash):
                fs.write_file_durably(path, b"new" * 2000)
            fs.lose_unsynced(seed)
            seen.add((n, content(path)[:3]))
            assert content(path) in (b"old" * 2000, b"new" * 2000)
    assert (6, b"old") not in seen  # it had returned
    assert {(5, b"old"), (5, b"new")} <= seen  # renamed, folder not synced


# Everything at once, against a model that knows only what the syncs promise

steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 5 * PAGE), st.integers(1, 2 * PAGE)),
        st.tuples(st.just("truncate"), st.integers(0, 5 * PAGE), st.just(0)),
        st.tuples(st.just("sync"), st.just(0), st.just(0)),
        st.tuples(st.just("replace"), st.just(0), st.just(0)),
    ),
    max_size=12,
)


@given(steps=steps, seed=st.integers(0, 1000), keep=st.sampled_from([0.0, 0.5, 1.0]))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_loss_is_bounded_by_the_syncs(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], seed: int, keep: float
) -> None:
    folder = str(tmp_path_factory.mktemp("loss"))
    path = os.path.join(folder, "a")
    fs = FaultyFileSystem(default_file_system(), power_loss=True)
    fd = synced_file(fs, path, b"")
    versions = [b""]  # of the content since the last sync, the durable one first
    rng = random.Random(seed)
    for op, at, length in steps:
        now = versions[-1]
        if op == "write":
            data = rng.randbytes(length)
            fs.write_at(fd, [data], at)
            versions.append(now.ljust(at, b"\0")[:at] + data + now[at + length :])
        elif op == "truncate":
            fs.truncate(fd, at)
            versions.append(now[:at].ljust(at, b"\0"))
        elif op == "sync":
            fs.sync_data(fd)
            versions = [now]
        else:  # the other files of the folder do not matter to it
            fs.write_file_durably(path + "2", b"x")
    fs.lose_unsynced(seed, keep)
    after = content(path)
    if keep == 0:
        assert after == versions[0]
    elif keep == 1:
        assert after == versions[-1]
    for start in range(0, len(after), PAGE):
        page = after[start : start + PAGE]
        candidates = {v[start : start + PAGE].ljust(PAGE, b"\0")[: len(page)] for v in (versions[0], versions[-1])}
        assert page in candidates
