"""Putting a store in order: what is damaged leaves it, so that it can be stored again.

Each step leaves a store that opens, wherever it is interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kvtier.assembly import INDEX_FOLDER, LOCK_FILE, Parts, config_of, open_parts
from kvtier.check.blocks import BlockCheck
from kvtier.check.report import Kind, Report
from kvtier.check.segments import Progress, header_problem, read_header, records_of
from kvtier.check.subject import Subject, TierFolder, folder_of, of_parts, tiers_of
from kvtier.check.verify import audit
from kvtier.clock import SystemClock
from kvtier.config import Config
from kvtier.events import Listener, Signals
from kvtier.fs import FileSystem, default_file_system
from kvtier.index.lmdb_index import is_sound
from kvtier.keys import KeyProvider
from kvtier.recovery import Report as Recovered
from kvtier.segment.format import RecordKind, pack_segment_header
from kvtier.segment.scanner import Found
from kvtier.segment.writer import Draft, Written
from kvtier.tiers.drafts import head_of

Source = Config | str | os.PathLike[str]


@dataclass
class Repair:
    """What a repair found and did. ``found``: after the store was opened, which mends what it can; ``left``: at the
    end. ``blocks_lost``: of segments that were not there; ``references_written``: for blocks that could be read, but
    whose own record was damaged."""

    recovered: Recovered = field(default_factory=Recovered)
    headers_written: int = 0
    blocks_lost: int = 0
    found: Report = field(default_factory=Report)
    payloads_taken_out: int = 0
    references_written: int = 0
    index_rebuilt: bool = False
    left: Report = field(default_factory=Report)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {**asdict(self), "found": self.found.as_dict(), "left": self.left.as_dict()}


def repair(
    source: Source,
    *,
    keys: KeyProvider | None = None,
    progress: Progress | None = None,
    listeners: Sequence[Listener] = (),
) -> Repair:
    """Open a store for writing, which recovers it, and take out of the index what is damaged: its keys can be stored
    again. If the index itself is damaged, it is made anew first. Headers of segments that hold this store's records are
    written anew. Nothing that can be read is given up, and nothing at all if a disk fails on the way.

    Parameters and errors as :func:`kvtier.check.verify.verify`, and those of opening for writing.
    """
    return _Repairing(config_of(source), keys, progress, listeners).run()


def rebuild_index(source: Source, *, keys: KeyProvider | None = None, listeners: Sequence[Listener] = ()) -> Recovered:
    """Make the index of a store anew from its segments, whatever it says. Listeners get
    :class:`kvtier.events.RebuildProgress`. If it is interrupted, the next opening for writing goes on with it.

    What only the index knew is lost: when blocks were last used, and why others left. Errors as those of opening for
    writing.
    """
    config = config_of(source)
    fs = default_file_system()
    _write_headers(config, fs, folder_of(config, fs))
    parts = open_parts(config, fs, SystemClock(), Signals(listeners), keys, read_only=False, rebuild=True)
    parts.close()
    return parts.report


class _Repairing:
    """One repair."""

    def __init__(
        self, config: Config, keys: KeyProvider | None, progress: Progress | None, listeners: Sequence[Listener]
    ) -> None:
        self._config = config
        self._keys = keys
        self._progress = progress
        self._signals = Signals(listeners)
        self._fs = default_file_system()
        self._root = folder_of(config, self._fs)
        self._result = Repair()
        self._recovered: list[Recovered] = []  # by each opening

    def run(self) -> Repair:
        result = self._result
        result.headers_written = _write_headers(self._config, self._fs, self._root)
        rebuild = not is_sound(os.path.join(self._root, INDEX_FOLDER))
        result.found = result.left = self._pass(rebuild=rebuild, take_out=True)
        result.index_rebuilt = bool(result.found.damage[Kind.INDEX.value])
        if result.index_rebuilt:
            result.left = self._pass(rebuild=True, take_out=True)
        if not result.left.is_sound:
            result.left = self._pass(rebuild=False, take_out=False)
        result.recovered = self._recovered[0]
        result.blocks_lost = self._signals.get("blocks_lost")
        return result

    def _pass(self, *, rebuild: bool, take_out: bool) -> Report:
        """Audit the store, and take out what is damaged if the index is not: else it cannot say who needs what."""
        report = Report()
        parts = self._open(rebuild=rebuild)
        try:
            self._recovered.append(parts.report)
            blocks = self._audit(parts, report)
            if take_out and not report.damage[Kind.INDEX.value]:
                self._take_out(parts, blocks)
        finally:
            parts.close()
        return report

    def _open(self, *, rebuild: bool) -> Parts:
        return open_parts(
            self._config, self._fs, SystemClock(), self._signals, self._keys, read_only=False, rebuild=rebuild
        )

    def _audit(self, parts: Parts, report: Report) -> BlockCheck:
        blocks = audit(of_parts(parts, self._fs, self._root), report, payloads=True, progress=self._progress)[1]
        assert blocks is not None
        return blocks

    def _take_out(self, parts: Parts, blocks: BlockCheck) -> None:
        ladder = parts.ladder
        tiers = {t.tier_no: t for t in ladder.tiers}
        for bad in blocks.contents.values():
            ladder.quarantine(bad.block_id, tiers[bad.tier_no], bad.content_id, bad.place, bad.reason)
        written = self._write_references(parts, blocks.references)
        for tier in ladder.tiers:
            tier.seal()  # so that a segment in which nothing is left goes away
        dead = [(t.tier_no, n) for t in ladder.tiers for n, segment in t.segments.items() if not segment.live_bytes]
        with ladder.ledger.change() as change:
            for tier_no, block_id, record in written:
                ladder.ledger.link(change, tiers[tier_no], block_id, record)
            change.live.update(dict.fromkeys(dead, 0))
        self._result.payloads_taken_out += len(blocks.contents)
        self._result.references_written += len(written)

    def _write_references(self, parts: Parts, block_ids: Sequence[int]) -> list[tuple[int, int, Written]]:
        """Append, in each block's own tier, a record that says what the index says of it: tier, block, record."""
        with parts.index.read() as view:
            entries = {b: entry for b in block_ids if (entry := view.block(b)) is not None}
        written = []
        for tier in parts.ladder.tiers:
            here = {b: entry for b, entry in entries.items() if entry.tier_no == tier.tier_no}
            drafts = [Draft(head_of(entry, RecordKind.REFERENCE, 0, 0), ()) for entry in here.values()]
            written += [(tier.tier_no, b, record) for b, record in zip(here, tier.append(drafts), strict=True)]
        return written


