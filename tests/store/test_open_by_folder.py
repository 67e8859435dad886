"""A store remembers its configuration: the folder alone is enough to open it again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kvtier import Config, ConfigError, Hit, Store


def two_tiers(folder: Path, elsewhere: Path) -> Config:
    return Config.from_dict(
        {
            "store": {"path": folder, "value_bytes_max": "1MiB"},
            "ram": {"bytes_max": "8MiB"},
            "tier": [
                {"name": "fast", "kind": "ssd", "bytes_max": "10%", "segment_bytes": "4MiB"},
                {"name": "slow", "kind": "hdd", "bytes_max": "64MiB", "segment_bytes": "8MiB", "path": elsewhere},
            ],
        }
    )


def test_the_folder_opens_with_what_it_was_last_opened_with(tmp_path: Path) -> None:
    config = two_tiers(tmp_path / "store", tmp_path / "elsewhere")
    with Store.open(config) as store:
        store.put(b"k", b"value")
    for read_only in (False, True):
        with Store.open(tmp_path / "store", read_only=read_only) as store:
            assert store.config == config
            assert store.get(b"k")


def test_a_store_that_was_moved_finds_the_tiers_inside_it(tmp_path: Path) -> None:
    config = two_tiers(tmp_path / "store", tmp_path / "elsewhere")
    with Store.open(config) as store:
        store.put(b"k", b"value")
    shutil.move(tmp_path / "store", tmp_path / "moved")
    with Store.open(tmp_path / "moved") as store:
        hit = store.get(b"k")
        assert isinstance(hit, Hit)
        assert hit.tier == "fast"


def test_a_read_only_open_changes_nothing_of_it(tmp_path: Path) -> None:
    config = two_tiers(tmp_path / "store", tmp_path / "elsewhere")
    Store.open(config).close()
    saved = (tmp_path / "store" / "CONFIG").read_bytes()
    only_one = config.model_copy(update={"tier": config.tier[:1]})
    Store.open(only_one, read_only=True).close()
    assert (tmp_path / "store" / "CONFIG").read_bytes() == saved


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"store": 3}', b'{"store": {}, "tiers": []}'])
def test_a_damaged_one_is_a_clear_error_and_a_config_still_opens_the_store(tmp_path: Path, damage: bytes) -> None:
    config = two_tiers(tmp_path / "store", tmp_path / "elsewhere")
    with Store.open(config) as store:
        store.put(b"k", b"value")
    (tmp_path / "store" / "CONFIG").write_bytes(damage)
    with pytest.raises(ConfigError):
        Store.open(tmp_path / "store")
    with Store.open(config) as store:
        assert store.get(b"k")
    Store.open(tmp_path / "store").close()
