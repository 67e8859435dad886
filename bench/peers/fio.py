"""fio, where it is installed: what it moves in one stream, as a limit beside those of :mod:`bench.peers.limits`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Literal

from bench.peers.fleet import Left


def fio(folder: Path, nbytes: int, what: Literal["write", "read"]) -> float:
    """Bytes a second, past the page cache, in requests of 2 MiB; of ``write`` with one fsync at the end.

    ``read`` reads what ``write`` left in the folder. Raises :class:`Left`.
    """
    program = shutil.which("fio")
    if program is None:
        raise Left("not installed: no fio on the path")
    options = [f"--rw={what}", f"--size={nbytes}", f"--filename={folder / 'fio'}"]
    always = ["--name=limit", "--bs=2M", "--direct=1", "--ioengine=psync", "--end_fsync=1", "--output-format=json"]
    done = subprocess.run([program, *always, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Left(f"ended with code {done.returncode}: {done.stderr.strip()}")
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return float(nbytes / (job["job_runtime"] / 1e3))
