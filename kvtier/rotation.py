"""Key rotation: what is encrypted with older keys is written anew, each block in its tier.

Threads: any one; what changes the tiers runs on the store's background worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from kvtier.assembly import Parts
from kvtier.blocks import MissReason
from kvtier.errors import FlushError
from kvtier.index.lmdb_index import IndexFull
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.drafts import NewBlock, new_block
from kvtier.tiers.ram import RamBlock
from kvtier.tiers.reading import DiskReader, Located, Wanted
from kvtier.tiers.room import NoRoom
from kvtier.vault import DecryptError, KeyMissing, KeyUnavailable

_BYTES_AT_ONCE = 32 << 20


class Rewritten(NamedTuple):
    """How many blocks were encrypted anew, and how many could not be."""

    done: int
    failed: int


class Rotation:
    """One rotation. ``forget_keys``: runs on the worker, has the provider asked anew. ``on_worker`` runs a job there,
    and gives what it returns or raises."""

    def __init__(
        self,
        parts: Parts,
        reader: DiskReader,
        forget_keys: Callable[[], None],
        on_worker: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._parts = parts
        self._vault = parts.vault
        self._ladder = parts.ladder
        self._reader = reader
        self._forget_keys = forget_keys
        self._on_worker = on_worker

    def run(self) -> int:
        """How many blocks were encrypted anew. Raises :class:`kvtier.FlushError` if some could not be."""
        self._on_worker(self._turn_keys)  # what is being written is written, what comes is written with new ones
        done = failed = after = 0
        while some := self._with_older_keys(after):
            rewritten = self._on_worker(partial(self._encrypt_anew, some))
            done, failed = done + rewritten.done, failed + rewritten.failed
            after = some[-1].block_id
        if failed:
            raise FlushError(f"{failed} blocks could not be encrypted anew", failed)
        return done

    def _turn_keys(self) -> None:
        self._parts.reseal()
        self._forget_keys()

    def _with_older_keys(self, after: int) -> list[Wanted]:
        """Some blocks with higher ids than ``after``, up to 32 MiB; those too of which it cannot be told now."""
        found: list[Wanted] = []
        size = 0
        with self._parts.index.read() as view:
            for block_id, entry in view.blocks(after):
                try:
                    if self._vault.is_current(entry):
                        continue
                except KeyUnavailable:
                    pass
                except KeyMissing:
                    continue
                found.append(Wanted(block_id, entry.namespace, entry.key, entry.key))
                size += entry.nbytes
                if size >= _BYTES_AT_ONCE:
                    break
        return found

    def _encrypt_anew(self, wanted: Sequence[Wanted]) -> Rewritten:
        by_tier: dict[int, list[NewBlock]] = {}
        failed = 0
        for located in self._reader.locate(wanted):
            if not isinstance(located, Located):
                failed += located is MissReason.UNAVAILABLE
                continue
            with suppress(KeyMissing):  # if it is gone for good, so is the block
                new = self._opened(located)
                if isinstance(new, NewBlock):
                    by_tier.setdefault(located.tier.tier_no, []).append(new)
                failed += new is MissReason.UNAVAILABLE
        no_room = sum(self._rewrite(by_tier.get(tier.tier_no, []), tier) for tier in self._ladder.tiers)
        return Rewritten(sum(map(len, by_tier.values())) - no_room, failed + no_room)

    def _opened(self, located: Located) -> NewBlock | MissReason:
        """Raises :class:`KeyMissing` if its key, or the one that it would get, is gone."""
        try:
            with suppress(DecryptError):
                self._vault.decrypt_meta(located.entry)
            block = self._reader.read_one(located)
            if not isinstance(block, RamBlock):
                return block
            return new_block(self._vault, located.wanted.block_id, located.entry.seq, block, name=located.wanted.name)
        except KeyUnavailable:
            return MissReason.UNAVAILABLE

    def _rewrite(self, blocks: Sequence[NewBlock], tier: DiskTier) -> int:
        """Write blocks anew, in halves if there is not room for all at once; for how many there was none."""
        try:
            if blocks:
                self._ladder.rewrite(blocks, tier)
        except IndexFull:
            return self._rewrite(blocks, tier) if self._parts.index.grow() else len(blocks)
        except NoRoom:
            if len(blocks) == 1:
                return 1
            half = len(blocks) // 2
            return self._rewrite(blocks[:half], tier) + self._rewrite(blocks[half:], tier)
        return 0
