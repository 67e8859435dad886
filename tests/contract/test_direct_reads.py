"""Direct reads: past the system's cache, where long ones are asked for and jumps are expected. The contract has what
they must bring; here is when they are made."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kvtier import Store, _platform, direct
from kvtier.fs import OsFileSystem
from kvtier.pool import BufferPool
from tests.stores import KIB, MIB, config, names, tier, value_of
from tests.stores import fill as stored

pytestmark = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="the platform has no direct reads")


class _Disk:
    """A file of 3 MiB and a bit on a file system that can read directly, and what was read of it how."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.fs = OsFileSystem()
        self.value = os.urandom(3 << 20) + b"the end"
        self.direct: list[int] = []  #: bytes of each direct read
        self.allow = 1 << 30  #: bytes of one at most
        self.error: int | None = None
        self.fd = self.fs.open(str(folder / "a"), create=True)
        self.fs.write_at(self.fd, [self.value], 0)
        self._preadv, self._reopen = _platform.preadv, _platform.reopen_direct
        self._twins: set[int | None] = set()
        patch.setattr(_platform, "reopen_direct", self._reopened)
        patch.setattr(_platform, "preadv", self._read)
        twin = self._reopen(self.fd)
        if twin is None:
            pytest.skip("the file system under the temporary folder has no direct reads")
        os.close(twin)

    def forget(self) -> None:
        """Nothing of the file is in the cache any more."""
        self.fs.sync_data(self.fd)
        self.fs.drop_cache(self.fd)
        if _platform.cached_bytes(self.fd, 0, len(self.value)):
            pytest.skip("the file system under the temporary folder is in memory")

    def read(self) -> bytes:
        targets = [bytearray(n) for n in (100, 1 << 20, len(self.value) - (1 << 20) - 100)]
        assert self.fs.read_at(self.fd, [memoryview(t) for t in targets], 0) == len(self.value)
        return b"".join(targets)

    def _reopened(self, fd: int) -> int | None:
        twin = self._reopen(fd)
        self._twins.add(twin)
        return twin

    def _read(self, fd: int, views: list[memoryview], offset: int) -> int:
        if fd not in self._twins:
            count: int = self._preadv(fd, views, offset)
            return count
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        count = self._preadv(fd, [views[0][: self.allow]], offset)
        self.direct.append(count)
        return count


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Disk]:
    made = _Disk(tmp_path, monkeypatch)
    made.fs.expect_jumps(made.fd)
    yield made
    made.fs.close(made.fd)


@pytest.fixture
def ssd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Disk]:
    """Of which nothing is said."""
    made = _Disk(tmp_path, monkeypatch)
    yield made
    made.fs.close(made.fd)


def test_a_long_read_is_one_direct_read(disk: _Disk) -> None:
    disk.forget()
    assert disk.read() == disk.value
    assert disk.direct == [len(disk.value)]
    short = bytearray(direct.LEAST_BYTES - 1)
    assert disk.fs.read_at(disk.fd, [memoryview(short)], 5) == len(short)
    assert short == disk.value[5 : 5 + len(short)]
    assert len(disk.direct) == 1


