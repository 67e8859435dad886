"""Records that were given up, and could not be removed: a kill does not bring them back for what was put since."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvtier import FlushError
from kvtier.fs import OsFileSystem
from kvtier.index.lmdb_index import LmdbIndex, WriteTxn
from kvtier.testing import FaultyFileSystem
from tests.crash.oracle import die, reopen
from tests.stores import config, segments, settle, tier


@pytest.mark.parametrize("how", ["killed", "closed", "killed when commits are made again"])
def test_what_was_given_up_does_not_stand_in_for_what_was_lost_after_it(memory: Path, how: str) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    store = reopen(config(memory), fs)
    fs.fail_at(fs.counts["sync_data"] + 1, errno.EIO, op="sync_data", lasting=True)
    fs.fail_at(fs.counts["unlink"] + 1, errno.EIO, op="unlink", lasting=True)
    commits_fail = how != "killed"
    with pytest.MonkeyPatch.context() as patch:
        if commits_fail:
            patch.setattr(LmdbIndex, "write", failing)
        for value in (b"older", b"newer"):
            store.put(b"k", value)
            with pytest.raises(FlushError):
                store.flush()
    if how == "closed":
        fs.heal()
        store.close()
    else:
        store.flush()
        settle(store)
        die(store, fs)
    assert segments(memory)
    with reopen(config(memory)) as again:
        assert not again.get(b"k")
        assert not segments(memory)


@contextmanager
def failing(index: LmdbIndex) -> Iterator[WriteTxn]:
    raise OSError(errno.EIO, "no commit")
    yield


def test_what_was_given_up_does_not_come_back_after_a_newer_value_was_refused(memory: Path) -> None:
    """The disk fails to sync a segment, and to remove it. The next opening finds it, with a value that is not the one
    put last: that was acknowledged, though no tier took it in."""
    fs = FaultyFileSystem(OsFileSystem())
    settings = config(memory, tier(admission="min-chain"))
    store = reopen(settings, fs)
    fs.fail_at(fs.counts["sync_data"] + 1, errno.EIO, op="sync_data", lasting=True)
    fs.fail_at(fs.counts["unlink"] + 1, errno.EIO, op="unlink", lasting=True)
    store.put(b"parent", b"value")
    store.put(b"k", b"older", parent=b"parent")
    with pytest.raises(FlushError):
        store.flush()
    store.put(b"k", b"newer")
    store.flush()
    assert store.stats().counters["not_admitted"] == 1
    die(store, fs)
    assert segments(memory)
    with reopen(settings) as again:
        assert not again.get(b"k")
        assert not segments(memory)
