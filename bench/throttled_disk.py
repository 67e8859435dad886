"""A slow disk, declared: a loop device over a file, with limits by which the kernel holds up this process's reads.

By default 160 MB and 100 reads a second, as a hard disk. What counts as a read is a request to the device, of at most
1.25 MiB; the kernel joins neighbours into one. Writes are not limited. Needs root on Linux, a kernel with I/O
throttling, and the tools ``losetup``, ``mkfs.ext4`` and ``mount``: :func:`why_not` says what is missing.

``python -m bench.throttled_disk FOLDER`` makes one in FOLDER, starts a shell that feels the limits, and takes all down
when that ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

_TOOLS = ("losetup", "mkfs.ext4", "mount", "umount")
_V1 = Path("/sys/fs/cgroup/blkio")
_V2 = Path("/sys/fs/cgroup")
_V2_WITH_V1 = Path("/sys/fs/cgroup/unified")


class Limits(NamedTuple):
    """What the disk does in a second at most."""

    read_bytes: int = 160_000_000
    reads: int = 100


class Traffic(NamedTuple):
    """What the device was asked for: requests to read, and their bytes."""

    reads: int
    nbytes: int

    def since(self, before: Traffic) -> Traffic:
        return Traffic(self.reads - before.reads, self.nbytes - before.nbytes)


class ThrottledDisk:
    """The disk, while it is there: ``folder`` is empty at first."""

    def __init__(self, device: str, folder: Path) -> None:
        self.folder = folder
        self._stat = Path("/sys/block") / Path(device).name / "stat"

    def traffic(self) -> Traffic:
        """Since the device was made."""
        fields = self._stat.read_text(encoding="ascii").split()
        return Traffic(int(fields[0]), int(fields[2]) * 512)


def why_not() -> str | None:
    """Why there can be none here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a throttled loop device needs Linux and root"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(missing)} is not there"
    if _controller() is None:
        return "no control group here can limit the reads of a device"
    try:
        with tempfile.TemporaryDirectory() as folder, throttled_disk(Path(folder), 16 << 20):
            return None
    except (OSError, subprocess.CalledProcessError) as e:
        detail = getattr(e, "stderr", "") or ""
        return f"no throttled loop device can be made here: {e} {detail}".strip()


@contextmanager
def throttled_disk(folder: Path, nbytes: int, limits: Limits | None = None) -> Iterator[ThrottledDisk]:
    """A disk of ``nbytes`` in ``folder``, which exists; inside, this process's reads of it keep to the limits.

    Only what was made here is taken down at the end. Raises :class:`OSError` or
    :class:`subprocess.CalledProcessError` if it cannot be made.
    """
    image, mount_point = folder / "disk.img", folder / "disk"
    with ExitStack() as undo:
        with image.open("xb") as file:
            undo.callback(image.unlink)
            file.truncate(nbytes)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        mount_point.mkdir()
        undo.callback(mount_point.rmdir)
        device = _run("losetup", "--find", "--show", "--direct-io=on", str(image))
        try:
            _run("mount", device, str(mount_point))
        finally:
            _run("losetup", "--detach", device)  # now, or as soon as nothing is mounted from it any more
        undo.callback(_run, "umount", str(mount_point))
        undo.enter_context(_limited(device, limits or Limits()))
        yield ThrottledDisk(device, mount_point)


@contextmanager
def _limited(device: str, limits: Limits) -> Iterator[None]:
    """This process in a control group of its own, with limits on what it reads from the device."""
    parent = _controller()
    if parent is None:
        raise OSError("no control group here can limit the reads of a device")
    number = (Path("/sys/block") / Path(device).name / "dev").read_text(encoding="ascii").strip()
    home = _home(parent)
    group = parent / f"kvtier-bench-{os.getpid()}"
    group.mkdir()
    try:
        if parent == _V1:
            _write(group / "blkio.throttle.read_bps_device", f"{number} {limits.read_bytes}")
            _write(group / "blkio.throttle.read_iops_device", f"{number} {limits.reads}")
        else:
            _write(group / "io.max", f"{number} rbps={limits.read_bytes} riops={limits.reads}")
        _write(group / "cgroup.procs", str(os.getpid()))
        try:
            yield
        finally:
            _write(home / "cgroup.procs", str(os.getpid()))
    finally:
        group.rmdir()


def _controller() -> Path | None:
    """Where groups can be made whose reads are limited."""
    if (_V1 / "blkio.throttle.read_iops_device").exists():
        return _V1
    for root in (_V2, _V2_WITH_V1):
        control = root / "cgroup.subtree_control"
        if control.exists() and "io" in control.read_text(encoding="ascii").split():
            return root
    return None


def _home(parent: Path) -> Path:
    """The group that this process is in now."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if "blkio" in controllers.split(",") if parent == _V1 else not controllers:
            return parent / path.lstrip("/")
    return parent


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="ascii")


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    if reason := why_not():
        raise SystemExit(reason)
    with throttled_disk(Path(sys.argv[1]), 4 << 30) as disk:
        subprocess.run([os.environ.get("SHELL", "/bin/sh")], cwd=disk.folder)


if __name__ == "__main__":
    main()
