"""The configuration: what it accepts, that it reports every problem at once, and where it points."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvtier.config
from kvtier.codec import CODEC_IDS
from kvtier.config import Config, PrefetchConfig, RamConfig, StoreConfig, TierConfig, WriteBehindConfig
from kvtier.errors import ConfigError
from kvtier.policy import registry
from kvtier.units import GIB, KIB, MIB, Percent

FULL = """
[store]
path = "/srv/kvtier"
value_bytes_max = "16 MiB"

[ram]
bytes_max = "2GiB"
eviction = "leaf-lru"

[write_behind]
bytes_max = "128MiB"
when_full = "skip"

[prefetch]
bytes_max = "32MiB"
coalesce_bytes_max = "4MiB"
threads = 3

[[tier]]
name = "nvme"
kind = "ssd"
bytes_max = "50GiB"
segment_bytes = "64MiB"
codec = "zstd-planes"
eviction = "leaf-lru"
promotion = "never"
compaction = "reclaim"

[[tier]]
name = "cold"
kind = "hdd"
path = "/mnt/cold/kvtier"
bytes_max = "2TB"
"""

TIER: dict[str, Any] = {"name": "nvme", "kind": "ssd", "bytes_max": "50GiB"}
GOOD: dict[str, Any] = {"store": {"path": "/srv/kvtier"}, "tier": [TIER]}


def problems(raw: dict[str, Any]) -> dict[str, str]:
    """Path to full text of each problem that ``raw`` has."""
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(raw)
    paths = [p.path for p in caught.value.problems]
    assert len(set(paths)) == len(paths), "a path is reported twice"
    return {p.path: str(p) for p in caught.value.problems}


def changed(path: str, value: object) -> dict[str, Any]:
    """A copy of ``GOOD`` with ``"tier.0.codec"`` or the like set to ``value``."""
    raw: Any = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    at = raw
    for part in parents:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    at[last] = value
    result: dict[str, Any] = raw
    return result


def toml(folder: Path, text: str) -> Path:
    file = folder / "kvtier.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_key_is_read(tmp_path: Path) -> None:
    config = Config.from_toml(toml(tmp_path, FULL))
    assert config.store == StoreConfig(path=Path("/srv/kvtier"), value_bytes_max=16 * MIB)
    assert config.ram == RamConfig(bytes_max=2 * GIB, eviction="leaf-lru")
    assert config.write_behind == WriteBehindConfig(bytes_max=128 * MIB, when_full="skip")
    assert config.prefetch == PrefetchConfig(bytes_max=32 * MIB, coalesce_bytes_max=4 * MIB, threads=3)
    nvme, cold = config.tier
    assert nvme == TierConfig(
        name="nvme",
        kind="ssd",
        path=Path("/srv/kvtier/nvme"),
        bytes_max=50 * GIB,
        segment_bytes=64 * MIB,
        codec="zstd-planes",
        eviction="leaf-lru",
        promotion="never",
        compaction="reclaim",
    )
    assert (cold.path, cold.bytes_max, cold.segment_bytes) == (Path("/mnt/cold/kvtier"), 2 * 10**12, GIB)


def test_defaults() -> None:
    config = Config.from_dict(GOOD)
    assert config.store.value_bytes_max == 64 * MIB
    assert (config.ram.bytes_max, config.ram.eviction) == (GIB, "leaf-lru")
    assert (config.write_behind.bytes_max, config.write_behind.when_full) == (256 * MIB, "wait")
    assert (config.prefetch.bytes_max, config.prefetch.coalesce_bytes_max) == (64 * MIB, 8 * MIB)
    (tier,) = config.tier
    assert (tier.segment_bytes, tier.codec, tier.promotion, tier.compaction) == (
        256 * MIB,
        "none",
        "always",
        "reclaim",
    )


def test_ram_only_needs_no_folder() -> None:
    config = Config.from_dict({"ram": {"bytes_max": "16MiB"}})
    assert config.tier == ()
    assert config.store.path is None


def test_the_defaults_for_a_folder(tmp_path: Path) -> None:
    config = Config.for_folder(tmp_path)
    (tier,) = config.tier
    assert (config.store.path, config.ram.bytes_max) == (tmp_path, GIB)
    assert (tier.name, tier.kind, tier.path, tier.bytes_max) == (
        "disk",
        "ssd",
        tmp_path / "disk",
        Percent(10),
    )


def test_a_share_is_resolved_against_its_own_disk(tmp_path: Path) -> None:
    config = Config.from_dict(changed("tier.0.path", str(tmp_path / "later")) | {})
    tier = config.tier[0].model_copy(update={"bytes_max": Percent(50)})
    assert tier.bytes_max_resolved() == shutil.disk_usage(tmp_path).total // 2
    assert config.tier[0].bytes_max_resolved() == 50 * GIB


def test_python_objects_and_toml_are_the_same(tmp_path: Path) -> None:
    built = Config(
        store=StoreConfig(path="/srv/kvtier", value_bytes_max="16MiB"),
        ram=RamConfig(bytes_max=2 * GIB),
        write_behind=WriteBehindConfig(bytes_max="128MiB", when_full="skip"),
        prefetch=PrefetchConfig(bytes_max="32MiB", coalesce_bytes_max="4MiB", threads=3),
        tier=[
            TierConfig(
                name="nvme",
                kind="ssd",
                bytes_max="50GiB",
                segment_bytes="64MiB",
                codec="zstd-planes",
                promotion="never",
            ),
            TierConfig(name="cold", kind="hdd", path="/mnt/cold/kvtier", bytes_max="2TB"),
        ],
    )
    assert built == Config.from_toml(toml(tmp_path, FULL))


def test_a_relative_store_is_beside_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = toml(tmp_path, '[store]\npath = "cache"\n[[tier]]\nname = "a"\nkind = "ssd"\nbytes_max = "1GiB"\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = Config.from_toml(file)
    assert config.store.path == tmp_path / "cache"
    assert config.tier[0].path == tmp_path / "cache" / "a"


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    file = toml(tmp_path, '[store]\npath = "~/cache"\n')
    assert Config.from_toml(file).store.path == tmp_path / "cache"


def test_configs_cannot_change_and_can_be_compared() -> None:
    config = Config.from_dict(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        config.ram.bytes_max = 1  # type: ignore[misc]
    assert {config: 1}[Config.from_dict(GOOD)] == 1


@pytest.mark.parametrize(
    ("path", "value", "at", "says"),
    [
        ("colour", "red", "colour", "unknown key"),
        ("ram.byte_max", 1, "ram.byte_max", "did you mean 'bytes_max'"),
        ("tier.0.codek", "none", "tier[0].codek", "did you mean 'codec'"),
        ("ram.bytes_max", "1 GiBB", "ram.bytes_max", "unknown unit 'GiBB'"),
        ("write_behind.bytes_max", "10%", "write_behind.bytes_max", "is a share"),
        ("ram.bytes_max", -1, "ram.bytes_max", "negative"),
        ("ram.bytes_max", True, "ram.bytes_max", "not a byte size"),
        ("ram.bytes_max", 0.5, "ram.bytes_max", "not a byte size"),
        ("ram", [], "ram", "must be a table"),
        ("ram.eviction", "leaf_lru", "ram.eviction", "did you mean 'leaf-lru'"),
        ("write_behind.when_full", "drop", "write_behind.when_full", "known: wait, skip"),
        (
            "write_behind.bytes_max",
            "1MiB",
            "write_behind.bytes_max",
            "smaller than store.value_bytes_max",
        ),
        ("prefetch.threads", 0, "prefetch.threads", "greater than or equal to 1"),
        ("prefetch.threads", "2", "prefetch.threads", "integer"),
        ("prefetch.coalesce_bytes_max", "65MiB", "prefetch.coalesce_bytes_max", "at most prefetch.bytes_max"),
        ("prefetch.coalesce_bytes_max", 0, "prefetch.coalesce_bytes_max", "more than 0"),
        ("prefetch.policy", "next_turn", "prefetch.policy", "did you mean 'next-turn'"),
        ("tier.0.admission", "budget", "tier[0].admission", "known: always, second-touch"),
        ("tier.0.promotion", "second", "tier[0].promotion", "did you mean 'second-hit'"),
        ("tier.0.compaction_dead_ratio", 1.5, "tier[0].compaction_dead_ratio", "less than or equal"),
        ("tier.0.compaction_bytes_per_s", 0, "tier[0].compaction_bytes_per_s", ""),
        ("quota", [{"bytes_max": "100GiB"}], "quota[0].bytes_max", "more than all disk tiers together"),
        ("store.path", "", "store.path", "not a path"),
        ("store.path", 3, "store.path", "not a path"),
        ("store", {}, "store.path", "required key is missing"),
        ("store.value_bytes_max", 0, "store.value_bytes_max", "at least one byte"),
        ("store.value_bytes_max", "256MiB", "tier[0].segment_bytes", "cannot hold a value"),
        ("tier", {"name": "nvme"}, "tier", "head each with [[tier]]"),
        ("tier", ["nvme"], "tier[0]", "must be a table"),
        ("tier", [{"kind": "ssd", "bytes_max": "1GiB"}], "tier[0].name", "required key is missing"),
        ("tier", [{"name": "a", "bytes_max": "1GiB"}], "tier[0].kind", 'for example kind = "ssd"'),
        ("tier", [{"name": "a", "kind": "ssd"}], "tier[0].bytes_max", 'for example bytes_max = "50GiB"'),
        ("tier.0.name", "NVMe disk", "tier[0].name", "not a tier name"),
        ("tier.0.name", "../x", "tier[0].name", "not a tier name"),
        ("tier.0.name", "ram", "tier[0].name", "reserved"),
        ("tier.0.kind", "sdd", "tier[0].kind", "did you mean 'ssd'"),
        ("tier.0.codec", "zstandard", "tier[0].codec", "known: none, zstd, zstd-planes"),
        ("tier.0.codec", 3, "tier[0].codec", "unknown codec 3"),
        ("tier.0.promotion", "sometimes", "tier[0].promotion", "known: always, never, second-hit"),
        ("tier.0.admission", "min_chain", "tier[0].admission", "did you mean 'min-chain'"),
        ("tier.0.admission", "write-budget", "tier[0].write_bytes_per_day", "required key is missing"),
        ("tier.0.admission_blocks_min", 4, "tier[0].admission_blocks_min", "means nothing with admission 'always'"),
        ("tier.0.write_bytes_per_day", "1MiB", "tier[0].write_bytes_per_day", "cannot hold a value"),
        ("tier.0.write_bytes_per_day", "10%", "tier[0].write_bytes_per_day", ""),
        ("store.ttl_s", -1, "store.ttl_s", "greater than or equal to 0"),
        ("store.ttl_s", "7d", "store.ttl_s", "integer"),
        ("tier.0.compaction", "copying", "tier[0].compaction", "did you mean 'copy'"),
        ("tier.0.bytes_max", "0%", "tier[0].bytes_max", "not a share"),
        ("tier.0.bytes_max", "100MiB", "tier[0].bytes_max", "smaller than one segment (256MiB)"),
        ("tier.0.bytes_max", "0.0000001%", "tier[0].bytes_max", "smaller than one segment"),
        ("tier.0.segment_bytes", "1KiB", "tier[0].segment_bytes", "too small"),
        ("tier.0.segment_bytes", "2TiB", "tier[0].segment_bytes", "too big"),
        ("tier.0.path", "/srv/kvtier", "tier[0].path", "holds the store itself"),
        ("tier.0.path", "/srv", "tier[0].path", "holds the store itself"),
        ("ram.bytes_max", 0, "", ""),
    ],
)
def test_one_problem_is_pointed_at(path: str, value: object, at: str, says: str) -> None:
    raw = changed(path, value)
    if not at:
        Config.from_dict(raw)
        return
    found = problems(raw)
    assert list(found) == [at]
    assert says in found[at]


def test_what_comes_up_into_ram_needs_some() -> None:
    raw = {**GOOD, "ram": {"bytes_max": 0}, "prefetch": {"policy": "next-turn"}}
    found = problems(raw)
    assert list(found) == ["prefetch.policy"]
    assert "ram.bytes_max is 0" in found["prefetch.policy"]


def two_tiers(**second: object) -> dict[str, Any]:
    return {"store": {"path": "/srv/kvtier"}, "tier": [TIER, {**TIER, "name": "cold", **second}]}


@pytest.mark.parametrize(
    ("second", "at", "says"),
    [
        ({"name": "nvme", "path": "/other"}, "tier[1].name", "'nvme' is used twice"),
        ({"path": "nvme"}, "tier[1].path", "is the folder of tier 'nvme'"),
        ({"path": "/srv/x/../kvtier/nvme/"}, "tier[1].path", "is the folder of tier 'nvme'"),
        ({"path": "nvme/inside"}, "tier[1].path", "lie inside one another"),
    ],
)
def test_tiers_do_not_share(second: dict[str, object], at: str, says: str) -> None:
    found = problems(two_tiers(**second))
    assert list(found) == [at]
    assert says in found[at]


def test_tiers_do_not_share_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "nvme").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nvme", target_is_directory=True)
    raw = two_tiers(path=str(tmp_path / "link"))
    raw["store"]["path"] = str(tmp_path)
    assert list(problems(raw)) == ["tier[1].path"]


def test_an_empty_configuration_that_could_hold_nothing() -> None:
    assert "nothing can be stored" in problems({"ram": {"bytes_max": 0}})["ram.bytes_max"]


def test_all_problems_are_reported_at_once() -> None:
    raw = {
        "colour": 1,
        "store": {"path": "/srv/kvtier", "value_bytes_max": "512MiB"},
        "ram": {"bytes_max": "lots", "evict": "lru"},
        "write_behind": {"when_full": "drop"},
        "tier": [
            {"name": "a", "kind": "sdd", "bytes_max": "1MiB"},
            {"name": "a", "kind": "ssd", "bytes_max": "a lot", "segment_bytes": "1GiB"},
            "third",
            {"name": "Fourth", "kind": "ssd", "bytes_max": "1GiB", "segment_bytes": "2GiB", "path": "a"},
        ],
    }
    before = copy.deepcopy(raw)
    assert set(problems(raw)) == {
        "colour",
        "ram.bytes_max",
        "ram.evict",
        "write_behind.when_full",
        "write_behind.bytes_max",  # default, but smaller than a value
        "tier[0].kind",
        "tier[0].bytes_max",
        "tier[0].segment_bytes",
        "tier[1].name",
        "tier[1].path",
        "tier[1].bytes_max",
        "tier[2]",
        "tier[3].name",
        "tier[3].bytes_max",
        "tier[3].path",
    }
    assert raw == before


def test_python_construction_reports_like_toml() -> None:
    with pytest.raises(ConfigError) as one:
        TierConfig(name="a", kind="sdd", bytes_max="1")
    assert [p.path for p in one.value.problems] == ["kind"]
    with pytest.raises(ConfigError) as whole:
        Config(store=StoreConfig(path="/srv/kvtier"), tier=[TierConfig(name="a", kind="ssd", bytes_max="1MiB")])
    assert [p.path for p in whole.value.problems] == ["tier[0].bytes_max"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[store]\npath = "x\n', "line 2, column"),
        (b"[store]\n[store]\n", "is not valid TOML"),
        (b'[store]\npath = "\xff"\n', "is not UTF-8"),
    ],
)
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "kvtier.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        Config.from_toml(file)
    assert [p.path for p in caught.value.problems] == [str(file)]


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "1" * 5000, '[store]\npath = "~nobody-at-all/x"\n'])
def test_odd_files_are_wrong_and_nothing_worse(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        Config.from_toml(toml(tmp_path, text))


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["1GiB", "10%", "ssd", "nvme", "none", "leaf-lru", "always", "reclaim", "wait", "/a", "/a/b"])
)
KEYS = st.sampled_from(
    [*Config.model_fields, *StoreConfig.model_fields, *PrefetchConfig.model_fields, *TierConfig.model_fields]
) | st.text(max_size=5)
TABLES = st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=2), max_size=8)


@given(st.dictionaries(KEYS, SCALARS | TABLES | st.lists(TABLES | SCALARS, max_size=4), max_size=6))
def test_any_dict_is_a_config_or_a_list_of_problems(raw: dict[str, Any]) -> None:
    try:
        config = Config.from_dict(raw)
    except ConfigError as e:
        found = e.problems
    else:
        assert all(t.path.is_absolute() for t in config.tier)
        return
    assert found
    assert all(p.path and p.message for p in found)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.from_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.from_toml(tmp_path)


def test_the_names_are_those_of_the_registries() -> None:
    assert set(get_args(kvtier.config.EvictionName)) == set(registry.EVICTION)
    assert set(get_args(kvtier.config.PromotionName)) == set(registry.PROMOTION)
    assert set(get_args(kvtier.config.AdmissionName)) == set(registry.ADMISSION)
    assert set(get_args(kvtier.config.CompactionName)) == set(registry.COMPACTION)
    assert set(get_args(kvtier.config.PrefetchName)) == set(registry.PREFETCH)
    assert set(get_args(kvtier.config.CodecName)) == set(CODEC_IDS)


def test_the_shipped_schema_is_current() -> None:
    shipped = Path(kvtier.__file__).with_name("config_schema.json").read_text(encoding="utf-8")
    assert shipped == kvtier.config.json_schema(), "run `make schema`"
    assert json.loads(shipped)["properties"].keys() == Config.model_fields.keys()


def test_a_small_tier_is_possible_for_tests() -> None:
    config = Config.from_dict(
        {
            "store": {"path": "/srv/kvtier", "value_bytes_max": "32KiB"},
            "tier": [{**TIER, "segment_bytes": "64KiB", "bytes_max": "64KiB"}],
        }
    )
    assert config.tier[0].segment_bytes == config.tier[0].bytes_max_resolved() == 64 * KIB


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("wrong", [{"tier": nested(2000)}, {"write_behind": {"when_full": 10**5000}}, nested(2000)])
def test_what_python_cannot_take_apart_is_a_problem_of_the_configuration(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="configuration: cannot be taken apart"):
        Config.from_dict(wrong)


def test_a_tier_whose_folder_looks_like_a_home_is_found_again(tmp_path: Path) -> None:
    tier = {"name": "x", "kind": "ssd", "bytes_max": "12.3456789%", "path": tmp_path / "~nobody-of-that-name"}
    config = Config.from_dict({"store": {"path": tmp_path, "value_bytes_max": "1KiB"}, "tier": [tier]})
    assert Config.from_dict(json.loads(config.to_json())) == config


def test_a_key_that_is_no_text_is_a_problem() -> None:
    with pytest.raises(ConfigError, match="configuration: "):
        Config.from_dict({"\udc80": []})
