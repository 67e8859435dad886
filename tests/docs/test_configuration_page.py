"""docs/configuration.md lists exactly the keys that there are, with their defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from kvtier.config import PrefetchConfig, QuotaConfig, RamConfig, StoreConfig, TierConfig, WriteBehindConfig
from kvtier.units import parse_size

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
SECTIONS: dict[str, type[BaseModel]] = {
    "[store]": StoreConfig,
    "[ram]": RamConfig,
    "[write_behind]": WriteBehindConfig,
    "[prefetch]": PrefetchConfig,
    "[[tier]]": TierConfig,
    "[[quota]]": QuotaConfig,
}
_ROW = re.compile(r"^\| `(\w+)` \| (?:`([^`]*)`)? *\|", re.MULTILINE)


def documented(section: str) -> dict[str, str]:
    """Key to default, as text, in the table below a section's heading."""
    text = PAGE.read_text(encoding="utf-8")
    part = text.partition(f"\n## `{section}`\n")[2].partition("\n## ")[0]
    return dict(_ROW.findall(part))


@pytest.mark.parametrize("section", SECTIONS)
def test_keys_and_defaults(section: str) -> None:
    fields = SECTIONS[section].model_fields
    found = documented(section)
    assert list(found) == list(fields)
    for key, text in found.items():
        default = fields[key].default
        if default in (None, PydanticUndefined):
            assert text == ""
        elif key.endswith("bytes") or "bytes_" in key:
            assert parse_size(text) == default
        else:
            assert text == (str(default).lower() if isinstance(default, bool) else str(default))
