"""A folder for parsers that read files; in memory where the system has such a place."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_IN_MEMORY = "/dev/shm"


def new_folder() -> Path:
    """Gone when the process ends."""
    folder = tempfile.mkdtemp(prefix="kvtier-fuzz-", dir=_IN_MEMORY if os.path.isdir(_IN_MEMORY) else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
