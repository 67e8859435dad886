"""Reading all of a store, to find what is damaged before somebody needs it."""

from __future__ import annotations

import os

from kvtier.assembly import config_of
from kvtier.check.accounts import check_accounts, check_finished
from kvtier.check.blocks import BlockCheck
from kvtier.check.report import Report
from kvtier.check.segments import Progress, Walked, Walker
from kvtier.check.subject import Subject, folder_of, opened
from kvtier.config import Config
from kvtier.fs import default_file_system


def verify(
    source: Config | str | os.PathLike[str], *, payloads: bool = True, progress: Progress | None = None
) -> Report:
    """Audit a store, which other processes may be using, and change nothing: each record, the index, and whether they
    agree. Encrypted stores need no key: what is checked are the bytes on disk.

    ``payloads=False`` reads only the heads of records. ``progress`` is called with the segments read so far and all
    of them. Only damage to what a block needs counts as damage. Takes memory for each payload in the store.

    Raises :class:`kvtier.ConfigError`, a :class:`kvtier.StoreError` that says why the store cannot be looked at (one
    is that this process has it open itself), or :class:`OSError`: a disk that fails as a whole, or an index that is
    being made anew, says nothing about damage.
    """
    config = config_of(source)
    fs = default_file_system()
    root = folder_of(config, fs)
    report = Report()
    with opened(config, fs, root, report) as subject:
        audit(subject, report, payloads=payloads, progress=progress)
    return report


def audit(
    subject: Subject, report: Report, *, payloads: bool, progress: Progress | None
) -> tuple[Walked, BlockCheck | None]:
    """Find all damage, segments first; the blocks are checked if there is an index.

    :class:`OSError` if a disk fails on the way, or the index is being made anew.
    """
    if subject.index is not None:
        check_finished(subject.index)
    walked = Walker(subject, report, payloads=payloads).walk(progress)
    if subject.index is None:
        return walked, None
    blocks = BlockCheck(subject, subject.index, report, walked, payloads=payloads)
    blocks.run()
    check_accounts(subject.index, report, walked)
    return walked, blocks
