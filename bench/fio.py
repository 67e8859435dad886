"""Sequential reading as ``fio`` measures it: the limit of what a disk gives. Optional: :func:`why_not`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

_PIECE = "8M"


def why_not() -> str | None:
    """Why there is no figure of fio here, or None."""
    return None if shutil.which("fio") else "fio is not there"


def sequential_read(path: Path, *, direct: bool = False) -> float:
    """Bytes a second for one reading of the file from end to end, in pieces of 8 MiB.

    Through the page cache, or ``direct``, past it. Raises :class:`subprocess.CalledProcessError` if fio fails.
    """
    command = ["fio", "--name=read", f"--filename={path}", "--readonly", "--rw=read", f"--bs={_PIECE}"]
    command += ["--ioengine=psync", "--invalidate=0", f"--size={path.stat().st_size}", "--output-format=json"]
    command += [f"--direct={int(direct)}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=path.parent)
    return float(json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]["bw_bytes"])
