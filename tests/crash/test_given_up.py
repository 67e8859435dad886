"""Records that were given up, and could not be removed: a kill does not bring them back for what was put since."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kvtier import FlushError
from kvtier.fs import OsFileSystem
from kvtier.testing import FaultyFileSystem
from tests.crash.oracle import die, reopen
from tests.stores import config, segments, tier


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
