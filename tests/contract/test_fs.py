"""All file systems, the fault-injecting one too, against the contract; then what is special to each."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.register_assert_rewrite("kvtier.testing.fs_contract")

from kvtier import _platform  # noqa: E402
from kvtier.fs import FileSystem, OsFileSystem, PortableFileSystem, default_file_system  # noqa: E402
from kvtier.testing import FaultyFileSystem  # noqa: E402
from kvtier.testing.fs_contract import FileSystemContract, raises_errno  # noqa: E402

needs_vector_io = pytest.mark.skipif(not _platform.HAS_VECTOR_IO, reason="the platform has no preadv")
needs_fallocate = pytest.mark.skipif(sys.platform != "linux", reason="fallocate is Linux's")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")


@needs_vector_io
class TestOsFileSystem(FileSystemContract):
    @pytest.fixture
    def fs(self) -> FileSystem:
        return OsFileSystem()


class TestPortableFileSystem(FileSystemContract):
    @pytest.fixture
    def fs(self) -> FileSystem:
        return PortableFileSystem()

    def test_refuses_a_descriptor_that_is_not_its_own(self, fs: FileSystem) -> None:
        with pytest.raises(OSError, match="not a descriptor") as e:
            fs.write_at(0, [b"x"], 0)
        assert e.value.errno == errno.EBADF


class TestFaultyFileSystem(FileSystemContract):
    @pytest.fixture
    def fs(self) -> FileSystem:
        return FaultyFileSystem(default_file_system(), power_loss=True)


@needs_vector_io
class TestOsFileSystemWithoutFallocate(FileSystemContract):
    @pytest.fixture
    def fs(self, monkeypatch: pytest.MonkeyPatch) -> FileSystem:
        monkeypatch.setattr(_platform, "_fallocate", None)
        return OsFileSystem()


def test_default_is_chosen_by_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_platform, "HAS_VECTOR_IO", True)
    assert type(default_file_system()) is OsFileSystem
    monkeypatch.setattr(_platform, "HAS_VECTOR_IO", False)
    assert type(default_file_system()) is PortableFileSystem


# Short transfers: the kernel may do part of what it was asked, at any byte


class _Stingy:
    """preadv and pwritev that transfer at most so many bytes a call."""

    def __init__(self, allow: Callable[[], int]) -> None:
        self.allow = allow

    def pwritev(self, fd: int, views: list[memoryview], offset: int) -> int:
        return os.pwrite(fd, b"".join(views)[: self.allow()], offset)

    def preadv(self, fd: int, views: list[memoryview], offset: int) -> int:
        data = memoryview(os.pread(fd, min(self.allow(), sum(v.nbytes for v in views)), offset))
        done = 0
        for view in views:
            part = data[done : done + view.nbytes]
            view[: part.nbytes] = part
            done += part.nbytes
        return done


@needs_vector_io
@given(
    pieces=st.lists(st.binary(max_size=20), max_size=12),
    allowed=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    iov_max=st.integers(1, 4),
)
def test_short_writes_and_reads_are_continued(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], allowed: list[int], iov_max: int
) -> None:
    turn = iter(allowed * 300)
    stingy = _Stingy(lambda: next(turn))
    fs = OsFileSystem()
    fd = fs.open(str(tmp_path_factory.mktemp("short") / "a"), create=True)
    whole = b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_platform, "pwritev", stingy.pwritev)
        patch.setattr(_platform, "preadv", stingy.preadv)
        patch.setattr(_platform, "IOV_MAX", iov_max)
        assert fs.write_at(fd, pieces, 3) == len(whole)
        targets = [bytearray(len(p)) for p in pieces]
        assert fs.read_at(fd, [memoryview(t) for t in targets], 3) == len(whole)
    assert fs.size(fd) == (3 + len(whole) if whole else 0)
    assert targets == pieces
    fs.close(fd)


@pytest.mark.parametrize("kind", [pytest.param(OsFileSystem, marks=needs_vector_io), PortableFileSystem])
def test_a_write_without_progress_is_an_error(
    kind: type[PortableFileSystem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = kind()
    fd = fs.open(str(tmp_path / "a"), create=True)
    monkeypatch.setattr(_platform, "pwritev", lambda *_: 0)
    monkeypatch.setattr(os, "write", lambda *_: 0)
    with pytest.raises(OSError, match="no progress"):
        fs.write_at(fd, [b"abc"], 0)
    monkeypatch.undo()
    fs.close(fd)


def test_portable_continues_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, write = PortableFileSystem(), os.write
    path = str(tmp_path / "a")
    fd = fs.open(path, create=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda f, view: write(f, view[:2]))
        assert fs.write_at(fd, [b"abcde", b"fgh"], 0) == 8
    fs.close(fd)
    assert fs.read_file(path, 8) == b"abcdefgh"


# Syncs


def test_full_sync_is_asked_for_where_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Fcntl:
        F_FULLFSYNC = 51
        refusal: int | None = None

        def fcntl(self, fd: int, command: int) -> None:
            asked.append("full")
            if self.refusal is not None:
                raise OSError(self.refusal, os.strerror(self.refusal))

    fake = Fcntl()
    fs = PortableFileSystem()
    fd = fs.open(str(tmp_path / "a"), create=True)
    monkeypatch.setattr(_platform, "_fcntl", fake)
    monkeypatch.setattr(_platform, "_fdatasync", lambda fd: asked.append("plain"))
    fs.sync_data(fd)
    assert asked == ["full"]
    fake.refusal = errno.ENOTSUP  # the volume cannot: plain fsync is all there is
    fs.sync_data(fd)
    assert asked == ["full", "full", "plain"]
    fake.refusal = errno.EIO  # a failed sync, which a second, plain one must not cover up
    with raises_errno(errno.EIO):
        fs.sync_data(fd)
    assert asked == ["full", "full", "plain", "full"]
    fs.close(fd)


@needs_vector_io
def test_folder_sync_tolerates_only_that_it_is_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = errno.EINVAL

    def fsync(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    OsFileSystem().sync_dir(str(tmp_path))
    code = errno.EIO
    with raises_errno(errno.EIO):
        OsFileSystem().sync_dir(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        OsFileSystem().sync_dir(str(tmp_path / "none"))


@needs_vector_io
def test_make_dir_syncs_each_parent_it_adds_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(OsFileSystem, "sync_dir", lambda self, path: synced.append(path))
    OsFileSystem().make_dir(str(tmp_path / "x" / "y"))
    assert synced == [str(tmp_path), str(tmp_path / "x")]


# fallocate


@pytest.fixture
def fallocate_fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], list[int]]:
    def fail(codes: list[int]) -> list[int]:
        left = list(codes)

        def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
            if not left:
                return 0
            ctypes.set_errno(left.pop(0))
            return -1

        monkeypatch.setattr(_platform, "_fallocate", fallocate)
        return left

    return fail


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_unsupported_fallocate_is_no_error(
    tmp_path: Path, fallocate_fails: Callable[[list[int]], Any], code: int
) -> None:
    fs = OsFileSystem()
    fd = fs.open(str(tmp_path / "a"), create=True)
    fallocate_fails([code, code])
    fs.reserve(fd, 0, 4096)
    assert fs.punch(fd, 0, 4096) is False
    fs.close(fd)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_failed_fallocate_raises(tmp_path: Path, fallocate_fails: Callable[[list[int]], Any], code: int) -> None:
    fs = OsFileSystem()
    fd = fs.open(str(tmp_path / "a"), create=True)
    fallocate_fails([code, code])
    for call in (fs.reserve, fs.punch):
        with raises_errno(code):
            call(fd, 0, 4096)
    fs.close(fd)


def test_interrupted_fallocate_goes_on(tmp_path: Path, fallocate_fails: Callable[[list[int]], list[int]]) -> None:
    fs = OsFileSystem()
    fd = fs.open(str(tmp_path / "a"), create=True)
    left = fallocate_fails([errno.EINTR, errno.EINTR])
    assert fs.punch(fd, 0, 4096) is True
    assert left == []
    fs.close(fd)


@needs_fallocate
def test_linux_reserves_and_punches_for_real(tmp_path: Path) -> None:
    fs = OsFileSystem()
    fd = fs.open(str(tmp_path / "a"), create=True)
    fs.reserve(fd, 0, 8 << 20)
    if fs.disk_bytes(fd) == 0:
        pytest.skip("the file system under the temporary folder has no fallocate")
    assert fs.disk_bytes(fd) >= 8 << 20
    assert fs.size(fd) == 0
    with raises_errno(errno.ENOSPC, errno.EFBIG):
        fs.reserve(fd, 0, 1 << 60)
    fs.close(fd)


# Locks across processes


def _run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args], capture_output=True, text=True, timeout=60
    )


TAKE = """
    import sys
    from kvtier.fs import default_file_system
    try:
        default_file_system().lock(sys.argv[1])
        print("got it")
    except BlockingIOError:
        print("held by", default_file_system().lock_holder(sys.argv[1]))
