"""Direct reads and writes: past the system's cache, where that was asked for. The contract has what they must bring;
here is when they are made, and of what."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier import Store, _platform, direct
from kvtier.buffers import copy_across, cut
from kvtier.fs import OsFileSystem
from kvtier.pool import LEAST_BYTES, PAGE, BufferPool
from tests.stores import KIB, MIB, config, names, tier, value_of
from tests.stores import fill as stored

fcntl = pytest.importorskip("fcntl")
pytestmark = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="the platform has no direct I/O")


_VectorCall = Callable[[int, list[memoryview], int], int]


class _Disk:
    """A file of 3 MiB and a bit on a file system that has direct I/O, and what was read and written of it how."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.fs = OsFileSystem()
        self.value = os.urandom(3 << 20) + b"the end"
        self.direct: list[int] = []  #: bytes of each direct call
        self.others: list[int] = []  #: bytes of each other one
        self.allow = 1 << 30  #: bytes of one at most
        self.error: int | None = None
        self.calls_before_error = 0
        self.path = str(folder / "a")
        self.fd = self.fs.open(self.path, create=True)
        self.fs.write_at(self.fd, [self.value], 0)
        self._reopen = _platform.reopen_direct
        self._twins: set[int | None] = set()
        patch.setattr(_platform, "reopen_direct", self._reopened)
        patch.setattr(_platform, "preadv", self._counted(_platform.preadv))
        patch.setattr(_platform, "pwritev", self._counted(_platform.pwritev))
        twin = self._reopen(self.fd)
        if twin is None:
            pytest.skip("the file system under the temporary folder has no direct I/O")
        os.close(twin)

    def forget(self) -> None:
        """Nothing of the file is in the cache any more."""
        self.fs.sync_data(self.fd)
        self.fs.drop_cache(self.fd)
        if self.cached:
            pytest.skip("the file system under the temporary folder is in memory")

    @property
    def cached(self) -> int | None:
        return _platform.cached_bytes(self.fd, 0, 1 << 30)

    def read(self) -> bytes:
        targets = [bytearray(n) for n in (100, 1 << 20, len(self.value) - (1 << 20) - 100)]
        assert self.fs.read_at(self.fd, [memoryview(t) for t in targets], 0) == len(self.value)
        return b"".join(targets)

    def write(self, views: list[memoryview | bytes], offset: int) -> None:
        """And see that just that is what has changed."""
        value = b"".join(views)
        end = offset + len(value)
        before = Path(f"/proc/self/fd/{self.fd}").read_bytes().ljust(offset, b"\0")
        assert self.fs.write_at(self.fd, views, offset) == len(value)
        assert Path(f"/proc/self/fd/{self.fd}").read_bytes() == before[:offset] + value + before[end:]

    def _reopened(self, fd: int) -> int | None:
        twin = self._reopen(fd)
        self._twins.add(twin)
        return twin

    def _counted(
        self, call: Callable[[int, list[memoryview], int], int]
    ) -> Callable[[int, list[memoryview], int], int]:
        def counted(fd: int, views: list[memoryview], offset: int) -> int:
            if fd not in self._twins:
                self.others.append(call(fd, views, offset))
                return self.others[-1]
            if self.error is not None and len(self.direct) >= self.calls_before_error:
                raise OSError(self.error, os.strerror(self.error))
            self.direct.append(call(fd, cut(views, 0, self.allow), offset))
            return self.direct[-1]

        return counted


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Disk]:
    made = _Disk(tmp_path, monkeypatch)
    made.fs.expect_jumps(made.fd)
    made.fs.bypass_cache(made.fd)
    made.others.clear()
    yield made
    made.fs.close(made.fd)


def aligned(value: bytes, skip: int = 0) -> memoryview:
    """The value in memory that begins so far behind the beginning of a page."""
    memory = BufferPool(0).take(max(LEAST_BYTES, len(value) + skip))[skip : skip + len(value)]
    memory[:] = value
    return memory


def test_a_long_read_is_one_direct_read(disk: _Disk) -> None:
    disk.forget()
    assert disk.read() == disk.value
    assert disk.direct == [len(disk.value)]
    short = bytearray(direct.LEAST_COPIED_BYTES - 1)
    assert disk.fs.read_at(disk.fd, [memoryview(short)], 5) == len(short)
    assert short == disk.value[5 : 5 + len(short)]
    assert len(disk.direct) == 1


