"""Reads over both halves of a store: memory first, then the disk tiers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from kvtier.back import Back
from kvtier.background.read_order import coalesce
from kvtier.blocks import BlockInfo, BlockState, Explanation, Hit, HitInto, Miss, MissReason
from kvtier.buffers import check_size, copy_across
from kvtier.events import Signals
from kvtier.front import EXPIRED, Front, InMemory
from kvtier.tally import Tally
from kvtier.tiers.ram import RamBlock
from kvtier.tiers.reading import Located, Wanted

_LOCATE_AT_ONCE = 1024
_RUN_BYTES_MAX = 8 << 20  # of neighbours that are read into place at once: the checks then find them in the cache


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
        found = self._front.find(wanted)
        if found is not None:
            return self._copied(wanted, found, targets)
        ((_, outcome),) = self._get_into_from_disk([0], [wanted], [targets])
        return outcome

    def get_many_into(self, wanted: Sequence[Wanted], targets: Sequence[Sequence[memoryview]]) -> list[HitInto | Miss]:
        """Raises :class:`kvtier.LimitError` if the targets of a block are not of its size together: then, as after a
        miss, what is in any of them is undefined."""
        found = self._front.find_many(wanted, use=True)
        known = {i: self._copied(w, f, t) for i, (w, f, t) in enumerate(zip(wanted, found, targets, strict=True)) if f}
        missing = [i for i in range(len(wanted)) if i not in known]
        if missing:
            known.update(self._get_into_from_disk(missing, wanted, targets))
        return [known[i] for i in range(len(wanted))]

    def _get_into_from_disk(
        self, missing: Sequence[int], wanted: Sequence[Wanted], targets: Sequence[Sequence[memoryview]]
    ) -> Iterator[tuple[int, HitInto | Miss]]:
        """Those that are not in memory, by their indices: as they lie on disk, neighbours with one read."""
        back = self._back
        if back is None:
            yield from ((i, self._miss(wanted[i], MissReason.ABSENT)) for i in missing)
            return
        on_disk: list[tuple[Located, int]] = []
        for i, place in zip(missing, back.locate([wanted[i] for i in missing]), strict=True):
            if isinstance(place, Located):
                check_size(_size(targets[i]), place.entry.nbytes)
                on_disk.append((place, i))
            else:
                yield i, self._miss(wanted[i], place)
        on_disk.sort(key=lambda item: item[0].place)
        order = iter([i for _, i in on_disk])
        for run in coalesce([place for place, _ in on_disk], _RUN_BYTES_MAX):
            indices = list(islice(order, len(run)))
            reads = back.read_into(run, [targets[i] for i in indices])
            for i, read in zip(indices, reads, strict=True):
                yield i, self._read_into(wanted[i], read)

    def _read_into(self, wanted: Wanted, read: tuple[Located, bytes] | MissReason) -> HitInto | Miss:
        if isinstance(read, MissReason):
            return self._miss(wanted, read)
        block, meta = read
        self.tally.count(wanted.namespace, hit=True)
        return HitInto(wanted.key, block.entry.nbytes, meta, block.tier.name)

    def _copied(self, wanted: Wanted, found: InMemory, targets: Sequence[memoryview]) -> HitInto | Miss:
        hit = self._in_memory(wanted, found)
        if isinstance(hit, Miss):
            return hit
        check_size(_size(targets), hit.nbytes)
        copy_across(hit.buffers, targets)
        return HitInto(wanted.key, hit.nbytes, hit.meta, hit.tier)

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


def _size(views: Sequence[memoryview]) -> int:
    return sum(view.nbytes for view in views)


def _info(wanted: Wanted, found: InMemory) -> BlockInfo | None:
    if found.block is None:
        return None
    return BlockInfo(wanted.key, found.block.meta, tuple(v.nbytes for v in found.block.buffers), found.place)
