"""The code blocks of the README and the pages run as they stand; docs/CONTRIBUTING.md has the rules."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kvtier import Config
from tests import models

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"(<!-- needs: model -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LANGUAGES = {"python", "toml", "console", "text"}


class Block(NamedTuple):
    """One fenced block. ``line`` is that of its first line of code; ``output`` what follows it as text."""

    page: Path
    line: int
    language: str
    code: str
    needs_model: bool
    output: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    found = [m for m in _BLOCK.finditer(text) if m[2] in _LANGUAGES]
    for m, after in zip_longest(found, found[1:]):
        follows = after is not None and after[2] == "text" and not text[m.end() : after.start()].strip()
        line = text[: m.start(3)].count("\n") + 1
        yield Block(page, line, m[2], m[3], bool(m[1]), after[3] if after and follows else None)


def expect(block: Block, wanted: str, got: str) -> None:
    if not doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS):
        pytest.fail(f"{block.page.name}:{block.line} says\n{wanted}\nbut it printed\n{got}")


def run_python(block: Block, names: dict[str, Any]) -> None:
    """Run the block so that a traceback shows the page and its line."""
    code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    if block.output is not None:
        expect(block, block.output, printed.getvalue())


def saved(block: Block, folder: Path, name: str = "") -> Path | None:
    """The file that the first line names, if it is a comment that does, with the block in it."""
    found = re.match(r"# (\S+\.(?:py|toml))\n", block.code)
    if not (found or name):
        return None
    file = folder / (found[1] if found else name)
    file.write_text(block.code, encoding="utf-8")
    return file


def run_module(file: Path) -> None:
    if file.name.startswith("test_"):
        command = [sys.executable, "-m", "pytest", "-q", file.name]
        done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout


def check_toml(block: Block, folder: Path) -> None:
    if file := saved(block, folder, "unnamed.toml"):
        Config.from_toml(file)


def run_console(block: Block) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for line, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.code, re.MULTILINE):
        program, *arguments = line.split()
        if program == "make":
            assert arguments[0] in targets, f"{block.page.name}: no target {arguments[0]}"
        else:
            assert program == "kvtier", f"{block.page.name}:{block.line}: cannot check {line!r}"
            command = [sys.executable, "-m", "kvtier.cli", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            assert done.returncode == 0, done.stderr
            if output:
                expect(block, output, done.stdout)


def run_page(page: Path, folder: Path, with_model: bool) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.needs_model and not with_model:
            continue
        if block.language == "python" and (file := saved(block, folder)):
            run_module(file)
        elif block.language == "python":
            run_python(block, names)
        elif block.language == "toml":
            check_toml(block, folder)
        elif block.language == "console":
            run_console(block)


@pytest.mark.parametrize("page", [p for p in PAGES if any(blocks(p))], ids=lambda p: p.name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path, with_model=False)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(b.needs_model for b in blocks(p))], ids=lambda p: p.name)
def test_the_blocks_of_a_page_run_with_a_model(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    try:
        (tmp_path / "model.gguf").symlink_to(models.smollm2())
    except models.ModelMissing as e:
        pytest.skip(str(e))
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path, with_model=True)


def test_the_readme_shows_every_way_in() -> None:
    readme = list(blocks(PAGES[0]))
    assert {b.language for b in readme} == _LANGUAGES
    assert any(b.needs_model for b in readme)
