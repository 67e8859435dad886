"""The segments by themselves: one walk over all records, in the order in which they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kvtier.check.report import Finding, Kind, Report
from kvtier.check.subject import Subject, TierFolder
from kvtier.fs import FileSystem
from kvtier.identity import TIER_FILE
from kvtier.index.schema import IndexDamaged
from kvtier.segment.format import SEGMENT_HEADER_BYTES, FormatError, check_segment_header
from kvtier.segment.names import segment_name
from kvtier.segment.scanner import Damaged, Found, TornTail, scan

SegmentId = tuple[int, int]  # tier number, segment number
Progress = Callable[[int, int], None]  # segments walked, segments to walk


@dataclass
class Walked:
    """What is known of the segments afterwards. Whether it is damage depends on whether a block needs it."""

    doubtful: set[tuple[int, int, int]] = field(default_factory=set)  # tier, segment, offset: no sound record there
    missing: set[SegmentId] = field(default_factory=set)
    bad_headers: set[SegmentId] = field(default_factory=set)
    unread: set[SegmentId] = field(default_factory=set)  # reading them failed on the way


class Walker:
    """Walks the segments of a store."""

    def __init__(self, subject: Subject, report: Report, *, payloads: bool) -> None:
        self._subject = subject
        self._fs = subject.fs
        self._report = report
        self._payloads = payloads
        self.walked = Walked()

    def walk(self, progress: Progress | None) -> Walked:
        """Walk all segments of all tiers. :class:`OSError` if a tier's folder cannot be listed."""
        tiers = self._subject.tiers
        known = {tier: self._known(tier) for tier in tiers}  # before the files, which are there first
        there = {tier: tier.segments(self._fs) for tier in tiers}
        total = sum(map(len, there.values()))
        for tier in tiers:
            self._note_names(tier)
            self._find_missing(tier, known[tier] - set(there[tier]))
            for number in there[tier]:
                self._walk_one(tier, number, known[tier])
                self._report.segments += 1
                if progress:
                    progress(self._report.segments, total)
        return self.walked

    def _known(self, tier: TierFolder) -> set[int]:
        if self._subject.index is None:
            return set()
        with self._subject.index.read() as view:
            try:
                return set(view.segments(tier.tier_no))
            except IndexDamaged:
                return set()  # counted with the other entries

    def _note_names(self, tier: TierFolder) -> None:
        ours = {TIER_FILE, *map(segment_name, tier.segments(self._fs))}
        for name in set(self._fs.list_dir(tier.folder)) - ours:
            self._report.notes["temporary_files" if name.endswith(".tmp") else "unknown_files"] += 1

    def _find_missing(self, tier: TierFolder, numbers: set[int]) -> None:
        """Of these, which a moment ago had no file, those that the index still names."""
        for number in sorted(numbers & self._known(tier)):
            self.walked.missing.add((tier.tier_no, number))
            self._report.add(Finding(Kind.SEGMENT, "its file is not there", tier.name, number))

    def _walk_one(self, tier: TierFolder, number: int, known: set[int]) -> None:
        try:
            fd = self._fs.open(tier.path_of(number))
            try:
                header = read_header(self._fs, fd)
                is_begun = number in known or header.strip(b"\0") != b""
                problem = header_problem(header, self._subject.store_id, tier, number)
                if problem and is_begun:
                    self.walked.bad_headers.add((tier.tier_no, number))
                    self._report.add(Finding(Kind.SEGMENT, problem, tier.name, number))
                elif number not in known:
                    self._report.notes["segments_not_in_index"] += 1
                self._walk_records(tier, number, fd)
            finally:
                self._fs.close(fd)
        except FileNotFoundError:
            self._report.notes["segments_dropped_meanwhile"] += 1
        except OSError:
            self.walked.unread.add((tier.tier_no, number))
            self._report.notes["segments_unreadable"] += 1

    def _walk_records(self, tier: TierFolder, number: int, fd: int) -> None:
        for item in records_of(self._subject, tier, number, fd, payloads=self._payloads):
            if isinstance(item, Found):
                self._report.records += 1
                self._report.record_bytes += item.head.record_len
                continue
            self.walked.doubtful.add((tier.tier_no, number, item.offset))
            if isinstance(item, TornTail):
                self._report.notes["tail_bytes"] += self._fs.size(fd) - item.offset
                continue
            self._report.notes["bytes_without_record"] += item.end - item.offset
            if self._subject.index is None:  # nothing can say that nobody needs them
                self._report.add(Finding(Kind.RECORD, item.reason, tier.name, number, item.offset))


def records_of(
    subject: Subject, tier: TierFolder, number: int, fd: int, *, payloads: bool
) -> Iterator[Found | Damaged | TornTail]:
    """All records of a segment: they prove themselves, whatever its header says."""
    start = SEGMENT_HEADER_BYTES
    return scan(subject.fs, fd, subject.store_id, tier.tier_no, number, start=start, payloads=payloads)


def read_header(fs: FileSystem, fd: int) -> bytearray:
    """A segment's header, or as much of it as there is."""
    raw = bytearray(SEGMENT_HEADER_BYTES)
    del raw[fs.read_at(fd, [memoryview(raw)], 0) :]
    return raw


def header_problem(header: bytearray, store_id: bytes, tier: TierFolder, number: int) -> str | None:
    """What is wrong with a segment's header."""
    try:
        check_segment_header(header, store_id, tier.tier_no, number)
    except FormatError as e:
        return str(e)
    return None
