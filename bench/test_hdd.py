"""The hard disk of the benchmarks, small, and what is counted on it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import hdd, prefetch, throttled_disk
from bench.modelled_disk import ModelledDisk
from bench.workloads import MIB
from kvtier import Hit, Store
from kvtier.policy.prefetch import ChainOnly, NextTurn

SMALL = hdd.Shape(
    block_bytes=MIB // 4,
    turn_blocks=(16, 32),
    turns=3,
    active=4,
    ssd_bytes=64 * MIB,
    hdd_bytes=96 * MIB,
    segment_bytes=32 * MIB,
    restored=2,
)


def test_the_formula_charges_the_way_and_the_bytes(tmp_path: Path) -> None:
    disk = ModelledDisk(tmp_path, bytes_per_s=1000, seek_s=1)
    fd = disk.open(str(tmp_path / "a"), create=True)
    disk.write_at(fd, [bytes(10_000)], 0)

    def busy(offset: int, nbytes: int) -> float:
        before = disk.busy_s
        disk.read_at(fd, [memoryview(bytearray(nbytes))], offset)
        return disk.busy_s - before

    assert busy(0, 500) == pytest.approx(1.5)
    assert busy(500, 500) == pytest.approx(0.5)  # goes on
    assert busy(1200, 100) == pytest.approx(0.2 + 0.1)  # waits for the disk to turn
    assert busy(5000, 100) == pytest.approx(1.1)
    assert busy(5000, 200) == pytest.approx(0.2)  # the page that it has just read, and more
    assert busy(0, 100) == pytest.approx(1.1)  # back
    assert (disk.reads, disk.seeks, disk.bytes_read) == (6, 3, 1500)
    disk.close(fd)


@pytest.mark.parametrize("place", ["below an ssd", "alone"])
def test_a_chain_needs_few_reads_after_churn(tmp_path: Path, place: str) -> None:
    """Half of the blocks were replaced; a chain of three turns has the gaps that these left at most."""
    disk = ModelledDisk(tmp_path / "disk")
    config = hdd.config_of(tmp_path / "store", tmp_path / "disk" / "tier", SMALL, place)
    for chain in hdd.churned(config, disk, SMALL, background=False):
        before = disk.seeks, disk.bytes_read
        with Store.open(config, fs=disk, read_only=True) as store:
            assert all(isinstance(hit, Hit) for hit in store.get_many(chain, keep=False))
        assert disk.seeks - before[0] <= 6
        assert disk.bytes_read - before[1] < 1.15 * len(chain) * SMALL.block_bytes


def test_a_throttled_disk_is_taken_down(tmp_path: Path) -> None:
    if reason := throttled_disk.why_not():
        pytest.skip(reason)
    groups = Path("/proc/self/cgroup").read_text(encoding="ascii")
    with throttled_disk.throttled_disk(tmp_path, 32 * MIB) as disk:
        assert os.path.ismount(disk.folder)
        assert Path("/proc/self/cgroup").read_text(encoding="ascii") != groups
        file = disk.folder / "a"
        file.write_bytes(os.urandom(MIB))
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1\n", encoding="ascii")
        before = disk.traffic()
        assert len(file.read_bytes()) == MIB
        assert disk.traffic().since(before).nbytes >= MIB
    assert Path("/proc/self/cgroup").read_text(encoding="ascii") == groups
    assert list(tmp_path.iterdir()) == []


def test_the_next_turn_of_agents_is_brought_up() -> None:
    source = "generate:agents?seed=1&requests=3000"
    base = prefetch.simulate(source, 3000, lambda now: ChainOnly())
    found = prefetch.simulate(source, 3000, NextTurn)
    assert (base.useful, base.wasted) == (0, 0)
    assert found.wait_s < 0.5 * base.wait_s
    assert found.wasted <= 0.2 * found.useful


def test_documents_that_are_read_once_are_not() -> None:
    found = prefetch.simulate("generate:documents?seed=1&requests=1000", 3000, NextTurn)
    assert found.wasted <= 50
