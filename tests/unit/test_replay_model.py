"""What computing KV costs, what capacities mean, and the tier model file with all that can be wrong in it."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from kvtier.config.tier_model import ModeledRam, ModeledTier, TierModelFile
from kvtier.errors import ConfigError
from kvtier.replay.capacity import parse_capacities
from kvtier.replay.cost import PRESETS, CostModel, ModelSizes
from kvtier.replay.measure import missed_seconds
from kvtier.replay.tier_model import TierModel, preset, read_tier_model
from kvtier.replay.trace import Request, make_trace

COST = CostModel("test", 2.0, 0.5, 10)

GOOD = """
block_bytes = "6MiB"
[model]
seconds_per_token = 0.001
seconds_per_position = 1e-8
kv_bytes_per_token = 12288
[[tier]]
name = "nvme"
share = 1
read_bytes_per_second = "10GB"
[[tier]]
name = "ssd"
share = 9.0
eviction = "sieve"
promotion = "never"
write_bytes_per_second = "1GB"
"""


def problems(error: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    return [str(p) for p in error.value.problems]


def test_the_cost_is_the_sum_over_tokens() -> None:
    assert COST.seconds(3, 7) == pytest.approx(sum(2.0 + 0.5 * p for p in range(3, 7)))
    assert COST.seconds(0, 3) + COST.seconds(3, 7) == pytest.approx(COST.seconds(0, 7))
    assert COST.seconds(5, 5) == 0


def test_a_models_sizes() -> None:
    cost = ModelSizes(layers=2, d_model=8, heads=4, kv_heads=2, head_dim=3, d_ff=16).cost("m", flops=1.0)
    weights = 2 * (8 * 12 * 2 + 8 * 6 * 2 + 3 * 8 * 16)
    assert cost.seconds_per_token == 2 * weights
    assert cost.seconds_per_position == 4 * 12 * 2
    assert cost.kv_bytes_per_token == 2 * 2 * 6 * 2


def test_windows_cost_the_same_at_every_position() -> None:
    plain = ModelSizes(layers=2, d_model=8, heads=4, kv_heads=2, head_dim=3, d_ff=16)
    full, windowed = (sizes.cost("m", 1.0) for sizes in (plain, replace(plain, window_layers=1, window=5)))
    assert windowed.seconds_per_position == full.seconds_per_position / 2
    assert windowed.seconds_per_token == full.seconds_per_token + 4 * 12 * 5


def test_the_presets_are_the_models_they_name() -> None:
    assert PRESETS["llama-3-8b"].kv_bytes_per_token == 131_072
    assert PRESETS["smollm2-135m"].kv_bytes_per_token == 23_040
    assert preset("llama-3-8b").seconds_per_token * 1e14 / 2 == pytest.approx(6.98e9, rel=0.01)
    with pytest.raises(ConfigError, match=r"unknown model 'gpt'.*llama-3-8b"):
        preset("gpt")


def test_what_is_missed_starts_at_the_first_miss_and_ends_with_the_prompt() -> None:
    requests = [Request(0.0, 25, [1, 2, 3], None), Request(1.0, 25, [1, 2, 3], None), Request(2.0, 20, [1, 2], None)]
    trace = make_trace("t", 10, requests, array("I", [0, 0, 1, 2]))
    assert missed_seconds(trace, [0, 1, 2], COST) == pytest.approx(COST.seconds(0, 25) + COST.seconds(10, 25))
    assert missed_seconds(trace, [3, 3, 2], COST) == 0


def test_capacities() -> None:
    parsed = parse_capacities("1%, 2.5%,7,100%,1000", 1000)
    assert [c.blocks for c in parsed] == [10, 25, 7, 1000, 1000]
    assert [c.text for c in parsed] == ["1%", "2.5%", "7", "100%", "1000"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "0 leaves no room"),
        ("0%", "0% leaves no room"),
        ("101%", "more than all blocks"),
        ("1001", r"1001 blocks are more than the trace has \(it has 1000 different blocks"),
        ("0.01%", "less than one block"),
        ("-5%", "is not a capacity"),
        ("5.5", "is not a capacity"),
        ("5GB", "is not a capacity"),
        ("nan%", "is not a capacity"),
        ("1e3", "is not a capacity"),
        ("", "is not a capacity"),
        ("1%,,2%", "is not a capacity"),
    ],
)
def test_a_wrong_capacity(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_capacities(text, 1000)


def test_all_wrong_capacities_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_capacities("0,5%,200%", 1000)
    assert len(caught.value.problems) == 2


def test_a_tier_model(tmp_path: Path) -> None:
    file = tmp_path / "tiers.toml"
    file.write_text(GOOD)
    model = read_tier_model(file, None)
    assert model.tiers == (
        ModeledTier(name="nvme", share=1.0, read_bytes_per_second=10**10),
        ModeledTier(name="ssd", share=9.0, eviction="sieve", promotion="never", write_bytes_per_second=10**9),
    )
    assert model.cost == CostModel("measured", 0.001, 1e-8, 12288)
    assert model.bytes_of_block(512) == 6 << 20
    assert model.split(100) == [10, 90]
    assert read_tier_model(file, "llama-3-8b").cost == preset("llama-3-8b")


def test_without_a_file_there_is_one_tier() -> None:
    model = read_tier_model(None, None)
    assert model.split(7) == [7]
    assert model.cost == preset("llama-3-8b")
    assert model.bytes_of_block(512) == 64 << 20


@pytest.mark.parametrize("capacity", [3, 4, 10, 999])
def test_every_tier_has_a_block(capacity: int) -> None:
    shares = (0.001, 1000.0, 0.001)
    tiers = tuple(ModeledTier(name=f"t{i}", share=s) for i, s in enumerate(shares))
    parts = TierModel(COST, TierModelFile(tier=tiers)).split(capacity)
    assert sum(parts) == capacity
    assert min(parts) >= 1


def test_fewer_blocks_than_tiers() -> None:
    with pytest.raises(ConfigError, match="1 blocks are too few for 2 tiers"):
        TierModel(COST, TierModelFile(ram=ModeledRam(share=1), tier=(ModeledTier(name="a", share=1),))).split(1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = [", "is not valid TOML"),
        ("colour = 1", "colour: unknown key"),
        ('block_bytes = "0"', "block_bytes: 0 bytes are too few"),
        ('block_bytes = "lots"', "block_bytes: 'lots' is not a byte size"),
        ("tier = 5", "tier: must be a list of tables"),
        ("[tier]\nname = 'a'", "tier: must be a list of tables"),
        ("model = 1", "model: must be a table"),
        ("[[tier]]\nshare = 1", "tier[0].name: required key is missing"),
        ("[[tier]]\nname = 'a'", "tier[0].share: required key is missing"),
        ("[[tier]]\nname = 'a'\nshare = 0", "tier[0].share: input should be greater than 0"),
        ("[[tier]]\nname = 'a'\nshare = nan", "tier[0].share: input should be a finite number"),
        ("[[tier]]\nname = 'a'\nshare = 1\nspeed = 3", "tier[0].speed: unknown key (known: name, share"),
        (
            "[[tier]]\nname = 'a'\nshare = 1\npromotion = 'up'",
            'tier[0].promotion: unknown promotion "up" (known: always',
        ),
        ("[[tier]]\nname = 'a'\nshare = 1\n" * 2, "tier[1].name: 'a' is used twice"),
        ("[[tier]]\nname = 'a'\nshare = 1\n" * 9, "tier: tuple should have at most 8 items"),
        ("[model]\npreset = 'gpt'", "model.preset: unknown model 'gpt'"),
        ("[model]\npreset = 'llama-3-8b'\nlayers = 3", "has several of a preset, sizes and measured seconds"),
        ("[model]\nlayers = 3", "model.d_model: required key is missing"),
        ("[model]\nlayers = -3", "model.layers: input should be greater than or equal to 1"),
        ("[model]\nkv_heads = 0", "model.kv_heads: input should be greater than or equal to 1"),
        ("[model]\npreset = 'llama-3-8b'\nwindow = 512", "has several of a preset, sizes and measured seconds"),
        ("[model]\nwindow_layers = 3", "model.layers: required key is missing"),
        ("[model]\nlayers = 2\nwindow_layers = 9", "model.window_layers: is more than model.layers"),
        ("[model]\nseconds_per_token = 1", "model.kv_bytes_per_token: required key is missing"),
        ("[model]\nseconds_per_position = 1", "model.seconds_per_token: required key is missing"),
    ],
)
def test_a_wrong_tier_model(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "tiers.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_tier_model(file, None)
    assert any(says in p and str(file) in p for p in problems(caught)), problems(caught)


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "tiers.toml"
    file.write_text("odd = 1\n[model]\nlayers = 0.5\n[[tier]]\nname = 3\nshare = 'much'\n")
    with pytest.raises(ConfigError) as caught:
        read_tier_model(file, None)
    said = " ".join(problems(caught))
    assert all(path in said for path in ("odd", "model.layers", "tier[0].name", "tier[0].share"))


def test_text_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "tiers.toml"
    file.write_bytes(b"\xff\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_tier_model(file, None)
