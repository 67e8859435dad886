"""What every :class:`kvtier.fs.FileSystem` must do, as a pytest class to inherit::

    import pytest

    pytest.register_assert_rewrite("kvtier.testing.fs_contract")  # before the import: readable failures
    from kvtier.testing.fs_contract import FileSystemContract

    class TestMyFileSystem(FileSystemContract):
        @pytest.fixture
        def fs(self):
            return MyFileSystem()

Override ``folder`` (an empty folder's absolute path) if yours does not live on the local disk.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from kvtier.fs import FileSystem

posix_modes = pytest.mark.skipif(sys.platform == "win32", reason="the platform has no POSIX file modes")


def raises_errno(*codes: int) -> AbstractContextManager[object]:
    """Expect an :class:`OSError` with one of these numbers."""
    return pytest.raises(OSError, match=rf"^\[Errno ({'|'.join(map(str, codes))})\]")


class FileSystemContract:
    """Needs a fixture ``fs``. Subclasses may add tests of what only they promise."""

    @pytest.fixture
    def fs(self) -> FileSystem:
        raise NotImplementedError("override the fixture `fs`")

    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        return str(tmp_path)

    # Opening

    def test_create_is_exclusive(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "a")
        fs.close(fs.open(path, create=True))
        with pytest.raises(FileExistsError):
            fs.open(path, create=True)

    def test_open_of_nothing_raises(self, fs: FileSystem, folder: str) -> None:
        with pytest.raises(FileNotFoundError):
            fs.open(os.path.join(folder, "a"), write=True)
        assert fs.list_dir(folder) == []

    def test_read_only_descriptor_refuses_writes(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "a")
        fs.close(fs.open(path, create=True))
        fd = fs.open(path)
        with raises_errno(errno.EBADF, errno.EACCES, errno.EPERM):
            fs.write_at(fd, [b"x"], 0)
        assert fs.size(fd) == 0
        fs.close(fd)

    def test_reopened_for_writing_keeps_the_content(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "a")
        fd = fs.open(path, create=True)
        fs.write_at(fd, [b"abcdef"], 0)
        fs.close(fd)
        fd = fs.open(path, write=True)
        fs.write_at(fd, [b"XY"], 2)
        fs.close(fd)
        assert fs.read_file(path, 100) == b"abXYef"

    def test_descriptors_are_not_inherited(self, fs: FileSystem, folder: str) -> None:
        fd = fs.open(os.path.join(folder, "a"), create=True)
        assert not os.get_inheritable(fd)
        fs.close(fd)

    @posix_modes
    def test_links_are_not_followed(self, fs: FileSystem, folder: str) -> None:
        target, link = os.path.join(folder, "target"), os.path.join(folder, "link")
        fs.close(fs.open(target, create=True))
        os.symlink(target, link)
        for write in (False, True):
            with raises_errno(errno.ELOOP):
                fs.open(link, write=write)
        with raises_errno(errno.ELOOP):
            fs.lock(link)

    @posix_modes
    def test_files_and_folders_are_private(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "x", "y", "a")
        fs.make_dir(os.path.dirname(path))
        fs.close(fs.open(path, create=True))
        fs.unlock(fs.lock(path + ".lock"))
        modes = [os.stat(p).st_mode & 0o777 for p in (path, path + ".lock", os.path.dirname(path))]
        assert modes == [0o600, 0o600, 0o700]
        assert os.stat(os.path.join(folder, "x")).st_mode & 0o777 == 0o700

    # Contents

    def test_many_buffers_there_and_back(self, fs: FileSystem, folder: str) -> None:
        pieces = [bytes([i % 251]) * (i % 7) for i in range(3000)]  # more than any IOV_MAX, some empty
        fd = fs.open(os.path.join(folder, "a"), create=True)
        whole = b"".join(pieces)
        assert fs.write_at(fd, pieces, 5) == len(whole)
        assert fs.size(fd) == 5 + len(whole)
        targets = [bytearray(len(p)) for p in pieces]
        assert fs.read_at(fd, [memoryview(t) for t in targets], 5) == len(whole)
        assert targets == pieces
        fs.close(fd)

    def test_a_large_value_is_written_and_read_whole(self, fs: FileSystem, folder: str) -> None:
        value = os.urandom(1 << 16) * 128
        fd = fs.open(os.path.join(folder, "a"), create=True)
        assert fs.write_at(fd, [memoryview(value)[:100], memoryview(value)[100:]], 0) == len(value)
        back = bytearray(len(value))
        assert fs.read_at(fd, [memoryview(back)], 0) == len(value)
        assert back == value
        fs.close(fd)

    def test_read_is_short_only_at_the_end(self, fs: FileSystem, folder: str) -> None:
        fd = fs.open(os.path.join(folder, "a"), create=True)
        fs.write_at(fd, [b"abcdefgh"], 0)
        first, second = bytearray(b"...."), bytearray(b"....")
        assert fs.read_at(fd, [memoryview(first), memoryview(second)], 2) == 6
        assert bytes(first + second) == b"cdefgh.."
        assert fs.read_at(fd, [memoryview(first)], 8) == 0
        assert fs.read_at(fd, [memoryview(first)], 1000) == 0
        assert first == b"cdef"
        fs.close(fd)

    def test_nothing_to_write_or_read_is_no_error(self, fs: FileSystem, folder: str) -> None:
        fd = fs.open(os.path.join(folder, "a"), create=True)
        assert fs.write_at(fd, [], 10) == fs.write_at(fd, [b"", memoryview(b"")], 10) == 0
        assert fs.read_at(fd, [], 0) == 0
        assert fs.size(fd) == 0
        fs.close(fd)

    def test_gap_before_a_write_reads_as_zeros(self, fs: FileSystem, folder: str) -> None:
        fd = fs.open(os.path.join(folder, "a"), create=True)
        fs.write_at(fd, [b"x"], 10_000)
        back = bytearray(b"?" * 10_001)
        fs.read_at(fd, [memoryview(back)], 0)
        assert back == bytes(10_000) + b"x"
        fs.close(fd)

    def test_truncate_cuts_and_extends(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "a")
        fd = fs.open(path, create=True)
        fs.write_at(fd, [b"abcdef"], 0)
        fs.truncate(fd, 3)
        assert fs.read_file(path, 10) == b"abc"
        fs.truncate(fd, 5)
        assert fs.read_file(path, 10) == b"abc\0\0"
        fs.close(fd)

    def test_threads_share_a_descriptor(self, fs: FileSystem, folder: str) -> None:
        fd = fs.open(os.path.join(folder, "a"), create=True)
        together = threading.Barrier(4)

        def work(number: int) -> bool:
            together.wait()
            good = True
            for round_ in range(50):
                at = (round_ * 4 + number) * 1000
                wrote = os.urandom(1000)
                fs.write_at(fd, [wrote[:300], wrote[300:]], at)
                back = bytearray(1000)
                fs.read_at(fd, [memoryview(back)[:700], memoryview(back)[700:]], at)
                good = good and back == wrote
            return good

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, range(4))) == [True] * 4
        fs.close(fd)

    def test_synced_file_is_complete(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "a")
        fd = fs.open(path, create=True)
        fs.write_at(fd, [b"abc"], 0)
        fs.sync_data(fd)
        fs.sync_dir(folder)
        fs.close(fd)
        assert fs.read_file(path, 3) == b"abc"

    # Space

    def test_reserve_changes_neither_size_nor_content(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "a")
        fd = fs.open(path, create=True)
        fs.write_at(fd, [b"abc"], 0)
        fs.reserve(fd, 0, 1 << 20)
        fs.reserve(fd, 0, 0)
        assert fs.size(fd) == 3
        assert fs.read_file(path, 10) == b"abc"
        fs.close(fd)

    def test_cutting_to_its_own_size_gives_reserved_space_back(self, fs: FileSystem, folder: str) -> None:
        fd = fs.open(os.path.join(folder, "a"), create=True)
        fs.write_at(fd, [b"abc"], 0)
        fs.reserve(fd, 0, 1 << 20)
        fs.truncate(fd, 3)
        assert fs.size(fd) == 3
        assert fs.disk_bytes(fd) < 1 << 20
        fs.close(fd)

    def test_punch_frees_space_or_says_that_it_cannot(self, fs: FileSystem, folder: str) -> None:
        mib = 1 << 20
        fd = fs.open(os.path.join(folder, "a"), create=True)
        fs.write_at(fd, [b"x" * (3 * mib)], 0)
        fs.sync_data(fd)
        before = fs.disk_bytes(fd)
        punched = fs.punch(fd, mib, mib)
        back = bytearray(3 * mib)
        assert fs.read_at(fd, [memoryview(back)], 0) == 3 * mib == fs.size(fd)
        if punched:
            assert back == b"x" * mib + bytes(mib) + b"x" * mib
            assert before - fs.disk_bytes(fd) == mib
        else:
            assert back == b"x" * (3 * mib)
        fs.close(fd)

    def test_hints_lose_nothing(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "a")
        fd = fs.open(path, create=True)
        fs.write_at(fd, [b"abc"], 0)
        fs.expect_jumps(fd)
        fs.bypass_cache(fd)
        fs.drop_cache(fd)
        assert fs.read_file(path, 3) == b"abc"
        fs.close(fd)

    @pytest.mark.parametrize("is_cached", [True, False])
    def test_long_reads_and_writes_past_the_cache_are_right(self, fs: FileSystem, folder: str, is_cached: bool) -> None:
        path = os.path.join(folder, "a")
        value = os.urandom(1 << 16) * 200 + b"an odd end"
        writer = fs.open(path, create=True)
        reader = fs.open(path)
        for fd in (reader, writer):
            fs.bypass_cache(fd)
        assert fs.write_at(writer, [value[:5000], value[5000 : 3 << 20]], 0) == 3 << 20
        assert fs.write_at(writer, [value[(3 << 20) - 100 :]], (3 << 20) - 100) == len(value) - (3 << 20) + 100
        assert fs.size(reader) == len(value)

        def read(offset: int, sizes: list[int]) -> bytes:
            if not is_cached:
                fs.sync_data(writer)
                fs.drop_cache(writer)
            targets = [bytearray(size) for size in sizes]
            count = fs.read_at(reader, [memoryview(t) for t in targets], offset)
            return b"".join(targets)[:count]

        assert read(0, [len(value)]) == value
        assert read(4097, [1, 5000, 0, 6 << 20, 77]) == value[4097 : 4097 + 5078 + (6 << 20)]
        assert read(len(value) - (3 << 20), [2 << 20, 2 << 20]) == value[-(3 << 20) :]  # ends before the buffers do
        assert read(len(value), [2 << 20]) == read(len(value) + 9000, [2 << 20]) == b""
        fs.write_at(writer, [b"newer"], 2 << 20)
        fs.write_at(writer, [b" and more"], len(value))
        assert read((2 << 20) - 3, [2 << 20])[3:8] == b"newer"
        assert read(1 << 20, [len(value)])[-19:] == b"an odd end and more"
        fs.close(reader)
        fs.close(writer)

    def test_disk_sizes_are_plausible(self, fs: FileSystem, folder: str) -> None:
        assert 0 <= fs.disk_free(folder) <= fs.disk_total(folder)
        assert fs.disk_total(folder) > 0

    # Names

    def test_make_dir_makes_parents_and_accepts_what_exists(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "x", "y")
        fs.make_dir(path)
        fs.make_dir(path)
        assert fs.list_dir(folder) == ["x"]
        assert fs.list_dir(os.path.join(folder, "x")) == ["y"]

    def test_make_dir_where_a_file_is_raises(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "a")
        fs.close(fs.open(path, create=True))
        with pytest.raises(FileExistsError):
            fs.make_dir(path)

    def test_list_dir_is_sorted(self, fs: FileSystem, folder: str) -> None:
        for name in ("b", "c", "a"):
            fs.close(fs.open(os.path.join(folder, name), create=True))
        assert fs.list_dir(folder) == ["a", "b", "c"]
        with pytest.raises(FileNotFoundError):
            fs.list_dir(os.path.join(folder, "none"))

    def test_rename_replaces(self, fs: FileSystem, folder: str) -> None:
        a, b = os.path.join(folder, "a"), os.path.join(folder, "b")
        fs.write_file_durably(a, b"new")
        fs.write_file_durably(b, b"old")
        fs.rename(a, b)
        assert fs.list_dir(folder) == ["b"]
        assert fs.read_file(b, 10) == b"new"
        with pytest.raises(FileNotFoundError):
            fs.rename(a, b)

    def test_unlink_and_exists(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "a")
        assert not fs.exists(path)
        fs.close(fs.open(path, create=True))
        assert fs.exists(path)
        assert fs.exists(folder)
        fs.unlink(path)
        assert not fs.exists(path)
        with pytest.raises(FileNotFoundError):
            fs.unlink(path)

    def test_write_file_durably_replaces_whole_files(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "a")
        fs.close(fs.open(path + ".tmp", create=True))  # left by a crash
        for data in (b"one, and longer", b"two", b""):
            fs.write_file_durably(path, data)
            assert fs.read_file(path, 100) == data
            assert fs.list_dir(folder) == ["a"]

    def test_read_file_refuses_what_is_too_long(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "a")
        fs.write_file_durably(path, b"abcd")
        assert fs.read_file(path, 4) == b"abcd"
        with raises_errno(errno.EFBIG):
            fs.read_file(path, 3)

    # Locks

    def test_lock_is_exclusive_until_unlocked(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "lock")
        assert fs.lock_holder(path) is None
        first = fs.lock(path)
        assert fs.lock_holder(path) == os.getpid()
        with pytest.raises(BlockingIOError):
            fs.lock(path)
        assert fs.lock_holder(path) == os.getpid()  # the refused one changed nothing
        fs.unlock(first)
        assert fs.lock_holder(path) is None
        fs.unlock(fs.lock(path))

    def test_lock_file_with_other_content_names_no_holder(self, fs: FileSystem, folder: str) -> None:
        path = os.path.join(folder, "lock")
        fs.write_file_durably(path, b"not a number")
        assert fs.lock_holder(path) is None
        fd = fs.lock(path)
        assert fs.lock_holder(path) == os.getpid()
        fs.unlock(fd)
