"""Reads over both halves of a store: memory first, then the disk tiers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

from kvtier.back import Back
from kvtier.background.read_order import coalesce
from kvtier.blocks import BlockInfo, BlockState, Explanation, Hit, HitInto, Miss, MissReason
from kvtier.buffers import check_size, copy_across
from kvtier.events import Signals
from kvtier.front import EXPIRED, Front, InMemory
from kvtier.tally import Tally
from kvtier.tiers.ram import RamBlock
from kvtier.tiers.reading import Located, ReadInto, Targets, Wanted

_LOCATE_AT_ONCE = 1024
_RUN_BYTES_MAX = 8 << 20  # of neighbours that are read into place at once: the checks then find them in the cache


#: Where a block is, or why it is nowhere.
Place = InMemory | Located | MissReason


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

    def get_into(self, wanted: Wanted, targets: Targets) -> HitInto | Miss:
        """Raises :class:`kvtier.LimitError` if ``targets`` are not of the block's size together."""
        found = self._front.find(wanted)
        place = found or (self._back.locate([wanted])[0] if self._back is not None else MissReason.ABSENT)
        _check_fits(place, targets)
        read = self._read_into([place], [targets])[0] if isinstance(place, Located) else place
        return self._into(wanted, read, targets)

    def get_many_into(self, wanted: Sequence[Wanted], targets: Sequence[Targets]) -> list[HitInto | Miss]:
        """Raises :class:`kvtier.LimitError`, before anything is filled, if the targets of a block are not of its size
        together."""
        places: list[Place] = []
        for at in range(0, len(wanted), _LOCATE_AT_ONCE):
            places += self._places(wanted[at : at + _LOCATE_AT_ONCE])
        for place, into in zip(places, targets, strict=True):
            _check_fits(place, into)
        on_disk = [place for place in places if isinstance(place, Located)]
        into_disk = [into for place, into in zip(places, targets, strict=True) if isinstance(place, Located)]
        with self._back.guarding(on_disk, wanted[-1]) if self._back is not None and on_disk else nullcontext():
            reads = iter(self._read_into(on_disk, into_disk))
        return [
            self._into(w, next(reads) if isinstance(place, Located) else place, into)
            for w, place, into in zip(wanted, places, targets, strict=True)
        ]

    def _places(self, wanted: Sequence[Wanted]) -> list[Place]:
        """Where blocks are: in memory, else on disk."""
        found = self._front.find_many(wanted, use=True)
        missing = [w for w, f in zip(wanted, found, strict=True) if f is None]
        if self._back is None or not missing:
            return [f or MissReason.ABSENT for f in found]
        on_disk = iter(self._back.locate(missing))
        return [f or next(on_disk) for f in found]

    def _read_into(self, located: Sequence[Located], targets: Sequence[Targets]) -> list[ReadInto | MissReason]:
        """Blocks on disk, as they lie there: neighbours with one read."""
        reads: list[ReadInto | MissReason] = [MissReason.ABSENT] * len(located)
        if self._back is None:
            return reads
        order = sorted(range(len(located)), key=lambda i: located[i].place)
        begin = 0
        for run in coalesce([located[i] for i in order], _RUN_BYTES_MAX):
            indices = order[begin : begin + len(run)]
            begin += len(run)
            for i, read in zip(indices, self._back.read_into(run, [targets[i] for i in indices]), strict=True):
                reads[i] = read
        self._back.used([read[0] for read in reads if not isinstance(read, MissReason)])
        return reads

    def _into(self, wanted: Wanted, found: InMemory | ReadInto | MissReason, targets: Targets) -> HitInto | Miss:
        if isinstance(found, MissReason):
            return self._miss(wanted, found)
        if isinstance(found, InMemory):
            hit = self._in_memory(wanted, found)
            if isinstance(hit, Miss):
                return hit
            copy_across(hit.buffers, targets)
            return HitInto(wanted.key, hit.nbytes, hit.meta, hit.tier)
        block, meta = found
        self.tally.count(wanted.namespace, hit=True)
        return HitInto(wanted.key, block.entry.nbytes, meta, block.tier.name)

    def get_many(self, wanted: Sequence[Wanted], *, keep: bool) -> Iterator[Hit | Miss]:
        if self._back is not None and wanted:
            self._back.prefetching.asked(wanted[0].namespace, [w.block_id for w in wanted])
        for at in range(0, len(wanted), _LOCATE_AT_ONCE):
            yield from self._get_some(wanted[at : at + _LOCATE_AT_ONCE], wanted[-1], keep)

    def _get_some(self, wanted: Sequence[Wanted], last: Wanted, keep: bool) -> Iterator[Hit | Miss]:
        back = self._back
        coming = back.prefetching.coming(w.block_id for w in wanted) if back is not None else set()  # may be there now
        found = self._front.find_many(wanted, use=True)
        if back is None or None not in found:
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


def _check_fits(place: Place, targets: Targets) -> None:
    """Raises :class:`kvtier.LimitError` unless the targets of a block that is there are of its size together."""
    given = sum(view.nbytes for view in targets)
    if isinstance(place, Located):
        check_size(given, place.entry.nbytes)
    elif isinstance(place, InMemory) and place.block is not None:
        check_size(given, place.block.nbytes)


def _info(wanted: Wanted, found: InMemory) -> BlockInfo | None:
    if found.block is None:
        return None
    return BlockInfo(wanted.key, found.block.meta, tuple(v.nbytes for v in found.block.buffers), found.place)
