"""What is shipped: the wheel's contents, and what importing the library drags in."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not run from a checkout")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel that is built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (file,) = folder.glob("kvtier-*.whl")
    with zipfile.ZipFile(file) as opened:
        return opened.namelist()


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {"kvtier", "kvtier_adapters"}


def test_the_wheel_holds_what_is_not_code(wheel: list[str]) -> None:
    assert {"kvtier/py.typed", "kvtier_adapters/py.typed", "kvtier/config_schema.json"} <= set(wheel)
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_every_module_is_in_the_wheel(wheel: list[str]) -> None:
    sources = [*ROOT.glob("kvtier/**/*.py"), *ROOT.glob("adapters/**/*.py")]
    names = {p.relative_to(ROOT).as_posix().removeprefix("adapters/") for p in sources}
    assert names == {name for name in wheel if name.endswith(".py")}


def test_adapters_is_a_source_root_and_no_package() -> None:
    assert not (ROOT / "adapters" / "__init__.py").exists()


def test_importing_the_library_loads_no_engine_and_no_terminal() -> None:
    heavy = {"llama_cpp", "numpy", "typer", "rich", "kvtier_adapters"}
    code = f"import sys, kvtier; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_constraints_are_names_and_versions_only() -> None:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        requirement = line.partition(";")[0].strip()
        name, _, pinned = requirement.partition("==")
        assert name.replace("-", "").isalnum(), line
        assert pinned.replace(".", "").isalnum(), line