"""


def test_lock_bars_other_processes_and_ends_with_its_own(tmp_path: Path) -> None:
    path, fs = str(tmp_path / "lock"), default_file_system()
    fd = fs.lock(path)
    assert _run(TAKE, path).stdout == f"held by {os.getpid()}\n"
    fs.unlock(fd)
    assert _run(TAKE, path).stdout == "got it\n"  # and it ended without unlock()
    fs.unlock(fs.lock(path))


@needs_fork
def test_unlock_releases_even_while_a_forked_child_lives(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    done = _run(
        """
        import os, sys
        from kvtier.fs import default_file_system
        fs = default_file_system()
        fd = fs.lock(sys.argv[1])
        r, w = os.pipe()
        if os.fork() == 0:
            os.close(w)
            os.read(r, 1)  # until the parent ends
            os._exit(0)
        fs.unlock(fd)
        fs.lock(sys.argv[1])
        print("again")
        """,
        path,
    )
    assert (done.stdout, done.stderr) == ("again\n", "")


def test_a_full_disk_does_not_keep_the_lock_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    fs, path = default_file_system(), str(tmp_path / "lock")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        fd = fs.lock(path)
    assert fs.lock_holder(path) is None
    with pytest.raises(BlockingIOError):
        fs.lock(path)
    fs.unlock(fd)


def test_windows_lock_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The msvcrt branch, with a stand-in: the byte it locks is far from the pid."""

    class Msvcrt:
        LK_NBLCK, LK_UNLCK = 2, 0
        holder: int | None = None

        def locking(self, fd: int, mode: int, nbytes: int) -> None:
            assert os.lseek(fd, 0, os.SEEK_CUR) >= 1 << 30
            assert nbytes == 1
            if mode == self.LK_UNLCK:
                self.holder = None
            elif self.holder is not None:
                raise PermissionError(errno.EACCES, "held")
            else:
                self.holder = fd

    monkeypatch.setattr(_platform, "_fcntl", None)
    monkeypatch.setattr(_platform, "_msvcrt", Msvcrt())
    fs, path = PortableFileSystem(), str(tmp_path / "lock")
    fd = fs.lock(path)
    assert fs.lock_holder(path) == os.getpid()
    with pytest.raises(BlockingIOError):
        fs.lock(path)
    fs.unlock(fd)
    fs.unlock(fs.lock(path))
    monkeypatch.setattr(_platform, "_msvcrt", None)
    with pytest.raises(OSError, match="no file locks"):
        fs.lock(path)
