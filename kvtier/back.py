"""The disk half of an open store: reading through the index, and the worker that writes, moves and forgets.

The counterpart of :mod:`kvtier.front`. Reading methods may be called from any thread; what changes the
tiers runs on the worker.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

from kvtier.assembly import Parts
from kvtier.background.hashing import ContentIds
from kvtier.background.prefetcher import Prefetcher
from kvtier.background.prefetching import Prefetching
from kvtier.background.worker import Worker
from kvtier.background.write_behind import Pending
from kvtier.blocks import BlockInfo, BlockState, Explanation, MissReason
from kvtier.config import Config
from kvtier.events import Signals, WriteFailed
from kvtier.front import Front
from kvtier.index.lmdb_index import IndexFull
from kvtier.index.schema import Reason
from kvtier.policy import registry
from kvtier.policy.base import Hint
from kvtier.pool import BufferPool
from kvtier.rotation import Rotation
from kvtier.tiers.drafts import NewBlock, new_block
from kvtier.tiers.expiry import Expiry
from kvtier.tiers.ladder import Suspended
from kvtier.tiers.ram import RamBlock
from kvtier.tiers.reading import DiskReader, Located, ReadInto, Targets, Wanted
from kvtier.tiers.room import DiskFull, NoRoom
from kvtier.tiers.shrinking import Shrinker
from kvtier.vault import DecryptError, KeyMissing

_T = TypeVar("_T")

log = logging.getLogger("kvtier")

_TOUCHES_BEFORE_SAVE = 4096
_PROMOTE_AT_ONCE = 64
_LOOK_AGAIN_S = 1.0  # so that a worker that died is noticed
_STATES: dict[int, BlockState] = {reason: BlockState[reason.name] for reason in Reason}


class Back:
    """See the module."""

    def __init__(
        self,
        config: Config,
        parts: Parts,
        front: Front,
        pool: BufferPool,
        signals: Signals,
        *,
        read_only: bool,
        background: bool,
    ) -> None:
        self.parts = parts
        self.ladder = parts.ladder
        self._front = front
        self._pool = pool
        self._signals = signals
        self._read_only = read_only
        self._promotions: deque[int] = deque(maxlen=_TOUCHES_BEFORE_SAVE)
        passing, brief = self.ladder.ledger.time, partial(pool.take, is_brief=True)
        self._reader = DiskReader(parts.index, self.ladder.tiers, signals, self._on_damage, passing, pool.take, brief)
        self._expiry = Expiry(parts.index, self.ladder.ledger, signals)
        self._prefetcher = Prefetcher(
            self._reader,
            self._deliver,
            pool,
            threads=config.prefetch.threads,
            bytes_max=config.prefetch.bytes_max,
            coalesce_bytes_max=config.prefetch.coalesce_bytes_max,
        )
        self.prefetching = Prefetching(
            self._prefetcher, front.ram, registry.prefetch(config.prefetch.policy, "prefetch.policy")(), signals
        )
        self._content_ids = ContentIds(parts.vault) if background and not read_only else None
        if background:
            self._prefetcher.warm(decodes=config.decodes)
        self._worker = Worker(self._write_group, self._when_idle)
        self._shrinker = Shrinker(parts.index, self.ladder, signals)
        self._is_looking = self._may_shrink = False
        front.wake = self._worker.poke
        if not read_only:
            self._worker.submit(self.ladder.keep_caps)  # which may be lower now, or a crash left more than they allow
        if background and not read_only:
            self._worker.start()

    # -- finding and reading ------------------------------------------------------------------------

    def locate(self, wanted: Sequence[Wanted]) -> list[Located | MissReason]:
        """Where blocks are on disk."""
        return self._reader.locate(wanted)

    def has(self, wanted: Wanted) -> bool:
        return isinstance(self._reader.locate([wanted])[0], Located)

    def explain(self, wanted: Wanted) -> Explanation:
        """In which tier a block is, or what became of it."""
        located = self.locate([wanted])[0]
        if isinstance(located, Located):
            return Explanation(BlockState.STORED, located.tier.name)
        if located is not MissReason.ABSENT:
            return Explanation(BlockState.DAMAGED if located is MissReason.CORRUPT else BlockState.UNAVAILABLE)
        try:
            if self._reader.has_expired(wanted):
                return Explanation(BlockState.EXPIRED)
            departure = self.ladder.ledger.departure(wanted.block_id)
        except OSError:
            self._signals.count("index_errors")
            return Explanation(BlockState.UNAVAILABLE)
        if departure is None or departure.reason not in _STATES:
            return Explanation(BlockState.UNKNOWN)
        tier = dict(enumerate(self.parts.identity.tiers)).get(departure.tier_no)
        return Explanation(_STATES[departure.reason], tier, float(departure.when))

    def read(self, located: Located) -> RamBlock | MissReason:
        """One block, which also enters RAM."""
        self.prefetching.take_over([located.wanted.block_id])
        block = self._reader.read_one(located)
        if isinstance(block, RamBlock):
            self._keep(located, block)
            self.used([located])
        return block

    def read_into(self, run: Sequence[Located], targets: Sequence[Targets]) -> list[ReadInto | MissReason]:
        """Blocks that follow one another on disk into the caller's views; tell :meth:`used` of what was read."""
        return self._reader.read_run_into(run, targets)

    def info(self, located: Located) -> BlockInfo | None:
        """What the index says of a block; None if its metadata cannot be decrypted."""
        try:
            meta = self.parts.vault.decrypt_meta(located.entry)
        except (DecryptError, KeyMissing):
            return None
        return BlockInfo(located.wanted.key, meta, located.entry.lengths, located.tier.name)

    @contextmanager
    def guarding(self, located: Sequence[Located], last: Wanted) -> Iterator[None]:
        """Inside, blocks that are to be read, and what they extend, are evicted last; ``last``: the end of their chain.

        May end on any thread, wherever the garbage collector runs: it takes no lock that is not reentrant.
        """
        if not located or self._read_only:
            yield
            return
        ends = {p.tier.tier_no: p.wanted.block_id for p in located}  # each tier looks at its own part of a chain
        held = list(dict.fromkeys([*ends.values(), last.block_id]))
        self._worker.submit(partial(self.ladder.ledger.guards.guard, last.namespace, held, 1))
        try:
            yield
        finally:
            self._worker.submit(partial(self.ladder.ledger.guards.guard, last.namespace, held, -1))

    def read_ahead(self, located: Sequence[Located], *, keep: bool) -> Iterator[RamBlock | MissReason]:
        """Blocks in order, later ones being read while the consumer works on earlier ones."""
        self.prefetching.take_over([b.wanted.block_id for b in located])
        self.ladder.ledger.touch([b.wanted.block_id for b in located])
        self._save_touches_sometimes()
        for place, outcome in zip(located, self._prefetcher.read_ahead(located, keep=keep), strict=True):
            if isinstance(outcome, RamBlock):
                self._promote(place)
            yield outcome

    def _keep(self, located: Located, block: RamBlock, *, prefetched: bool = False) -> None:
        put = located.entry.seq, located.entry.expires_at  # the same value put again may change only the latter

        def is_current() -> bool:
            now = self._reader.locate([located.wanted])[0]
            return isinstance(now, Located) and (now.entry.seq, now.entry.expires_at) == put

        since = self._front.forgotten
        with suppress(DecryptError, KeyMissing):  # its key may have been dropped while it was read
            self.parts.vault.decrypt_meta(located.entry)
            self._front.keep(located.wanted.block_id, block, since, is_current, prefetched=prefetched)

    def _deliver(self, located: Located, block: RamBlock, prefetched: bool) -> None:
        self._keep(located, block, prefetched=prefetched)
        if prefetched:
            self._signals.count("prefetch_loaded")
            self._signals.count("prefetch_bytes", block.nbytes)

    def used(self, located: Sequence[Located]) -> None:
        """Blocks were read together: the first one becomes most recent."""
        self.ladder.ledger.touch([b.wanted.block_id for b in located])
        for block in located:
            self._promote(block)
        self._save_touches_sometimes()

    def _save_touches_sometimes(self) -> None:
        if self.ladder.ledger.touches_waiting >= _TOUCHES_BEFORE_SAVE and not self._read_only:
            self._worker.submit(self.ladder.save_touches, lazy=True)

    # -- promotion and damage -----------------------------------------------------------------------

    def _promote(self, located: Located) -> None:
        self._signals.count(f"hits:{located.tier.name}")
        block_id = located.wanted.block_id
        if self._read_only or located.tier is self.ladder.tiers[0]:
            return
        if located.tier.lift.takes(block_id):
            self._promotions.append(block_id)
            self._worker.submit(self._promote_some, lazy=True)

    def _promote_some(self) -> None:
        some = [self._promotions.popleft() for _ in range(min(_PROMOTE_AT_ONCE, len(self._promotions)))]
        if some:
            self.ladder.promote(some)

    def _on_damage(self, located: Located, reason: str) -> None:
        """A reader saw damage: it is a miss from now on; the worker takes it out of the index."""
        self._front.forget(located.wanted.block_id)
        if self._read_only:
            return
        place = located.content.segment_no, located.content.offset
        wanted, content_id = located.wanted, located.entry.content_id

        def quarantine() -> None:
            self.ladder.quarantine(wanted.block_id, located.tier, content_id, place, reason)

        self._worker.submit(quarantine)

    # -- writing ------------------------------------------------------------------------------------

    def poke(self) -> None:
        """There is something in the write queue."""
        self._worker.poke()

    def hold(self, namespace: bytes, block_ids: Sequence[int], by: int) -> None:
        """Pin (1) or unpin (-1) on the disk tiers, before any later write makes room."""
        if self._read_only:
            return
        self._worker.submit(lambda: self.ladder.ledger.hold(namespace, block_ids, by))

    def hint(self, namespace: bytes, block_ids: Sequence[int], hint: Hint) -> None:
        """Advise the disk tiers' policies on blocks."""
        if not self._read_only:
            self._worker.submit(lambda: self.ladder.ledger.hint(namespace, block_ids, hint))

    def save_recency(self) -> None:
        """Make recency durable soon."""
        self._worker.submit(self.ladder.save_touches)

    def wait(self, changed: threading.Condition, deadline: float | None = None) -> None:
        """Wait, holding ``changed``'s lock, until the write queue changes; without a worker thread, do its work."""
        if self._worker.is_alive:
            left = _LOOK_AGAIN_S if deadline is None else min(_LOOK_AGAIN_S, deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError("the write queue did not drain in time")
            changed.wait(left)
            return
        changed.release()
        try:
            self._worker.step()
        finally:
            changed.acquire()

    def _write_group(self) -> bool:
        group = self._front.next_group()
        if group:
            self._write(group)
            if self._expiry.is_overdue:  # a busy store, too, has use for the room
                self._expiry.step()
        return bool(group)

    def _write(self, group: Sequence[Pending]) -> None:
        """Write a group as one commit; if it does not fit as a whole, in halves."""
        ids = [p.block_id for p in group]
        try:
            if self._content_ids:
                self._content_ids.expect(self._front.queued())
            puts = [self._new_block(p, p.block) for p in group if p.block is not None]
            done = self.ladder.write(puts, [p.block_id for p in group if p.block is None], self._waiting)
        except Exception as e:
            if isinstance(e, NoRoom | KeyMissing) and len(group) > 1:
                half = len(group) // 2
                self._write(group[:half])
                return self._write(group[half:])
            if isinstance(e, IndexFull) and self.parts.index.grow():
                return self._write(group)
            self._lost(group, e)
            self._front.finish(group, e)
        else:
            self._reader.set_stale(ids, False)
            self._front.finish(group, None, done.put_off, done.pulled)

    def _new_block(self, pending: Pending, block: RamBlock) -> NewBlock:
        content_id = self._content_ids.of(pending, block) if self._content_ids else None
        return new_block(self.parts.vault, pending.block_id, pending.seq, block, content_id=content_id)

    def _waiting(self, block_id: int) -> NewBlock | None:
        """A block that no disk tier has taken in yet, from RAM."""
        waiting = self._front.waiting(block_id)
        if waiting is not None and waiting.block is not None:
            with suppress(KeyMissing):
                return new_block(self.parts.vault, block_id, waiting.seq, waiting.block)
        return None

    def _lost(self, group: Sequence[Pending], error: Exception) -> None:
        """Writes were lost: an older value on disk must not come back in their place."""
        ids = [p.block_id for p in group]
        self.ladder.ledger.note(
            [p.block_id for p in group if p.block is not None], Reason.WRITE_FAILED, self.ladder.tiers[0]
        )
        self._signals.count("write_failures", len(ids))
        if not isinstance(error, Suspended | DiskFull):  # of which an event has told
            reason = f"{type(error).__name__}: {error}"
            top = self.ladder.tiers[0]
            self._signals.emit(WriteFailed(top.name, len(ids), reason), quiet=bool(top.health.retry_at))
        self._reader.set_stale(ids, True)
        try:
            self.ladder.write([], self.ladder.known(ids))
        except Exception as e:  # they stay misses for as long as this process lives
            self._signals.count("index_errors")
            if not isinstance(e, Suspended):
                log.warning("older values of lost blocks cannot be deleted: %s", e)
        else:
            self._reader.set_stale(ids, False)

    # -- room ---------------------------------------------------------------------------------------

    @property
    def has_floors(self) -> bool:
        """Whether a tier has to leave a part of its disk free."""
        return not self._read_only and any(t.room.has_floor for t in self.ladder.tiers)

    def look(self) -> bool:
        """Have the worker see whether others have filled a disk up to its floor, and evict a little if so; whether it
        had to, when it did so last. Any thread."""
        if self.has_floors and not self._is_looking:
            self._is_looking = True
            self._worker.submit(self._shrink)
        return self._may_shrink

    def _shrink(self) -> None:
        self._is_looking = False
        self._may_shrink = False  # also if it fails
        self._may_shrink = self._shrinker.step()

    # -- compaction ---------------------------------------------------------------------------------

    def pause_compaction(self, paused: bool) -> None:
        """Copy nothing from now on, but for a step that is under way; or go on. Any thread."""
        self.ladder.compactor.is_paused = paused
        self._worker.poke()

    def _when_idle(self) -> float | None:
        """Make some memory ready for the next puts, or expire some blocks, or else compact a little."""
        if self._pool.restock():
            return 0.0
        if (soon := self._expiry.step()) == 0.0:
            return soon
        later = self.ladder.compactor.step(self.ladder.tiers)
        return min((s for s in (soon, later) if s is not None), default=None)

    # -- keys ---------------------------------------------------------------------------------------

    def rotate_keys(self) -> int:
        """Encrypt with current keys what is encrypted with older ones; how many blocks those were."""
        return Rotation(self.parts, self._reader, self._on_worker).run()

    def forget_keys(self) -> None:
        """Have the key provider asked anew from here on."""
        self._on_worker(self.parts.vault.forget_keys)

    def _on_worker(self, job: Callable[[], _T]) -> _T:
        """What the job returns or raises, once the worker has done it."""
        if self._read_only:
            return job()
        done: Future[_T] = Future()

        def run() -> None:
            try:
                done.set_result(job())
            except BaseException as e:
                done.set_exception(e)

        self._worker.submit(run)
        while not done.done() and not self._worker.is_alive:
            self._worker.step()
        return done.result()

    # -- the end ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write what is queued, then release everything."""
        try:
            self._prefetcher.close()
            if not self._read_only:
                self.save_recency()
            self._worker.stop()
        finally:
            if self._content_ids:
                self._content_ids.close()
            self.parts.close()
