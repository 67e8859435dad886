"""A folder for tests that open thousands of stores: in memory, where the platform has such a place; and the index as
it was a commit ago."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.power import index_copied_to

_MEMORY = Path("/dev/shm")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, if there can be one."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="kvtier-crash-", dir=_MEMORY))
    except OSError:
        folder = tmp_path
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def fresh_folder(memory: Path) -> Callable[[], Path]:
    """Makes an empty folder, and removes the one made before."""

    def make() -> Path:
        folder = memory / "world"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    return make


@pytest.fixture
def index_before(memory: Path) -> Iterator[Path]:
    """A file that always holds the index as it was before its latest commit."""
    copy = memory / "index before"
    with index_copied_to(copy):
        yield copy
