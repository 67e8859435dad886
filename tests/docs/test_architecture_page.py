"""The map of modules: nothing that is there is left out of it, and nothing is in it that is not there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kvtier"


def test_the_map_has_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.search(r"^## The pieces\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    assert rows
    named = re.findall(r"`([\w/]+(?:\.py|/\*))`", re.sub(r"(?m)^(\|[^|]*\|).*$", r"\1", rows[1]))
    shown = [
        path
        for name in named
        for path in ([PACKAGE / name] if name.endswith(".py") else (PACKAGE / name[:-2]).rglob("*.py"))
    ]
    there = {path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert there <= set(shown)
    assert all(path.exists() for path in shown)
    assert len(named) == len(set(named))
    assert all((PACKAGE / name[:-2]).is_dir() for name in named if name.endswith("/*"))
