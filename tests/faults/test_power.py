"""The power fails under a store, LMDB included, on a file system that loses what was not synced: a few seeds of
:func:`tests.faults.power.run_seed`; ``make torture`` takes hundreds."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from tests.crash.scale import LONG
from tests.direct import why_not_direct
from tests.faults.needs import why_no_fuse

pytestmark = pytest.mark.skipif(why_no_fuse() is not None, reason=str(why_no_fuse()))

SEEDS = range(5)


def test_power_loss_on_a_lossy_file_system() -> None:
    from tests.faults.power import run_seed

    results = [run_seed(seed) for seed in SEEDS]
    for result in results:
        assert result.failure is None, result
    assert all(result.died_in for result in results)
    assert any(result.recovery_died_in for result in results)
    assert sum(len(result.lost) for result in results) > len(SEEDS)


@pytest.mark.skipif(why_not_direct() is not None, reason="the platform has no direct I/O")
def test_power_loss_under_direct_writes() -> None:
    from tests.faults.power import run_seed

    results = [run_seed(seed, LONG) for seed in (1, 3)]
    for result in results:
        assert result.failure is None, result
        assert result.died_in
        assert result.direct["direct_writes"]


def test_a_seed_says_it_all() -> None:
    from tests.faults.power import run_seed

    assert run_seed(3) == run_seed(3)


def test_what_was_not_synced_is_lost(tmp_path: Path) -> None:
    from tests.faults.power import Mount

    mount = Mount(tmp_path, die_at=0, seed=0, keep_probability=0)
    try:
        with (mount.folder / "file").open("w+b", buffering=0) as f:
            f.write(b"a" * 8192)
            os.fsync(f.fileno())
            sync_folder(mount.folder)
            (mount.folder / "other").touch()
            with mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                os.pwrite(f.fileno(), b"b", 4096)
                assert mapped[4096:4097] == b"b"
        lost = mount.lose().lost
    finally:
        mount.detach()
    assert len(lost) == 2
    assert [p.name for p in (tmp_path / "backing").iterdir()] == ["file"]
    assert (tmp_path / "backing" / "file").read_bytes() == b"a" * 8192


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
