"""The ``RUNNING`` file: there while a process has the store open for writing; what it says if that did not end well.

It holds the boot id of the machine and how many sessions in a row had not ended cleanly before, as text.
"""

from __future__ import annotations

import os
from pathlib import Path

from kvtier.fs import FileSystem

RUNNING_FILE = "RUNNING"
#: After so many sessions in a row that did not end cleanly, the index is looked at.
CRASHES_MAX = 3
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_BYTES_MAX = 256


def crashes(fs: FileSystem, root: str) -> int:
    """How many sessions in a row did not end cleanly; at least :data:`CRASHES_MAX` if the index may have suffered.

    A process that was killed leaves LMDB consistent: only a crash of the machine asks for a look at the file. But a
    damaged page can also end the process, every time: hence the limit.
    """
    try:
        boot, _, before = fs.read_file(_path(root), _BYTES_MAX).partition(b" ")
    except FileNotFoundError:
        return 0
    except OSError:
        return CRASHES_MAX
    count = before or b"0"
    return 1 + int(count) if boot and boot == _boot_id() and count.isdigit() else CRASHES_MAX


def start(fs: FileSystem, root: str, crashes_before: int) -> None:
    fs.write_file_durably(_path(root), b"%b %d" % (_boot_id(), crashes_before))


def end(fs: FileSystem, root: str) -> None:
    """The session ended by itself."""
    if fs.exists(_path(root)):
        fs.unlink(_path(root))


def _path(root: str) -> str:
    return os.path.join(root, RUNNING_FILE)


def _boot_id() -> bytes:
    try:
        return Path(_BOOT_ID).read_bytes().strip()
    except OSError:
        return b""
