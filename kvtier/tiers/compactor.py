"""Compaction: what lives in sparse segments is copied to the end of its tier, so that they can be removed.

A tier has one job at a time: search some segments, copy what lives in them, remove them; all of it in small steps, of
which each leaves a store as good as any. So nothing of a job is durable but its copies: it can be put off, paused, and
given up anywhere, by a crash too. A segment is removed by a commit after that of its last copies: a loss of power takes
one commit at most.

Threads: the store's background worker only, except :attr:`Compactor.is_paused`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from kvtier.events import SegmentsCompacted, Signals
from kvtier.index.lmdb_index import IndexFull, LmdbIndex, View
from kvtier.index.schema import BlockEntry, ContentEntry
from kvtier.policy.base import CompactionPolicy, SegmentFacts, TierFacts
from kvtier.policy.compaction import Copy, Reclaim, cheapest
from kvtier.policy.guarded import policy_disabled
from kvtier.segment.format import PAGE, SEGMENT_HEADER_BYTES, FormatError, RecordKind
from kvtier.segment.writer import Draft
from kvtier.tiers.copier import Copier
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.drafts import head_of
from kvtier.tiers.ledger import Ledger
from kvtier.tiers.room import NoRoom
from kvtier.tiers.sparse import BlockNamer, Sparse
from kvtier.vault import KeyMissing

_BATCH_BYTES = 4 << 20
_BATCH_BLOCKS = 512
_LOOKED_AT_ONCE = 4096
_AGAIN_S = 1.0
_DEAD_RATIO_MIN = 0.1
_FAILURES = (OSError, FormatError, NoRoom, KeyMissing, IndexFull)

_T = TypeVar("_T")


class Writer(Protocol):
    """What the compactor needs of the ladder."""

    def spare_bytes(self, tier: DiskTier, blocks: int) -> int:
        """How much may be appended to a tier below its cap, as records of so many blocks."""

    def write_copies(self, tier: DiskTier, drafts: Sequence[tuple[int, Draft]]) -> None:
        """Append copies of blocks of the tier, and let the index name them; none of its segments is removed. Raises as
        any write does."""


class Gain(NamedTuple):
    """What compacting has given. ``bytes_reclaimed``: what the segments occupied, less the copies."""

    segments: int = 0
    bytes_copied: int = 0
    bytes_reclaimed: int = 0


class Compactor:
    """Compacts the tiers of a store, as their policies say."""

    def __init__(
        self, index: LmdbIndex, ledger: Ledger, copier: Copier, writer: Writer, block_id: BlockNamer, signals: Signals
    ) -> None:
        self._index = index
        self._ledger = ledger
        self._copier = copier
        self._writer = writer
        self._block_id = block_id
        self._signals = signals
        self._policies: dict[int, CompactionPolicy] = {}
        self._jobs: dict[int, Sparse] = {}
        self._left_alone: set[tuple[int, int]] = set()  # (tier, segment) that could not be emptied
        self._found_nothing: dict[int, int] = {}  # by tier: at which change of the store
        self.is_paused = False

    # -- in the background --------------------------------------------------------------------------

    def step(self, tiers: Sequence[DiskTier]) -> float | None:
        """Do a bit of work: 0.0, if there was any. Else in how many seconds there is, by the tiers' bandwidth; None:
        not before something changes."""
        soonest = None
        for tier in tiers:
            wait = self._step_in(tier)
            if wait == 0.0:
                return 0.0
            if wait is not None:
                soonest = wait if soonest is None else min(soonest, wait)
        return soonest

    def _step_in(self, tier: DiskTier) -> float | None:
        if self.is_paused or tier.is_suspended() or not self._copies(tier):
            return None
        if wait := tier.copying.wait_s():
            return wait
        try:
            job = self._jobs.get(tier.tier_no) or self._begin_if_due(tier)
            if job is None:
                return None
            self._go_on(job)
        except _FAILURES:
            self._signals.count("compaction_errors")
            return _AGAIN_S
        return 0.0

    def _begin_if_due(self, tier: DiskTier) -> Sparse | None:
        """Nothing, as long as nothing has changed since there was nothing: this is asked after every bit of work."""
        if self._found_nothing.get(tier.tier_no) == self._ledger.changes:
            return None
        facts = TierFacts(tier.disk_bytes, tier.room.cap(tier.disk_bytes), tier.sealed_facts())
        job = self._begin(tier) if self._ask(tier, lambda policy: policy.is_due(facts)) else None
        if job is None:
            self._found_nothing[tier.tier_no] = self._ledger.changes
        return job

    # -- at the cap, and by hand --------------------------------------------------------------------

    def make_room(self, tier: DiskTier) -> bool:
        """Where holes cannot be punched: copy out of a segment at once, whatever the bandwidth; whether that gave
        space back. Raises as any write does."""
        if tier.can_punch or self.is_paused or not self._copies(tier):
            return False
        before = tier.disk_bytes
        try:
            if job := self._jobs.get(tier.tier_no) or self._begin(tier, at_most=1):
                self._finish_job(job)
        except _FAILURES:
            if tier.is_suspended():
                raise
            self._signals.count("compaction_errors")
        return tier.disk_bytes < before

    def compact(self, tier: DiskTier) -> Iterator[tuple[int, int]]:
        """Copy out of all segments that are dead enough, whatever the policy; yields how many of how many bytes have
        been looked at. Raises as any write does."""
        ratio = tier.setup.compaction_dead_ratio
        self._policies[tier.tier_no] = Copy(ratio)
        self._seal_if_sparse(tier)
        done, total = 0, sum(f.disk_bytes for f in self._candidates(tier) if cheapest([f], ratio) is not None)
        while job := self._begin(tier):
            try:
                self._finish_job(job)
            except _FAILURES:
                if tier.is_suspended():
                    raise
                self._signals.count("compaction_errors")
                if not job.bytes_copied:  # nor would it be any other the next time
                    self._left_alone.update((tier.tier_no, n) for n in job.segments)
            done += job.disk_bytes
            yield done, max(done, total)

    def count_sparse(self, tier: DiskTier) -> int:
        """How many segments are dead enough to be emptied."""
        ratio = tier.setup.compaction_dead_ratio
        facts = [f for f in tier.sealed_facts() if _is_partly_dead(tier, f)]
        return sum(cheapest([f], ratio) is not None for f in facts)

    def _finish_job(self, job: Sparse) -> None:
        while self._jobs.get(job.tier.tier_no) is job:
            self._go_on(job)

    # -- which --------------------------------------------------------------------------------------

    def residents(self, tier: DiskTier) -> list[int]:
        """The blocks that need something of the segment that is to be emptied next; none, if there is no such segment.
        Looks at all blocks."""
        picked = self._pick(tier, self._candidates(tier))
        if picked is None:
            return []
        with self._index.read() as view:
            return [b for b, e in view.blocks() if e.tier_no == tier.tier_no and _stands_in(view, e, picked)]

    def reserve_bytes(self, tier: DiskTier) -> int:
        """What writes leave free in a tier, so that a segment can be copied out of: where holes cannot be punched."""
        if tier.can_punch or not self._copies(tier):
            return 0
        return int((1 - tier.setup.compaction_dead_ratio) * tier.setup.segment_bytes) + 16 * PAGE

    def _pick(self, tier: DiskTier, candidates: Sequence[SegmentFacts]) -> int | None:
        def ask(policy: CompactionPolicy) -> int | None:
            picked = policy.pick(candidates)
            if picked is not None and picked not in {f.segment_no for f in candidates}:
                raise ValueError(f"it picked {picked!r}, which is no segment that it was shown")
            return picked

        return self._ask(tier, ask)

    def _candidates(self, tier: DiskTier) -> list[SegmentFacts]:
        not_now = {segment_no for segment_no, _ in tuple(tier.doubted)}
        not_now |= {segment_no for tier_no, segment_no in self._left_alone if tier_no == tier.tier_no}
        facts = [f for f in tier.sealed_facts() if f.segment_no not in not_now and _is_partly_dead(tier, f)]
        if self._pick(tier, facts) is None:  # then it need not be known what is pinned, for which chains are walked
            return []
        with self._index.read() as view:
            pinned = self._ledger.pinned_segments(view, tier.tier_no)
        return [f for f in facts if f.segment_no not in pinned]

    def _begin(self, tier: DiskTier, at_most: int | None = None) -> Sparse | None:
        """A job for the segments to be emptied next, as many as one segment can take in what lives in them."""
        self._seal_if_sparse(tier)
        candidates, live = self._candidates(tier), 0
        picked: list[SegmentFacts] = []
        spare = self._writer.spare_bytes(tier, _BATCH_BLOCKS) - 3 * PAGE
        while at_most is None or len(picked) < at_most:
            if (segment_no := self._pick(tier, candidates)) is None:
                break
            facts = next(f for f in candidates if f.segment_no == segment_no)
            live += facts.live_bytes
            if live > spare or (picked and live > tier.setup.segment_bytes):
                break
            picked.append(facts)
            candidates.remove(facts)
        if not picked:
            return None
        tier.seal()  # what has lived for long and what is new die at different times: they stand apart
        job = Sparse(tier, [f.segment_no for f in picked], self._index, self._block_id)
        self._jobs[tier.tier_no] = job
        return job

    def _seal_if_sparse(self, tier: DiskTier) -> None:
        """Copies must not go to the end of a segment out of which they would be copied again."""
        if (number := tier.active_no) is not None:
            active = SegmentFacts(number, tier.segments[number].disk_bytes, tier.segments[number].live_bytes)
            if _is_partly_dead(tier, active) and self._pick(tier, [active]) is not None:
                tier.seal()

    # -- one step -----------------------------------------------------------------------------------

    def _go_on(self, job: Sparse) -> None:
        """The next step of a job, which an error ends. Its segments are left alone from then on, unless the error will
        pass: there is no room, or nothing can be written now."""
        tier = job.tier
        try:
            if job.search():
                return
            if job.left:
                self._copy_some(job)
                return
        except BaseException as e:
            del self._jobs[tier.tier_no]
            if not (isinstance(e, NoRoom | IndexFull) or tier.is_suspended()):
                self._left_alone.update((tier.tier_no, n) for n in job.segments)
            raise
        del self._jobs[tier.tier_no]
        self._end(job)

    def _copy_some(self, job: Sparse) -> None:
        tier, size = job.tier, 0
        drafts: list[tuple[int, Draft]] = []
        with self._index.read() as view:
            for _ in range(min(len(job.left), _LOOKED_AT_ONCE)):
                if size >= _BATCH_BYTES or len(drafts) >= _BATCH_BLOCKS:
                    break
                block_id = job.left.popleft()
                needed = job.needs(view, block_id)
                if needed is not None and (draft := self._draft(*needed, tier)) is not None:
                    drafts.append((block_id, draft))
                    size += draft.head.record_len
        if drafts:
            if tier.space_for([d for _, d in drafts]) > self._writer.spare_bytes(tier, len(drafts)):
                raise NoRoom(f"tier {tier.name}: no room for the copies")
            self._writer.write_copies(tier, drafts)
        job.bytes_copied += size
        tier.copying.take(size)
        self._signals.count("compaction_bytes_copied", size)

    def _draft(self, entry: BlockEntry, content: ContentEntry | None, tier: DiskTier) -> Draft | None:
        """A copy of a block's record; None if it cannot be made, and the block stays where it is."""
        if content is None:
            return Draft(head_of(entry, RecordKind.REFERENCE, 0, 0), ())
        return self._copier.copy(entry, content, tier, tier)

    def _end(self, job: Sparse) -> None:
        """Remove the segments in which nothing lives any more."""
        tier = job.tier
        tier.seal()
        with self._ledger.change() as change:
            dead = [n for n, s in tier.segments.items() if n in job.segments or not s.live_bytes]  # of heirs too
            change.live.update({(tier.tier_no, n): 0 for n in dead})
        left = [n for n in job.segments if n in tier.segments]
        self._left_alone.update((tier.tier_no, n) for n in left)
        kept = sum(tier.segments[n].disk_bytes for n in left)
        gain = Gain(len(job.segments) - len(left), job.bytes_copied, max(0, job.disk_bytes - kept - job.bytes_copied))
        self._signals.count("compaction_segments", gain.segments)
        self._signals.count("compaction_bytes_reclaimed", gain.bytes_reclaimed)
        self._signals.emit(SegmentsCompacted(tier.name, *gain))

    # -- policies -----------------------------------------------------------------------------------

    def _copies(self, tier: DiskTier) -> bool:
        return self._ask(tier, lambda policy: policy.copies)

    def _policy(self, tier: DiskTier) -> CompactionPolicy:
        return self._policies.setdefault(tier.tier_no, tier.setup.compaction)

    def _ask(self, tier: DiskTier, question: Callable[[CompactionPolicy], _T]) -> _T:
        """What a tier's policy answers. One that fails is given up for the default."""
        policy = self._policy(tier)
        try:
            return question(policy)
        except Exception as e:
            policy_disabled(self._signals, tier.name, type(policy).__name__, f"{type(e).__name__}: {e}")
            self._policies[tier.tier_no] = Reclaim(tier.setup.compaction_dead_ratio)
            return question(self._policies[tier.tier_no])


def _is_partly_dead(tier: DiskTier, facts: SegmentFacts) -> bool:
    """Whether records in a segment are dead, to a tenth at least: else a policy could have it copied for ever."""
    records = tier.segments[facts.segment_no].length - SEGMENT_HEADER_BYTES
    return min(records, facts.disk_bytes) - facts.live_bytes >= _DEAD_RATIO_MIN * records


def _stands_in(view: View, entry: BlockEntry, segment_no: int) -> bool:
    content = view.content(entry.tier_no, entry.content_id)
    return entry.segment_no == segment_no or (content is not None and content.segment_no == segment_no)
