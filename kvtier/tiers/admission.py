"""Asks a tier's gate about blocks that are put, and about blocks that move, with what the index knows of them.

Threads: the store's background worker only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvtier.index.lmdb_index import LmdbIndex, View
from kvtier.tiers.drafts import NewBlock
from kvtier.tiers.gate import Gate, Offer, ParentOf

#: A block that no disk tier took in yet, if RAM has it.
InRam = Callable[[int], NewBlock | None]


class Admission:
    """See the module."""

    def __init__(self, index: LmdbIndex) -> None:
        self._index = index

    def at_put(
        self, gate: Gate, puts: Sequence[NewBlock], in_ram: InRam, overhead: int
    ) -> tuple[list[NewBlock], set[int], set[int]]:
        """What to write for ``puts``, see :meth:`Gate.at_put`; second, the blocks that are refused; third, those that
        come from RAM. ``overhead``: bytes that a block needs beside its value.
        """
        if gate.is_open:
            return list(puts), set(), set()
        blocks = {p.block_id: p for p in puts}

        def offer(block: NewBlock) -> Offer:
            size = sum(block.lengths)
            return Offer(block.block_id, block.parent_id, size, size + overhead)

        def waiting(block_id: int) -> Offer | None:
            if (block := in_ram(block_id)) is None:
                return None
            return offer(blocks.setdefault(block_id, block))

        with self._index.read() as view:
            entries = {p.block_id: entry for p in puts if (entry := view.block(p.block_id)) is not None}
            unchanged = {p.block_id for p in puts if (e := entries.get(p.block_id)) is not None and p.is_at(e)}
            admitted = gate.at_put([*map(offer, puts)], waiting, _parents_in(view), entries, unchanged)
        return [blocks[b] for b in admitted.todo], admitted.refused, admitted.pulled

    def at_move(self, gate: Gate, block_ids: Sequence[int], *, is_hit: bool) -> list[int]:
        """Those of the blocks that are taken in, in order; ``block_ids`` have ancestors first."""
        if gate.is_open:
            return list(block_ids)
        with self._index.read() as view:
            entries = [(b, e) for b in block_ids if (e := view.block(b)) is not None]
            offers = [Offer(b, e.parent_id, e.nbytes, e.record_len) for b, e in entries]
            return gate.at_move(offers, _parents_in(view), is_hit=is_hit)


def _parents_in(view: View) -> ParentOf:
    return lambda block_id: None if (entry := view.block(block_id)) is None else entry.parent_id
