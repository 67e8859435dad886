"""A process that ends without closing its store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvtier import Hit, Store
from tests.stores import MIB, config, names, tier

_PROGRAM = """
import json, os, sys
from kvtier import Config, Store
store = Store.open(Config.from_dict(json.load(open(sys.argv[1]))))
for key in sys.argv[2:]:
    store.put(key.encode(), os.urandom(1 << 20))
"""


@pytest.mark.parametrize("write", ["through", "back"])
def test_what_is_queued_when_a_program_ends_is_written(tmp_path: Path, write: str) -> None:
    """Long blocks, which are hashed on a thread, too."""
    disk = tier(segment_bytes=8 * MIB, bytes_max=64 * MIB)
    c = config(tmp_path, disk, ram={"bytes_max": 64 * MIB, "write": write}, value_bytes_max=MIB)
    keys = names(16)
    settings = tmp_path / "config.json"
    settings.write_text(c.to_json())
    command = [sys.executable, "-c", _PROGRAM, str(settings), *(key.decode() for key in keys)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with Store.open(c) as store:
        assert all(isinstance(store.get(key), Hit) for key in keys)
