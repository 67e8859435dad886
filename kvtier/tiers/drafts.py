"""Blocks on their way into a tier, and the heads of the records that will hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvtier.blocks import Buffer
from kvtier.identity import CONTENT_ID_BYTES
from kvtier.index.schema import BlockEntry
from kvtier.segment.format import NO_SUM, RecordHead, RecordKind
from kvtier.segment.writer import Draft
from kvtier.tiers.ram import RamBlock
from kvtier.vault import ENCRYPTED, Vault


@dataclass(frozen=True, slots=True)
class NewBlock:
    """A block on its way to disk: ``key`` and ``meta`` in their stored form."""

    block_id: int
    seq: int
    namespace: bytes
    key: bytes
    parent_id: int
    meta: bytes
    buffers: tuple[memoryview, ...]
    content_id: bytes

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(b.nbytes for b in self.buffers)

    def is_at(self, entry: BlockEntry) -> bool:
        """Whether the index says exactly this already."""
        mine = (self.content_id, self.lengths, self.meta, self.parent_id)
        return mine == (entry.content_id, entry.lengths, entry.meta, entry.parent_id)


def new_block(vault: Vault, block_id: int, seq: int, block: RamBlock, name: bytes | None = None) -> NewBlock:
    """A block from memory. ``name``: what its key is called on disk, if that is what its key is already.

    Raises :class:`KeyMissing`.
    """
    hasher = vault.content_hasher(block.namespace)
    for buffer in block.buffers:
        hasher.update(buffer)
    new = NewBlock(
        block_id,
        seq,
        block.namespace,
        vault.name(block.namespace, block.key) if name is None else name,
        block.parent_id,
        b"",
        block.buffers,
        hasher.digest(length=CONTENT_ID_BYTES),
    )
    return replace(new, meta=vault.encrypt_meta(new, block.meta))


def head_of(block: NewBlock | BlockEntry, kind: RecordKind, codec_id: int, stored_len: int) -> RecordHead:
    """The head of a record for a block; its payload's checksum is set when it is appended."""
    return RecordHead(
        kind=kind,
        codec=codec_id,
        seq=block.seq,
        parent_id=block.parent_id,
        namespace=block.namespace,
        key=block.key,
        meta=block.meta,
        lengths=block.lengths,
        content_id=block.content_id,
        stored_len=stored_len,
        payload_sum=NO_SUM,
    )


def payload_draft(block: NewBlock | BlockEntry, codec_id: int, payload: Sequence[Buffer], vault: Vault) -> Draft:
    """A record that holds a block's payload, as its codec gave it; encrypted, if it will be, when it is appended."""
    size = sum(memoryview(b).nbytes for b in payload)
    return Draft(head_of(block, RecordKind.BLOCK, codec_id | vault.flag, size + vault.overhead), payload)


def plain_codec(codec_id: int) -> int:
    """The codec's number in a record's, which also says whether it is encrypted."""
    return codec_id & ~ENCRYPTED
