"""Who but us can get at a store's folders: checked when it is opened.

Whatever is read from a store was written by its owner, and nobody else may read it: prompts can be worked out from KV.
So each folder of a store, and each file of ours in it, belongs to us or to root, is no symbolic link, and is open to
its owner alone (0700 and 0600). What any user could have *written* is refused; what others could only read, or only
the group could use, is narrowed. The umask does not matter: all is made with these modes.

Modes of what is not ours, and on file systems without modes, stay as they are; that is refused where any user can
write, and told otherwise.

Root may read a store of anyone, and write to one where each file belongs to the folder's owner or to root. It trusts
that owner then, who can put links in the place of files while root has the store open.

A folder that was configured may be reached through a link: it is its target that is checked. POSIX access control lists
show up here in the bits of the group on Linux; lists of other kinds (NFSv4, macOS) are not seen. On Windows nothing is
checked: there, a folder has the rights that its parent gives.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress

from kvtier.errors import UnsafeFolder

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OWNER = stat.S_IRWXU
_OURS = re.compile(r"(STORE|CONFIG|RUNNING|TIER)(\.tmp)?|LOCK|(data|lock)\.mdb|\d+\.seg")
_OF_A_FIRST_OPEN = {"LOCK", "STORE.tmp"}  # in another process, just now or when it was killed


def secure(folder: str, *, narrow: bool, follow: bool = True) -> int:
    """Check a folder that is there, and our files in it; with ``narrow``, take away what others may do.

    Returns how many modes were narrowed. ``narrow`` is for who is going to write: root may read what belongs to
    anyone. ``follow``: the folder may be a link to one. Raises :class:`kvtier.UnsafeFolder`, or :class:`OSError`.
    """
    if os.name != "posix":
        return 0
    if not follow and os.path.islink(folder):
        raise UnsafeFolder(f"{folder} is a symbolic link; put what it points to there instead")
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | (0 if follow else os.O_NOFOLLOW))
    try:
        owner = os.fstat(fd).st_uid
        return _secure_folder(fd, folder, narrow) + sum(
            _secure_file(fd, folder, name, owner, narrow) for name in os.listdir(fd) if _OURS.fullmatch(name)
        )
    finally:
        os.close(fd)


def exposed_at(folder: str) -> str | None:
    """The folder itself if others can use it; or else the nearest folder above from which any user could take this one
    away and put another in its place."""
    if os.name != "posix":
        return None
    if os.stat(folder).st_mode & _OTHERS:
        return folder
    parent = os.path.dirname(os.path.realpath(folder))
    while True:
        mode = os.stat(parent).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return parent
        if parent == os.path.dirname(parent):
            return None
        parent = os.path.dirname(parent)


def _secure_folder(fd: int, folder: str, narrow: bool) -> int:
    before = os.fstat(fd)
    _check_owner(folder, before, before.st_uid, narrow)
    if before.st_mode & stat.S_IWOTH:
        _check_untouched(fd, folder, before)
    if not narrow:
        return 0
    after = _narrowed(fd, ".", before)
    if after.st_mode & stat.S_IWOTH:
        raise _stays_open(folder, after)
    if before.st_mode & stat.S_IWOTH:  # whoever was quicker than us
        _check_untouched(fd, folder, before)
    return int(after.st_mode != before.st_mode)


def _check_untouched(fd: int, folder: str, status: os.stat_result) -> None:
    """A folder that any user can write to will do if it is empty, and is not meant to be shared."""
    if status.st_mode & stat.S_ISVTX or set(os.listdir(fd)) - _OF_A_FIRST_OPEN:
        raise _written_by_others(folder, folder)


def _secure_file(fd: int, folder: str, name: str, owner: int, narrow: bool) -> int:
    """``owner``: of the folder."""
    path = os.path.join(folder, name)
    try:
        before = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISREG(before.st_mode):
            raise UnsafeFolder(f"{path} is a symbolic link, or no file at all, where a file of the store should be")
        _check_owner(path, before, owner, narrow)
        if before.st_mode & stat.S_IWOTH:
            raise _written_by_others(path, folder)
        return int(narrow and _narrowed(fd, name, before).st_mode != before.st_mode)
    except FileNotFoundError:  # the store's writer has just removed it
        return 0


def _narrowed(fd: int, name: str, status: os.stat_result) -> os.stat_result:
    """Take away what others may do with something of ours in the folder ``fd``; its status afterwards.

    It may be as before: there are file systems that refuse or ignore new modes. Not by opening it: to close it would
    end LMDB's locks.
    """
    if not status.st_mode & _OTHERS or status.st_uid != os.geteuid():
        return status
    with suppress(OSError):
        os.chmod(name, status.st_mode & _OWNER, dir_fd=fd)
    return os.stat(name, dir_fd=fd, follow_symlinks=False)


def _check_owner(path: str, status: os.stat_result, owner: int, narrow: bool) -> None:
    me = os.geteuid()
    if status.st_uid in (0, me) or (me == 0 and (status.st_uid == owner or not narrow)):
        return
    raise UnsafeFolder(
        f"{path} belongs to user {status.st_uid} and this process is user {me}: run it as that user, or change the "
        "owner (the user of a container is to own its volume; an NFS server may give files another owner)"
    )


def _stays_open(folder: str, status: os.stat_result) -> UnsafeFolder:
    if status.st_uid != os.geteuid():
        why = f"it belongs to user {status.st_uid} and this process is user {os.geteuid()}"
        return UnsafeFolder(f"{folder}: any user can write to it, and {why}; give a new folder inside it, or change it")
    why = "its file system does not keep modes"
    return UnsafeFolder(f"{folder}: any user can write to it, and {why}; mount it for one user (umask=077)")


def _written_by_others(path: str, folder: str) -> UnsafeFolder:
    return UnsafeFolder(
        f"{path}: other users could have written to it; if you know that nobody has, chmod -R go= {folder} "
        "(if modes do not change there, mount its file system with umask=077)"
    )