def _write_headers(config: Config, fs: FileSystem, root: str) -> int:
    """Write the header of each segment that has lost it and holds a record that proves that it stands there; how many.

    Before anything else: an index that is made anew leaves out a segment without a header.
    """
    store_id, tiers = tiers_of(config, fs, root)
    try:
        lock = fs.lock(os.path.join(root, LOCK_FILE))
    except BlockingIOError:
        return 0  # to open it will say who has it
    try:
        subject = Subject(fs, root, store_id, tiers, None)
        return sum(_write_header(subject, tier, number) for tier in tiers for number in tier.segments(fs))
    finally:
        fs.unlock(lock)


def _write_header(subject: Subject, tier: TierFolder, number: int) -> bool:
    fs = subject.fs
    try:
        fd = fs.open(tier.path_of(number), write=True)
    except OSError:  # who opens the store will say so, if it matters
        return False
    try:
        if not _lacks_header(subject, tier, number, fd):
            return False
        fs.write_at(fd, [pack_segment_header(subject.store_id, tier.tier_no, number)], 0)
        fs.sync_data(fd)
    finally:
        fs.close(fd)
    return True


def _lacks_header(subject: Subject, tier: TierFolder, number: int, fd: int) -> bool:
    """Whether the header is damaged, and a record proves where the file stands. False if it cannot be read."""
    try:
        if header_problem(read_header(subject.fs, fd), subject.store_id, tier, number) is None:
            return False
        return any(isinstance(r, Found) for r in records_of(subject, tier, number, fd, payloads=False))
    except OSError:
        return False
