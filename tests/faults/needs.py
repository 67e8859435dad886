"""What the tests here need of the machine: each answers why it is not there, or None."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache


@cache
def why_no_fuse() -> str | None:
    if not os.path.exists("/dev/fuse") or os.geteuid() != 0:
        return "mounting a FUSE file system needs root and /dev/fuse"
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError) as e:
        return f"mfusepy or libfuse is not there: {e}"
    return None


@cache
def why_no_strace() -> str | None:
    if shutil.which("strace") is None:
        return "strace is not there"
    tried = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()}"


@cache
def why_no_mounts() -> str | None:
    if shutil.which("unshare") is None:
        return "unshare is not there"
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "-o", "size=1m", "none", "/mnt"], capture_output=True, text=True
    )
    return None if tried.returncode == 0 else f"no file system may be mounted here: {tried.stderr.strip()}"


@cache
def why_no_loop() -> str | None:
    """For an ext4 file system in a file, which can be made to fail."""
    if shutil.which("mkfs.ext4") is None or not os.path.isdir("/sys/fs/ext4"):
        return "ext4 is not there"
    with tempfile.NamedTemporaryFile() as image:
        image.truncate(8 << 20)
        steps = f"mkfs.ext4 -q -F {image.name} && mount -o loop {image.name} /mnt"
        tried = subprocess.run(["unshare", "--mount", "sh", "-c", steps], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no file system in a file may be mounted here: {tried.stderr.strip()}"
