"""The index by itself: checksums of its entries, and whether its counts are those of its blocks."""

from __future__ import annotations

from collections import Counter

from kvtier.check.report import Finding, Kind, Report
from kvtier.index.lmdb_index import LmdbIndex, View
from kvtier.segment.format import RecordKind

_TIER_NUMBERS = range(256)


def check_accounts(index: LmdbIndex, report: Report) -> None:
    """Check all entries in one view, so that nothing changes meanwhile. Takes memory for each payload."""
    with index.read() as view:
        if not view.is_complete():
            report.add(Finding(Kind.INDEX, "it was not finished"))
            return
        if damaged := view.damaged():
            report.add(Finding(Kind.INDEX, f"{damaged} entries do not pass their checksums"), damaged)
            return  # so its counts cannot be right
        _check_counts(view, report)


def _check_counts(view: View, report: Report) -> None:
    refs: Counter[tuple[int, bytes]] = Counter()
    live: Counter[tuple[int, int]] = Counter()
    for _, entry in view.blocks():
        refs[entry.tier_no, entry.content_id] += 1
        if entry.kind != RecordKind.BLOCK:  # else its record is that of its payload
            live[entry.tier_no, entry.segment_no] += entry.record_len
    for tier_no in _TIER_NUMBERS:
        for content_id, content in view.contents(tier_no):
            live[tier_no, content.segment_no] += content.record_len
            if (needed := refs[tier_no, content_id]) != content.refs:
                what = f"a payload has {needed} blocks, not {content.refs}"
                report.add(Finding(Kind.INDEX, what, None, content.segment_no, content.offset))
    for tier_no in _TIER_NUMBERS:
        for number, segment in view.segments(tier_no).items():
            if (needed := live[tier_no, number]) != segment.live_bytes:
                what = f"blocks need {needed} bytes of a segment, not {segment.live_bytes}"
                report.add(Finding(Kind.INDEX, what, None, number))