def test_nothing_is_direct_that_nobody_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = _Disk(tmp_path, monkeypatch)
    disk.fs.expect_jumps(disk.fd)
    disk.forget()
    assert disk.read() == disk.value
    disk.write([os.urandom(2 << 20)], 4096)
    assert disk.direct == []
    disk.fs.close(disk.fd)


def test_what_has_to_be_copied_is_left_to_a_system_that_reads_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no jumps are expected."""
    disk = _Disk(tmp_path, monkeypatch)
    disk.fs.bypass_cache(disk.fd)
    disk.forget()
    memory = aligned(bytes(2 << 20))
    head = memoryview(bytearray(PAGE))
    assert disk.fs.read_at(disk.fd, [head, memory], 0) == PAGE + (2 << 20)
    assert (disk.direct, bytes(memory)) == ([], disk.value[PAGE : PAGE + (2 << 20)])
    disk.write([os.urandom(4 << 20)], 0)
    disk.direct.clear()
    disk.value = Path(f"/proc/self/fd/{disk.fd}").read_bytes()
    disk.forget()
    long = aligned(bytes((4 << 20) - PAGE))
    assert disk.fs.read_at(disk.fd, [head, long], 0) == 4 << 20
    assert (sum(disk.direct), bytes(long)) == (4 << 20, disk.value[PAGE:]), "only little of it"
    disk.direct.clear()
    disk.forget()
    assert disk.fs.read_at(disk.fd, [memory], PAGE) == 2 << 20
    assert (disk.direct, bytes(memory)) == ([2 << 20], disk.value[PAGE : PAGE + (2 << 20)])
    disk.fs.close(disk.fd)


def test_what_is_in_the_cache_comes_from_there(disk: _Disk) -> None:
    if not _platform.cached_bytes(disk.fd, 0, 1 << 20):
        pytest.skip("this system does not say what is in its cache")
    with mmap.mmap(disk.fd, len(disk.value), prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == disk.value  # what is mapped stays there, even if somebody has the system drop its caches
        assert disk.read() == disk.value
    assert disk.direct == []


def test_where_the_cache_is_not_known_reads_are_direct(disk: _Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.forget()
    monkeypatch.setattr(_platform, "cached_bytes", lambda *_: None)
    assert disk.read() == disk.value
    assert disk.direct == [len(disk.value)]


@pytest.mark.parametrize("allow", [512 * 1001, 1 << 20])
def test_short_direct_calls_are_continued(disk: _Disk, allow: int) -> None:
    disk.forget()
    disk.allow = allow
    assert disk.read() == disk.value
    assert disk.direct == [allow]
    disk.write([aligned(os.urandom(2 << 20))], 4096)
    assert disk.direct == [allow, allow]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_refused_direct_io_is_not_asked_for_again(disk: _Disk, code: int) -> None:
    disk.forget()
    disk.error = code
    disk.write([os.urandom(2 << 20)], 4096)
    disk.error = None
    disk.write([os.urandom(2 << 20)], 4096)
    disk.forget()
    disk.read()
    assert disk.direct == []


@pytest.mark.parametrize("code", [errno.EFAULT, errno.ENOMEM])
def test_memory_that_cannot_be_held_for_the_disk_is_no_refusal_of_the_file(disk: _Disk, code: int) -> None:
    disk.forget()
    disk.error = code
    assert disk.read() == disk.value
    disk.write([os.urandom(2 << 20)], 4096)
    assert disk.direct == []
    disk.error = None
    disk.write([os.urandom(2 << 20)], 4096)
    assert disk.direct == [2 << 20]


def test_without_memory_for_a_buffer_it_goes_on_as_always(disk: _Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    disk.forget()
    monkeypatch.setattr(direct.DirectFiles, "_take", refused)
    assert disk.read() == disk.value
    disk.write([os.urandom(2 << 20)], 4097)
    assert disk.direct == []
    disk.fs.write_at(disk.fd, [aligned(bytes(512 << 10))], 4096)
    assert disk.direct == [512 << 10], "this one needs none"


def test_what_is_refused_in_the_middle_goes_on_through_the_cache(disk: _Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a write, and of a read, that are several calls each."""
    monkeypatch.setattr(direct, "CALL_BYTES_MAX", 1 << 20)
    disk.error, disk.calls_before_error = errno.EINVAL, 2
    disk.write([os.urandom(4 << 20)], 100)
    assert disk.direct == [1 << 20, 1 << 20]
    disk.value = Path(f"/proc/self/fd/{disk.fd}").read_bytes()
    disk.fs.close(disk.fd)
    disk.fd = disk.fs.open(disk.path, write=True)
    disk.fs.expect_jumps(disk.fd)
    disk.fs.bypass_cache(disk.fd)
    disk.forget()
    disk.calls_before_error = 4
    assert disk.read() == disk.value
    assert len(disk.direct) == 4


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_in_the_middle_of_a_write_is_raised(disk: _Disk, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """What was written before it stays; what the file had behind that is as it was."""
    monkeypatch.setattr(direct, "CALL_BYTES_MAX", 1 << 20)
    disk.error, disk.calls_before_error = code, 1
    given = os.urandom(3 << 20)
    with pytest.raises(OSError, match=rf"^\[Errno {code}\]"):
        disk.fs.write_at(disk.fd, [given], 0)
    disk.error = None
    found = Path(f"/proc/self/fd/{disk.fd}").read_bytes()
    assert found == given[: 1 << 20] + disk.value[1 << 20 :]
    disk.value = found
    assert disk.read() == found
    disk.write([given], 0)
    assert len(disk.direct) > 1, "it was no refusal"


def test_a_failing_disk_is_no_refusal(disk: _Disk) -> None:
    disk.forget()
    disk.error = errno.EIO
    with pytest.raises(OSError, match=rf"^\[Errno {errno.EIO}\]"):
        disk.read()
    with pytest.raises(OSError, match=rf"^\[Errno {errno.EIO}\]"):
        disk.fs.write_at(disk.fd, [disk.value], 0)
    disk.error = None
    assert disk.read() == disk.value
    assert disk.direct != []


@pytest.mark.parametrize("skip", [0, 1, 512])
@pytest.mark.parametrize("offset", [0, 1, 4095, 8192])
@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, (3 << 20) - 7])
def test_a_long_write_is_one_direct_write_of_whole_pages(disk: _Disk, skip: int, offset: int, size: int) -> None:
    disk.write([aligned(os.urandom(size), skip)], offset)
    pages = (offset + size) // PAGE * PAGE - -(-offset // PAGE) * PAGE
    assert disk.direct == [pages]
    assert sum(disk.others) == size - pages, "its two ends, which may have other bytes in their pages"


