"""The tier model that docs/policies.md shows can be read, and its keys do what is said."""

from __future__ import annotations

import re
from pathlib import Path

from kvtier.config.tier_model import (
    ModeledNamespace,
    ModeledQuota,
    ModeledRam,
    ModeledTier,
    TierModelFile,
)
from kvtier.replay.tier_model import read_tier_model

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"


def shown() -> str:
    found = re.search(r"### A tier model.*?```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_is_a_tier_model(tmp_path: Path) -> None:
    file = tmp_path / "tiers.toml"
    file.write_text(shown())
    model = read_tier_model(file, None)
    assert model.split(100) == [10, 90]
    assert model.said.namespace[0].pin_blocks == 4


def test_every_key_is_on_the_page() -> None:
    section = PAGE.read_text(encoding="utf-8").split("### A tier model")[1].split("### Results")[0]
    sections = (TierModelFile, ModeledRam, ModeledTier, ModeledQuota, ModeledNamespace)
    assert [k for s in sections for k in s.model_fields if k not in section] == []
