"""Nothing that is read is ever run: no pickle, no eval, no shell, anywhere in the library and its adapters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "kvtier").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")])
MODULES = {"cloudpickle", "code", "dill", "jsonpickle", "marshal", "pickle", "runpy", "shelve", "yaml"}
BUILTINS = {"__import__", "compile", "eval", "exec"}
CALLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "torch.load"}
#: Keywords that make a call run what it is given.
KEYWORDS = {"shell", "allow_pickle"}


def dangers(source: str) -> Iterator[str]:
    """What in a source could run what it is given as data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            yield node.id
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in CALLS:
            yield ast.unparse(node)
        elif isinstance(node, ast.keyword) and node.arg in KEYWORDS and ast.unparse(node.value) != "False":
            yield f"{node.arg}={ast.unparse(node.value)}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, yaml.loader",
        "from marshal import loads",
        "def f(x):\n    return eval(x)",
        "run = exec",
        "__import__(name)",
        "os.system(line)",
        "subprocess.run(line, shell=True)",
        "subprocess.run(line, shell=is_text)",
        "numpy.load(file, allow_pickle=True)",
    ],
)
def test_a_danger_is_seen(source: str) -> None:
    assert list(dangers(source))


def test_what_only_looks_like_one_is_not() -> None:
    assert list(dangers("import json\nre.compile(x)\nmodel.eval()\nnumpy.load(f, allow_pickle=False)\n'eval(x)'")) == []


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_file_runs_data(file: Path) -> None:
    assert list(dangers(file.read_text(encoding="utf-8"))) == []


def test_all_files_were_looked_at() -> None:
    found = {str(f.relative_to(ROOT)) for f in FILES}
    assert {"kvtier/store.py", "adapters/kvtier_adapters/llama_cpp/sessions.py"} <= found
