"""Every relative link in the documentation leads to a file, and every #anchor to a heading."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+\s+(.+?)\s*$", re.MULTILINE)


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The ids that Markdown renderers give to headings."""
    plain = [re.sub(r"[^\w\s-]", "", title.lower()) for title in _HEADING.findall(prose(page))]
    return {re.sub(r"\s", "-", title.strip()) for title in plain}


def links() -> list[tuple[Path, str]]:
    found = [(page, link) for page in PAGES for link in _LINK.findall(_CODE.sub("", prose(page)))]
    return [(page, link) for page, link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize(("page", "link"), links(), ids=lambda v: v.name if isinstance(v, Path) else v)
def test_a_link_resolves(page: Path, link: str) -> None:
    target, _, anchor = link.partition("#")
    file = (page.parent / target).resolve() if target else page
    assert file.exists(), f"{page.relative_to(ROOT)} links to {link}, which is not there"
    assert ROOT in (file, *file.parents), f"{page.relative_to(ROOT)} links out of the repository"
    if anchor and file.suffix == ".md":
        assert anchor in anchors(file), f"{page.relative_to(ROOT)}: no heading for {link}"


def test_pages_were_found() -> None:
    assert {p.name for p in PAGES} >= {"README.md", "index.md", "configuration.md"}
