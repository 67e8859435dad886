"""A process with a mount namespace of its own: what it mounts is gone when it ends, however it ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

_CLONE_NEWNS = 0x00020000


def run_apart(episode: Callable[[Path], None], folder: Path) -> str | None:
    """Run it there; the traceback of what it raised, if it raised."""
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(episode, folder, there), daemon=True)
    process.start()
    there.close()
    try:
        told: str | None = here.recv()
    except EOFError:
        told = "it died"
    process.join()
    return told


def _main(episode: Callable[[Path], None], folder: Path, pipe: Connection) -> None:
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        os.chdir("/")
        episode(folder)
    except Exception:
        pipe.send(traceback.format_exc())
    else:
        pipe.send(None)
