"""A tier whose disk is not mounted must not be begun anew: its blocks come back with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kvtier import Config, Store, TierMissing
from kvtier.running import RUNNING_FILE


def config(folder: Path, elsewhere: Path) -> Config:
    sizes = {"kind": "ssd", "bytes_max": "16MiB", "segment_bytes": "1MiB"}
    tiers = [{"name": "disk", "path": elsewhere, **sizes}]
    return Config.from_dict({"store": {"path": folder, "value_bytes_max": "100KiB"}, "tier": tiers})


@pytest.mark.parametrize("mount_point", ["gone", "empty"])
def test_a_tier_that_is_not_mounted_is_a_clear_error_and_comes_back(tmp_path: Path, mount_point: str) -> None:
    disk, c = tmp_path / "disk", config(tmp_path / "store", tmp_path / "disk")
    with Store.open(c) as store:
        store.put(b"k", b"value")
    disk.rename(tmp_path / "unmounted")
    if mount_point == "empty":
        disk.mkdir()
    for _ in range(2):
        with pytest.raises(TierMissing, match="mount its disk"):
            Store.open(c)
    assert not (tmp_path / "store" / RUNNING_FILE).exists()
    if mount_point == "empty":
        assert not list(disk.iterdir()), "nothing was written where the disk belongs"
        disk.rmdir()
    (tmp_path / "unmounted").rename(disk)
    with Store.open(c) as store:
        assert store.get(b"k")


@pytest.mark.parametrize("mount_point", ["gone", "empty"])
def test_neither_if_the_index_is_lost_too(tmp_path: Path, mount_point: str) -> None:
    """Its segments would be taken for old ones when the disk is back."""
    disk, c = tmp_path / "disk", config(tmp_path / "store", tmp_path / "disk")
    with Store.open(c) as store:
        store.put(b"k", b"value")
    disk.rename(tmp_path / "unmounted")
    shutil.rmtree(tmp_path / "store" / "index")
    if mount_point == "empty":
        disk.mkdir()
    for _ in range(2):
        with pytest.raises(TierMissing, match="mount its disk"):
            Store.open(c)
    if mount_point == "empty":
        disk.rmdir()
    (tmp_path / "unmounted").rename(disk)
    with Store.open(c) as store:
        assert store.get(b"k")


def test_a_tier_that_never_held_anything_is_made_again(tmp_path: Path) -> None:
    c = config(tmp_path / "store", tmp_path / "disk")
    Store.open(c).close()
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    with Store.open(c) as store:
        store.put(b"k", b"value")
        store.flush()