def test_no_call_is_so_long_that_others_wait_for_it(disk: _Disk) -> None:
    disk.write([os.urandom(PAGE), aligned(os.urandom(20 << 20)), os.urandom(PAGE)], 0)
    assert disk.direct == [direct.CALL_BYTES_MAX] * 2 + [(20 << 20) + 2 * PAGE - 2 * direct.CALL_BYTES_MAX]


def test_a_write_behind_the_end_of_the_file_makes_it_as_long_as_was_written(disk: _Disk) -> None:
    disk.write([os.urandom(100), aligned(os.urandom(2 << 20)), b"end"], 4 << 20)
    assert disk.fs.size(disk.fd) == (6 << 20) + 103


def test_what_was_written_so_is_not_in_the_cache(disk: _Disk) -> None:
    disk.forget()
    disk.fs.write_at(disk.fd, [os.urandom(4 << 20)], 0)
    assert disk.cached in (0, None)


def test_long_parts_go_between_disk_and_memory_without_a_copy(disk: _Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record with its head, as segments have them."""
    copied: list[int] = []

    def counted(sources: Sequence[memoryview], targets: Sequence[memoryview]) -> None:
        copied.append(sum(view.nbytes for view in sources))
        copy_across(sources, targets)

    monkeypatch.setattr(direct, "copy_across", counted)
    head, payload = os.urandom(PAGE), os.urandom(1 << 20)
    disk.write([head, aligned(payload), head, aligned(payload)], 2 * PAGE)
    assert (copied, disk.direct) == ([PAGE, PAGE], [2 * PAGE + (2 << 20)])
    disk.forget()
    copied.clear()
    found = [memoryview(bytearray(PAGE)), aligned(bytes(1 << 20))]
    assert disk.fs.read_at(disk.fd, found, 2 * PAGE) == PAGE + (1 << 20)
    assert found == [head, payload]
    assert (copied, len(disk.direct)) == ([PAGE], 2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
def test_reads_and_writes_of_any_cut_are_those_of_a_plain_file(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Of a few MiB, in views of any size that lie in memory anyhow."""
    folder = tmp_path_factory.mktemp("d")
    fs, model = OsFileSystem(), bytearray()
    fd = fs.open(str(folder / "a"), create=True)
    fs.bypass_cache(fd)
    sizes = st.lists(st.one_of(st.integers(0, 9000), st.sampled_from([64 << 10, 256 << 10, 1 << 20])), max_size=8)
    for _ in range(data.draw(st.integers(1, 4))):
        views = [aligned(os.urandom(n), data.draw(st.sampled_from([0, 0, 64]))) for n in data.draw(sizes)]
        offset = data.draw(st.one_of(st.integers(0, 3 << 20), st.integers(0, 500).map(lambda n: n * PAGE)))
        written = b"".join(views)
        assert fs.write_at(fd, views, offset) == len(written)
        if written:
            model.extend(bytes(max(0, offset + len(written) - len(model))))
            model[offset : offset + len(written)] = written
        if data.draw(st.booleans()):
            fs.sync_data(fd)
            fs.drop_cache(fd)
        begin = data.draw(st.integers(0, len(model) + 5000))
        targets = [aligned(bytes(n), data.draw(st.sampled_from([0, 0, 64]))) for n in data.draw(sizes)]
        count = fs.read_at(fd, targets, begin)
        expected = bytes(model[begin : begin + sum(view.nbytes for view in targets)])
        assert (count, b"".join(targets)[:count]) == (len(expected), expected)
        assert not any(b"".join(targets)[count:]), "behind the end of the file nothing was touched"
    fs.close(fd)


def test_of_two_readers_that_come_first_one_opens_the_file_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, reopen = direct.DirectFiles(), _platform.reopen_direct
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
        pytest.skip("the file system under the temporary folder has no direct I/O")
    assert twin == opened[0]
    reads.forget(fd)
    for gone in opened:
        assert gone is not None
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(gone)
    os.close(fd)


def test_closing_gives_both_descriptors_back(tmp_path: Path) -> None:
    fs, path = OsFileSystem(), str(tmp_path / "a")
    fd = fs.open(path, create=True)
    fs.bypass_cache(fd)
    fs.write_at(fd, [bytes(2 << 20)], 0)
    assert len(descriptors_of(path)) in (1, 2)  # a second one, where there is direct I/O
    fs.close(fd)
    assert descriptors_of(path) == []


def is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def descriptors_of(path: str) -> list[str]:
    """Of this process: other threads may open and close what they like."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{number}") == path:
                found.append(number)
    return found


@pytest.mark.parametrize("page_cache", [False, True])
@pytest.mark.parametrize(
    ("kind", "size", "keep"),
    [("ssd", 600 * KIB + 5, False), ("hdd", 600 * KIB + 5, True), ("hdd", 2 * MIB, True)],
)
def test_what_a_tier_reads_and_writes_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_cache: bool, kind: str, size: int, keep: bool
) -> None:
    """Unless it is to use the cache: all that is long is written so, and read so where jumps are expected; of other
    disks what passes through."""
    moved = {"preadv": 0, "pwritev": 0}

    def count(name: str) -> None:
        call = getattr(_platform, name)

        def counted(fd: int, views: list[memoryview], offset: int) -> int:
            nbytes: int = call(fd, views, offset)
            moved[name] += nbytes * is_direct(fd)
            return nbytes

        monkeypatch.setattr(_platform, name, counted)

    count("preadv")
    count("pwritev")
    disk = tier(kind=kind, segment_bytes=8 * MIB, bytes_max=64 * MIB, page_cache=page_cache)
    c = config(tmp_path, disk, value_bytes_max=4 * MIB)
    keys = names(16)
    with Store.open(c, background=False) as store:
        values = stored(store, keys, size, chain=True)
    for file in tmp_path.rglob("*.seg"):
        fs = OsFileSystem()
        fd = fs.open(str(file))
        fs.sync_data(fd)
        fs.drop_cache(fd)
        kept = _platform.cached_bytes(fd, 0, 8 * MIB)
        twin = _platform.reopen_direct(fd)
        fs.close(fd)
        if kept or twin is None:
            pytest.skip("the file system under the temporary folder has no direct I/O")
        os.close(twin)
    with Store.open(c) as store:
        assert [value_of(hit) for hit in store.get_many(keys, keep=keep)] == list(values.values())
    expected = {"pwritev": not page_cache, "preadv": not page_cache and (kind == "hdd" or not keep)}
    for call, is_direct_ in expected.items():
        assert (moved[call] > len(keys) * size // 2) == is_direct_, moved  # the system may read ahead of the store
        assert is_direct_ or not moved[call]