def test_what_is_in_the_cache_comes_from_there(disk: _Disk) -> None:
    if not _platform.cached_bytes(disk.fd, 0, 1 << 20):
        pytest.skip("this system does not say what is in its cache")
    with mmap.mmap(disk.fd, len(disk.value), prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == disk.value  # what is mapped stays there, even if somebody has the system drop its caches
        assert disk.read() == disk.value
    assert disk.direct == []


def test_short_direct_reads_are_continued(disk: _Disk) -> None:
    disk.forget()
    disk.allow = 512 * 1001
    assert disk.read() == disk.value
    assert len(disk.direct) > len(disk.value) // disk.allow


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_refused_direct_reads_are_not_asked_for_again(disk: _Disk, code: int) -> None:
    disk.forget()
    disk.error = code
    assert disk.read() == disk.value
    disk.forget()
    disk.error = None
    assert disk.read() == disk.value
    assert disk.direct == []


def test_a_failing_disk_is_no_refusal(disk: _Disk) -> None:
    disk.forget()
    disk.error = errno.EIO
    with pytest.raises(OSError, match=rf"^\[Errno {errno.EIO}\]"):
        disk.read()
    disk.error = None
    assert disk.read() == disk.value
    assert disk.direct != []


def test_of_two_readers_that_come_first_one_opens_the_file_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, reopen = direct.DirectReads(), _platform.reopen_direct
    fd = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    opened: list[int | None] = []

    def slowly(fd: int) -> int | None:
        monkeypatch.setattr(_platform, "reopen_direct", reopen)
        opened.append(reads._twin(fd))  # as another thread would, meanwhile
        opened.append(reopen(fd))
        return opened[-1]

    monkeypatch.setattr(_platform, "reopen_direct", slowly)
    twin = reads._twin(fd)
    if None in opened:
        pytest.skip("the file system under the temporary folder has no direct reads")
    assert twin == opened[0]
    reads.forget(fd)
    for gone in opened:
        assert gone is not None
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(gone)
    os.close(fd)


def whole(disk: _Disk, skip: int = 0) -> memoryview:
    """Aligned memory for all of the file, whole pages; ``skip``: from that byte of a page on."""
    size = -(-len(disk.value) // direct.PAGE) * direct.PAGE
    return BufferPool(0).take(size + skip)[skip:]


def test_an_aligned_long_read_of_any_disk_is_direct_and_ends_with_the_file(ssd: _Disk) -> None:
    ssd.forget()
    memory = whole(ssd)
    assert ssd.fs.read_at(ssd.fd, [memory], 0) == len(ssd.value)
    assert memory[: len(ssd.value)] == ssd.value
    assert ssd.direct == [len(ssd.value)]
    assert ssd.fs.read_at(ssd.fd, [memory[: 1 << 20]], 1 << 20) == 1 << 20
    assert memory[: 1 << 20] == ssd.value[1 << 20 : 2 << 20]
    assert len(ssd.direct) == 2


@pytest.mark.parametrize(("skip", "offset", "cut"), [(64, 0, 0), (0, 512, 0), (0, 0, 1), (0, 0, 2 << 20)])
def test_other_reads_of_an_ssd_are_as_always(ssd: _Disk, skip: int, offset: int, cut: int) -> None:
    ssd.forget()
    memory = whole(ssd, skip)
    memory = memory[: memory.nbytes - cut]
    if cut < 1 << 20:
        expected = ssd.value[offset:][: memory.nbytes]
        assert ssd.fs.read_at(ssd.fd, [memory], offset) == len(expected)
        assert memory[: len(expected)] == expected
    else:
        few = direct.LEAST_ALIGNED_BYTES - direct.PAGE
        assert ssd.fs.read_at(ssd.fd, [memory[:few]], offset) == few
    assert ssd.direct == []


def test_an_ssd_of_which_the_cache_is_not_known_is_read_as_always(ssd: _Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    ssd.forget()
    monkeypatch.setattr(_platform, "cached_bytes", lambda *_: None)
    memory = whole(ssd)
    assert ssd.fs.read_at(ssd.fd, [memory], 0) == len(ssd.value)
    assert (ssd.direct, memory[: len(ssd.value)] == ssd.value) == ([], True)


def test_aligned_direct_reads_that_are_short_or_refused_are_continued(ssd: _Disk) -> None:
    ssd.forget()
    ssd.allow = 512 * 1001
    memory = whole(ssd)
    assert ssd.fs.read_at(ssd.fd, [memory], 0) == len(ssd.value)
    assert memory[: len(ssd.value)] == ssd.value
    assert ssd.direct == [512 * 1001], "the rest is not aligned"
    ssd.forget()
    ssd.error = errno.EINVAL
    assert ssd.fs.read_at(ssd.fd, [memory], 0) == len(ssd.value)
    assert memory[: len(ssd.value)] == ssd.value


def test_closing_gives_both_descriptors_back(tmp_path: Path) -> None:
    fs, path = OsFileSystem(), str(tmp_path / "a")
    fd = fs.open(path, create=True)
    fs.expect_jumps(fd)
    fs.expect_jumps(fd)
    assert len(descriptors_of(path)) in (1, 2)  # a second one, where there are direct reads
    fs.close(fd)
    assert descriptors_of(path) == []


def descriptors_of(path: str) -> list[str]:
    """Of this process: other threads may open and close what they like."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{number}") == path:
                found.append(number)
    return found


@pytest.mark.parametrize(("kind", "keep"), [("hdd", True), ("ssd", True), ("ssd", False)])
def test_chains_that_are_read_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, keep: bool) -> None:
    """All of a hard disk; of others what passes through, which need not be copied."""
    reads: list[int] = []
    fill = direct.DirectReads.fill

    def counted(self: direct.DirectReads, fd: int, views: list[memoryview], offset: int) -> int:
        reads.append(fill(self, fd, views, offset))
        return reads[-1]

    monkeypatch.setattr(direct.DirectReads, "fill", counted)
    c = config(tmp_path, tier(kind=kind, segment_bytes=8 * MIB))
    keys = names(16)
    with Store.open(c) as store:
        values = stored(store, keys, 300 * KIB + 5, chain=True)
    for file in tmp_path.rglob("*.seg"):
        fs = OsFileSystem()
        fd = fs.open(str(file))
        fs.sync_data(fd)
        fs.drop_cache(fd)
        kept = _platform.cached_bytes(fd, 0, 8 * MIB)
        twin = _platform.reopen_direct(fd)
        fs.close(fd)
        if kept or twin is None:
            pytest.skip("the file system under the temporary folder has no direct reads")
        os.close(twin)
    with Store.open(c) as store:
        assert [value_of(hit) for hit in store.get_many(keys, keep=keep)] == list(values.values())
    assert (sum(reads) > len(keys) * 300 * KIB) == (kind == "hdd" or not keep), reads
