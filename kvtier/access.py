"""Who but us can get at a store's folders: checked when it is opened.

Whatever is read from a store was written by its owner, and nobody else may read it: prompts can be worked out from KV.
So each folder of a store, and each file of ours in it, belongs to us or to root, is no symbolic link, and is open to
its owner alone (0700 and 0600). Where others could have *written*, the store is refused; where they could only read,
the modes are narrowed. The umask does not matter: all is made with these modes.

A folder that was configured may be reached through a link: it is its target that is checked. Access control lists show
up here in the bits of the group. On Windows nothing is checked: there, a folder has the rights that its parent gives.
"""

from __future__ import annotations

import os
import re
import stat

from kvtier.errors import UnsafeFolder

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OWNER = stat.S_IRWXU
_OURS = re.compile(r"(STORE|CONFIG|RUNNING|TIER)(\.tmp)?|LOCK|(data|lock)\.mdb|\d+\.seg")


def secure(folder: str, *, narrow: bool, follow: bool = True) -> int:
    """Check a folder that is there, and our files in it; with ``narrow``, take away what others may do.

    Returns how many modes were narrowed. ``follow``: the folder may be a link to one. Raises
    :class:`kvtier.UnsafeFolder`, or :class:`OSError`.
    """
    if os.name != "posix":
        return 0
    if not follow and os.path.islink(folder):
        raise UnsafeFolder(f"{folder} is a symbolic link; put what it points to there instead")
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | (0 if follow else os.O_NOFOLLOW))
    try:
        return _secure_folder(fd, folder, narrow) + sum(
            _secure_file(fd, folder, name, narrow) for name in os.listdir(fd) if _OURS.fullmatch(name)
        )
    finally:
        os.close(fd)


def exposed_parent(folder: str) -> str | None:
    """The nearest folder above from which any user could take this one away and put another in its place."""
    if os.name != "posix":
        return None
    parent = os.path.dirname(os.path.realpath(folder))
    while True:
        mode = os.stat(parent).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return parent
        if parent == os.path.dirname(parent):
            return None
        parent = os.path.dirname(parent)


def _secure_folder(fd: int, folder: str, narrow: bool) -> int:
    status = os.fstat(fd)
    _check_owner(folder, status)
    if status.st_mode & _OTHERS_WRITE:
        _check_untouched(fd, folder, status)
    if not (narrow and _is_open(status)):
        return 0
    os.fchmod(fd, status.st_mode & _OWNER)
    if status.st_mode & _OTHERS_WRITE:  # whoever was quicker than us
        _check_untouched(fd, folder, status)
    return 1


def _check_untouched(fd: int, folder: str, status: os.stat_result) -> None:
    """A folder that others can write to will do if it is empty, and is not meant to be shared."""
    if status.st_mode & stat.S_ISVTX or os.listdir(fd):
        raise _written_by_others(folder, folder)


def _secure_file(fd: int, folder: str, name: str, narrow: bool) -> int:
    """Nobody else can exchange the file meanwhile: the folder has been checked."""
    path = os.path.join(folder, name)
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:  # the store's writer has just removed it
        return 0
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFolder(f"{path} is a symbolic link, or no file at all, where a file of the store should be")
    _check_owner(path, status)
    if status.st_mode & _OTHERS_WRITE:
        raise _written_by_others(path, folder)
    if not (narrow and _is_open(status)):
        return 0
    os.chmod(name, status.st_mode & _OWNER, dir_fd=fd)  # not by opening it: to close it would end LMDB's locks
    return 1


def _is_open(status: os.stat_result) -> bool:
    """Whether others can use it, and that is for us to change."""
    return bool(status.st_mode & _OTHERS) and status.st_uid == os.geteuid()


def _check_owner(path: str, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise UnsafeFolder(
            f"{path} belongs to user {status.st_uid} and this process is user {os.geteuid()}: "
            "run it as that user, or change the owner"
        )


def _written_by_others(path: str, folder: str) -> UnsafeFolder:
    return UnsafeFolder(
        f"{path}: other users could have written to it; if you know that nobody has, chmod -R go= {folder}"
    )
