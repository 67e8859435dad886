"""One disk tier: a folder of segments, its byte accounting, and its policies. It knows nothing of the index.

Threads: ``read`` from any thread; everything else from the store's background worker only.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice

from kvtier.clock import Clock
from kvtier.events import Signals, TierResumed, TierSuspended
from kvtier.fs import FileSystem
from kvtier.identity import TIER_FILE
from kvtier.policy.base import SegmentFacts
from kvtier.policy.guarded import policy_disabled
from kvtier.segment.format import (
    PAGE,
    SEGMENT_HEADER_BYTES,
    STATE_OFFSET,
    FormatError,
    RecordHead,
    RecordState,
    align_up,
)
from kvtier.segment.names import segment_name, segment_numbers
from kvtier.segment.reader import Extent, Fetched, SegmentFiles, check_records, fetch_records, fetch_span
from kvtier.segment.scanner import Found, scan
from kvtier.segment.writer import Draft, SegmentWriter, Written
from kvtier.tiers.budget import Budget
from kvtier.tiers.gate import Gate
from kvtier.tiers.habits import HABITS
from kvtier.tiers.order import TierOrder
from kvtier.tiers.promotion import Lift
from kvtier.tiers.room import Room
from kvtier.tiers.setup import TierSetup
from kvtier.tiers.throttle import Throttle
from kvtier.vault import Vault

_RETRY_S_FIRST, _RETRY_S_MAX = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Freed:
    """A record that lost its block, its payload or both, to be marked so on disk."""

    tier_no: int
    segment_no: int
    offset: int
    head_len: int
    record_len: int
    state: RecordState


@dataclass(slots=True)
class Segment:
    """A segment on disk. ``length`` is the file's, ``disk_bytes`` what it occupies after punching, ``committed_len``
    how far a commit covered it: 0 if none did."""

    length: int
    disk_bytes: int
    live_bytes: int = 0
    committed_len: int = 0


@dataclass(slots=True)
class _Health:
    since: float = 0.0
    retry_at: float = 0.0
    wait_s: float = 0.0
    last_error: str = ""
    errors: int = 0


class DiskTier:
    """See the module."""

    def __init__(
        self, fs: FileSystem, setup: TierSetup, store_id: bytes, signals: Signals, clock: Clock, vault: Vault
    ) -> None:
        self._fs = fs
        self.vault = vault
        self._store_id = store_id
        self._signals = signals
        self._clock = clock
        self.setup = setup
        self.name = setup.name
        self.habits = HABITS[setup.kind]
        self._turn = threading.Lock() if self.habits.one_at_a_time else nullcontext()
        self.tier_no = setup.tier_no
        self.order = TierOrder(setup.tier_no, setup.eviction, partial(policy_disabled, signals, setup.name))
        self.room = Room(setup.name, setup.bytes_max, signals)
        self.lift = Lift(setup.name, setup.promotion, signals)
        limit = setup.write_bytes_per_day
        self.gate = Gate(setup.name, setup.admission, None if limit is None else Budget(limit, clock), signals)
        self.copying = Throttle(setup.compaction_bytes_per_s, clock)
        self.can_punch = True
        self.segments: dict[int, Segment] = {}
        self.next_segment_no = 1
        self.bytes_written = 0
        self.doubted: set[tuple[int, int]] = set()  # (segment, offset) of records that could not be read
        self.condemned: set[tuple[int, int]] = set()  # of those that failed a check: not to be read again
        self.health = _Health()
        self._files = SegmentFiles(fs, self.path_of, self._hint)
        self._writer: SegmentWriter | None = None
        self.uncommitted: set[int] = set()  # segments appended to since the last index commit
        self.has_left = False  # whether a recovery would believe what was given up: no commit came after it
        self._dirty: list[SegmentWriter] = []
        self._new_names = False

    # -- what is there ------------------------------------------------------------------------------

    def path_of(self, segment_no: int) -> str:
        return os.path.join(self.setup.folder, segment_name(segment_no))

    def _hint(self, fd: int) -> None:
        """Tell the file system how a segment that was opened will be used."""
        if self.habits.one_at_a_time:
            self._fs.expect_jumps(fd)
        if not self.setup.page_cache:
            self._fs.bypass_cache(fd)

    def list_segments(self) -> list[int]:
        """Numbers of the segment files in the folder; other names are ignored."""
        return segment_numbers(self._fs.list_dir(self.setup.folder))

    @property
    def disk_bytes(self) -> int:
        """Space that the segments occupy."""
        return sum(s.disk_bytes for s in tuple(self.segments.values()))

    @property
    def active_no(self) -> int | None:
        """The segment that is being appended to."""
        return self._writer.segment_no if self._writer else None

    def sealed_facts(self) -> list[SegmentFacts]:
        return [SegmentFacts(no, s.disk_bytes, s.live_bytes) for no, s in self.segments.items() if no != self.active_no]

    def know(self, segment_no: int, live_bytes: int) -> Segment:
        """Take account of a segment file that is there, as covered by a commit: what is not has to be taken in, or
        :meth:`cut`. :class:`OSError` if it cannot be opened."""
        with self._files.lease(segment_no) as fd:
            length = self._fs.size(fd)
            segment = Segment(length, self._fs.disk_bytes(fd), live_bytes, length)
        self.segments[segment_no] = segment
        self.next_segment_no = max(self.next_segment_no, segment_no + 1)
        return segment

    def resume(self, segment_no: int) -> None:
        """Go on appending to an existing segment, whose file ends where its last record ends."""
        fd = self._fs.open(self.path_of(segment_no), write=True)
        self._hint(fd)
        length = self._fs.size(fd)
        encrypt = self.vault.encryptor()
        self._writer = SegmentWriter(self._fs, fd, self._store_id, self.tier_no, segment_no, length, encrypt)

    # -- writing ------------------------------------------------------------------------------------

    def is_suspended(self) -> bool:
        """Whether an error made the tier refuse writes for now."""
        return self.health.since <= self._clock.monotonic() < self.health.retry_at  # a clock that jumps ends it

    def space_for(self, drafts: Sequence[Draft]) -> int:
        """The most that appending ``drafts`` can add to ``disk_bytes``."""
        records = sum(d.head.record_len_max for d in drafts)
        return records + (2 + records // self.setup.segment_bytes) * PAGE

    def append(self, drafts: Sequence[Draft]) -> list[Written]:
        """Append records, in new segments where the current one is full, and make them durable.

        On :class:`OSError` nothing of it may be used; call :meth:`suspend` and :meth:`leave`.
        """
        written: list[Written] = []
        group: list[Draft] = []
        end = self._writer.length if self._writer else SEGMENT_HEADER_BYTES
        for draft in drafts:
            is_full = end + draft.head.at(end).record_len > self.setup.segment_bytes
            if is_full and end > SEGMENT_HEADER_BYTES:
                written += self._append_group(group)
                self._roll()
                group, end = [], SEGMENT_HEADER_BYTES
            group.append(draft)
            end += draft.head.at(end).record_len
        written += self._append_group(group)
        self._sync()
        return written

    def _append_group(self, group: Sequence[Draft]) -> list[Written]:
        if not group:
            return []
        if self._writer is None:
            if not self.is_there():
                raise FileNotFoundError(errno.ENOENT, "the tier's folder is not there", self.setup.folder)
            number = self.next_segment_no
            self.next_segment_no += 1
            self._writer = SegmentWriter.create(
                self._fs, self.path_of(number), self._store_id, self.tier_no, number, self.vault.encryptor()
            )
            self._hint(self._writer.fd)
            self.segments[number] = Segment(SEGMENT_HEADER_BYTES, PAGE)
            self._new_names = True
        writer = self._writer
        if writer not in self._dirty:
            self._dirty.append(writer)
            self.uncommitted.add(writer.segment_no)
        before = writer.length
        written = writer.append(group)
        segment = self.segments[writer.segment_no]
        segment.length = writer.length
        segment.disk_bytes += align_up(writer.length, PAGE) - align_up(before, PAGE)
        self.bytes_written += writer.length - before
        if self.gate.budget is not None:
            self.gate.budget.spend(writer.length - before)
        return written

    def _roll(self) -> None:
        """Leave the current segment: it is complete (and closed once it is durable)."""
        if self._writer is not None and self._writer not in self._dirty:
            self._dirty.append(self._writer)
            self.uncommitted.add(self._writer.segment_no)
        self._writer = None

    def seal(self) -> None:
        """Stop appending to the current segment, all of which is durable."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _sync(self) -> None:
        for writer in self._dirty:
            writer.sync()
        if self._new_names:
            self._fs.sync_dir(self.setup.folder)
            self._new_names = False
        for writer in self._dirty:
            if writer is not self._writer:
                writer.close()
        self._dirty.clear()

    def leave(self) -> set[int]:
        """Stop appending to the current segment and to those appended to since the last commit; returns the latter.

        What they hold beyond that commit must be given up: see :meth:`cut` and :meth:`drop`.
        """
        for writer in {*self._dirty, *([self._writer] if self._writer else [])}:
            try:
                writer.close()
            except OSError:
                self._signals.count("close_errors")
        touched = set(self.uncommitted)
        self.has_left |= bool(touched)
        self._dirty.clear()
        self.uncommitted.clear()
        self._writer = None
        return touched

    def cut(self, segment_no: int, length: int) -> None:
        """Give up what a segment holds beyond ``length``. The next commit seals it, so that this holds even if
        the file cannot be cut now."""
        segment = self.segments[segment_no]
        segment.length = segment.committed_len = length
        self.uncommitted.add(segment_no)
        try:
            fd = self._fs.open(self.path_of(segment_no), write=True)
            try:
                self._fs.truncate(fd, length)
                segment.disk_bytes = self._fs.disk_bytes(fd)
            finally:
                self._fs.close(fd)
        except OSError:
            self._signals.count("reclaim_errors")

    def suspend(self, error: BaseException) -> bool:
        """After a failed write: refuse writes for a while; whether this is news.

        A failed sync is never retried: the kernel may have dropped the pages and say yes the next time.
        """
        health = self.health
        first = not health.retry_at
        health.wait_s = min(_RETRY_S_MAX, health.wait_s * 2 or _RETRY_S_FIRST)
        health.since = self._clock.monotonic()
        health.retry_at = health.since + health.wait_s
        health.last_error = str(error)
        health.errors += 1
        if first:
            self._signals.emit(TierSuspended(self.name, str(error)))
        return first

    def recovered(self) -> None:
        """A write succeeded, index commit included."""
        if self.health.retry_at:
            self.health = _Health(last_error=self.health.last_error, errors=self.health.errors)
            self._signals.emit(TierResumed(self.name))

    # -- giving space back --------------------------------------------------------------------------

    def retire(self, freed: Sequence[Freed]) -> None:
        """Mark records as dead on disk and give their pages back, where the file system can.

        The index no longer names them, so nothing here needs to be durable: a mark that is lost only means
        that a later rebuild finds the record again.
        """
        by_segment: dict[int, list[Freed]] = {}
        for f in freed:
            by_segment.setdefault(f.segment_no, []).append(f)
        for segment_no, records in by_segment.items():
            if segment_no not in self.segments:
                continue
            try:
                self._retire_in(segment_no, records)
            except OSError:
                self._signals.count("reclaim_errors")

    def _retire_in(self, segment_no: int, records: Sequence[Freed]) -> None:
        fd = self._fs.open(self.path_of(segment_no), write=True)
        try:
            for f in records:
                self._fs.write_at(fd, [bytes((f.state,))], f.offset + STATE_OFFSET)
                if f.state is RecordState.DEAD:
                    self._punch(fd, f)
            self.segments[segment_no].disk_bytes = self._fs.disk_bytes(fd)
        finally:
            self._fs.close(fd)

    def _punch(self, fd: int, f: Freed) -> None:
        start = align_up(f.offset + f.head_len, PAGE)
        length = (f.offset + f.record_len) // PAGE * PAGE - start
        if length > 0 and self.can_punch:
            self.can_punch = self._fs.punch(fd, start, length)

    def drop(self, segment_no: int) -> None:
        """Remove a segment that the index no longer names."""
        self.segments.pop(segment_no, None)
        for places in (self.doubted, self.condemned):
            places -= {p for p in tuple(places) if p[0] == segment_no}
        try:
            self._fs.unlink(self.path_of(segment_no))
        except FileNotFoundError:
            pass
        except OSError:
            self._signals.count("reclaim_errors")
        self._files.forget(segment_no)

    # -- reading ------------------------------------------------------------------------------------

    def fetch(self, wanted: Sequence[tuple[Extent, Sequence[memoryview]]]) -> Fetched:
        """Read records that stand in one segment, in offset order, unchecked; see :func:`fetch_records`."""
        with self._files.lease(wanted[0][0].segment_no) as fd, self._turn:
            return fetch_records(self._fs, fd, wanted)

    def fetch_span(
        self, extents: Sequence[Extent], memory: Callable[[int], memoryview]
    ) -> tuple[Fetched, list[memoryview]]:
        """The same in one piece of memory; see :func:`kvtier.segment.reader.fetch_span`."""
        with self._files.lease(extents[0].segment_no) as fd, self._turn:
            return fetch_span(self._fs, fd, extents, memory)

    def records(self, segment_no: int, start: int, count_max: int) -> list[Found]:
        """The next records of a segment from an offset on, their heads checked. :class:`FormatError` if it is not this
        segment, :class:`OSError` if it cannot be read."""
        with self._files.lease(segment_no) as fd:
            items = scan(self._fs, fd, self._store_id, self.tier_no, segment_no, start=start)
            return list(islice((i for i in items if isinstance(i, Found)), count_max))

    def check_lengths(self, extent: Extent, nbytes: int) -> None:
        """Whether its segment can hold what the index says of a record, and that can be ``nbytes`` once decoded: asked
        before memory is made for it. Raises :class:`FormatError`; :class:`OSError` if the segment cannot be opened."""
        known = self.segments.get(extent.segment_no)
        length = known.length if known is not None else 0
        if extent.end > length:  # it came, or grew, in another process
            with self._files.lease(extent.segment_no) as fd:
                length = self._fs.size(fd)
        if extent.end > length:
            raise FormatError("the segment ends inside the record")
        if nbytes > max(length, self.setup.segment_bytes):
            raise FormatError("the block is longer than a segment")

    def check(self, fetched: Fetched) -> list[RecordHead | FormatError]:
        """For each record: its head, or why its bytes must not be used."""
        return check_records(fetched, self._store_id, self.tier_no)

    def decrypt(self, head: RecordHead, extent: Extent, stored: memoryview) -> memoryview:
        """The codec's output in a checked record. Raises :class:`DecryptError`, :class:`KeyMissing`."""
        return self.vault.decrypt_payload(head, extent.place(self._store_id, self.tier_no), stored)

    def doubt(self, place: tuple[int, int], *, condemn: bool) -> None:
        """Note that a record could not be read, or (``condemn``) is not what it should be. Any thread."""
        self.doubted.add(place)
        if condemn:
            self.condemned.add(place)

    def is_there(self) -> bool:
        """Whether the tier's folder is the one with its label, not gone and not the empty place where its disk was
        mounted (so that a missing file means a lost segment)."""
        return self._fs.exists(os.path.join(self.setup.folder, TIER_FILE))

    def close(self) -> None:
        self.seal()
        self._files.close()
