"""Reads over both halves of a store: memory first, then the disk tiers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvtier.back import Back
from kvtier.blocks import BlockInfo, BlockState, Explanation, Hit, HitInto, Miss, MissReason
from kvtier.buffers import check_size, copy_across
from kvtier.events import Signals
from kvtier.front import EXPIRED, Front, InMemory
from kvtier.tally import Tally
from kvtier.tiers.ram import RamBlock
from kvtier.tiers.reading import Located, Wanted

_LOCATE_AT_ONCE = 1024


class Reads:
    """What :class:`kvtier.Store` answers its readers with; keys are checked and hashed by then. Any thread."""

    def __init__(self, front: Front, back: Back | None, signals: Signals) -> None:
        self._front = front
        self._back = back
        self._signals = signals
        self.tally = Tally()

    def get(self, wanted: Wanted) -> Hit | Miss:
        found = self._front.find(wanted)
        if found is None and self._back is not None:
            self._back.prefetching.wait_for(wanted.block_id)
            found = self._front.find(wanted)  # also if there was nothing to wait for: it may have come just before that
        if found is not None or self._back is None:
            return self._in_memory(wanted, found)
        located = self._back.locate([wanted])[0]
        if isinstance(located, MissReason):
            return self._miss(wanted, located)
        return self._on_disk(located, self._back.read(located))

    def get_into(self, wanted: Wanted, targets: Sequence[memoryview]) -> HitInto | Miss:
        """Raises :class:`kvtier.LimitError` if ``targets`` are not of the block's size together."""
        size = sum(t.nbytes for t in targets)
        found = self._front.find(wanted)
        if found is not None or self._back is None:
            hit = self._in_memory(wanted, found)
            if isinstance(hit, Miss):
                return hit
            check_size(size, hit.nbytes)
            copy_across(hit.buffers, targets)
            return HitInto(wanted.key, size, hit.meta, hit.tier)
        located = self._back.locate([wanted])[0]
        if isinstance(located, MissReason):
            return self._miss(wanted, located)
        check_size(size, located.entry.nbytes)
        read = self._back.read_into(located, targets)
        if isinstance(read, MissReason):
            return self._miss(wanted, read)
        block, meta = read
        self.tally.count(wanted.namespace, hit=True)
        return HitInto(wanted.key, size, meta, block.tier.name)

    def get_many(self, wanted: Sequence[Wanted], *, keep: bool) -> Iterator[Hit | Miss]:
        if self._back is not None and wanted:
            self._back.prefetching.asked(wanted[0].namespace, [w.block_id for w in wanted])
        for at in range(0, len(wanted), _LOCATE_AT_ONCE):
            yield from self._get_some(wanted[at : at + _LOCATE_AT_ONCE], wanted[-1], keep)

    def _get_some(self, wanted: Sequence[Wanted], last: Wanted, keep: bool) -> Iterator[Hit | Miss]:
        back = self._back
        coming = back.prefetching.coming(w.block_id for w in wanted) if back is not None else set()  # may be there now
        found = self._front.find_many(wanted, use=True)
        if back is None:
            yield from (self._in_memory(w, f) for w, f in zip(wanted, found, strict=True))
            return
        missing = [w for w, f in zip(wanted, found, strict=True) if f is None]
        located = back.locate([w for w in missing if w.block_id not in coming])
        places = iter(located)
        on_disk = [p for p in located if isinstance(p, Located)]
        with back.guarding(on_disk, last):
            ahead = back.read_ahead(on_disk, keep=keep)
            for w, f in zip(wanted, found, strict=True):
                if f is not None:
                    yield self._in_memory(w, f)
                elif w.block_id in coming:
                    yield self.get(w)
                elif isinstance(place := next(places), Located):
                    yield self._on_disk(place, next(ahead))
                else:
                    yield self._miss(w, place)

    def prefetch(self, wanted: Sequence[Wanted]) -> int:
        """Bring up into RAM what is not in memory; how many blocks that is."""
        back = self._back
        if back is None or not wanted:
            return 0
        back.prefetching.asked(wanted[0].namespace, [w.block_id for w in wanted])
        return self._bring_up(back, wanted)

    def answered(self, wanted: Sequence[Wanted]) -> int:
        """The same after an answer, if the policy wants it."""
        back = self._back
        if back is None or not wanted:
            return 0
        pays = back.prefetching.answered(wanted[0].namespace, [w.block_id for w in wanted])
        return self._bring_up(back, wanted, is_expected=True) if pays else 0

    def _bring_up(self, back: Back, wanted: Sequence[Wanted], *, is_expected: bool = False) -> int:
        found = self._front.find_many(wanted, use=False)
        missing = [w for w, f in zip(wanted, found, strict=True) if f is None]
        located = [p for p in back.locate(missing) if isinstance(p, Located)]
        return back.prefetching.request(located, is_expected=is_expected)

    def present(self, wanted: Sequence[Wanted]) -> list[bool]:
        found = self._front.find_many(wanted, use=False)
        missing = [w for w, f in zip(wanted, found, strict=True) if f is None]
        if self._back is None or not missing:
            return [f is not None and f.block is not None for f in found]
        places = iter(self._back.locate(missing))
        return [isinstance(next(places), Located) if f is None else f.block is not None for f in found]

    def info_many(self, wanted: Sequence[Wanted]) -> list[BlockInfo | None]:
        found = self._front.find_many(wanted, use=False)
        missing = [w for w, f in zip(wanted, found, strict=True) if f is None]
        places = iter(self._back.locate(missing) if self._back is not None and missing else ())
        return [
            self._info_of(next(places, None)) if f is None else _info(w, f) for w, f in zip(wanted, found, strict=True)
        ]

    def _info_of(self, located: Located | MissReason | None) -> BlockInfo | None:
        return self._back.info(located) if self._back is not None and isinstance(located, Located) else None

    def explain(self, wanted: Wanted) -> Explanation:
        found = self._front.find(wanted, use=False)
        if found is None:
            return self._back.explain(wanted) if self._back else Explanation(BlockState.UNKNOWN)
        if found.block is None:
            return Explanation(BlockState.EXPIRED if found.place == EXPIRED else BlockState.DELETED)
        return Explanation(BlockState.RAM if found.place == "ram" else BlockState.QUEUED, found.place)

    def _in_memory(self, wanted: Wanted, found: InMemory | None) -> Hit | Miss:
        if found is None or found.block is None:
            return self._miss(wanted, MissReason.ABSENT)
        self.tally.count(wanted.namespace, hit=True)
        return Hit(wanted.key, found.block.buffers, found.block.meta, found.place)

    def _on_disk(self, located: Located, block: RamBlock | MissReason) -> Hit | Miss:
        if isinstance(block, MissReason):
            return self._miss(located.wanted, block)
        self.tally.count(located.wanted.namespace, hit=True)
        return Hit(block.key, block.buffers, block.meta, located.tier.name)

    def _miss(self, wanted: Wanted, reason: MissReason) -> Miss:
        self._signals.count(f"miss:{reason.value}")
        self.tally.count(wanted.namespace, hit=False)
        return Miss(wanted.key, reason)


def _info(wanted: Wanted, found: InMemory) -> BlockInfo | None:
    if found.block is None:
        return None
    return BlockInfo(wanted.key, found.block.meta, tuple(v.nbytes for v in found.block.buffers), found.place)
