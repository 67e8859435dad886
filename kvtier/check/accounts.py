"""The index by itself: checksums of its entries, and whether its counts are those of its blocks."""

from __future__ import annotations

from collections import Counter

from kvtier.check.report import Finding, Kind, Report
from kvtier.check.segments import SegmentId, Walked
from kvtier.index.lmdb_index import LmdbIndex, View
from kvtier.segment.format import RecordKind

_TIER_NUMBERS = range(256)


def check_accounts(index: LmdbIndex, report: Report, walked: Walked) -> None:
    """Check all entries in one view, so that nothing changes meanwhile. Takes memory for each payload. Raises as
    :func:`check_finished`."""
    with index.read() as view:
        _check_finished(view)
        if damaged := view.damaged():
            report.add(Finding(Kind.INDEX, f"{damaged} entries do not pass their checksums"), damaged)
            return  # so its counts cannot be right
        _check_counts(view, report, walked.bad_headers | walked.unread)


def check_finished(index: LmdbIndex) -> None:
    """:class:`OSError` while the index is being made anew: what it lacks then says nothing."""
    with index.read() as view:
        _check_finished(view)


def _check_finished(view: View) -> None:
    if not view.is_complete():
        raise OSError("index: it is being made anew (if no process is at it: rebuild-index goes on with it)")


def _check_counts(view: View, report: Report, unknown: set[SegmentId]) -> None:
    """``unknown``: segments that an index made anew keeps, as if all of them were needed."""
    refs: Counter[bytes] = Counter()
    live: Counter[tuple[int, int]] = Counter()
    for _, entry in view.blocks():
        refs[view.content_key(entry.tier_no, entry.content_id)] += 1
        if entry.kind != RecordKind.BLOCK:  # else its record is that of its payload
            live[entry.tier_no, entry.segment_no] += entry.record_len
    for tier_no in _TIER_NUMBERS:
        for content_id, content in view.contents(tier_no):
            live[tier_no, content.segment_no] += content.record_len
            if (needed := refs[view.content_key(tier_no, content_id)]) != content.refs:
                what = f"a payload has {needed} blocks, not {content.refs}"
                report.add(Finding(Kind.INDEX, what, None, content.segment_no, content.offset))
    for tier_no in _TIER_NUMBERS:
        for number, segment in view.segments(tier_no).items():
            if (needed := live[tier_no, number]) != segment.live_bytes and (tier_no, number) not in unknown:
                what = f"blocks need {needed} bytes of a segment, not {segment.live_bytes}"
                report.add(Finding(Kind.INDEX, what, None, number))
