"""Blocks on their way into a tier, and the heads of the records that will hold them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from kvtier.blocks import Buffer
from kvtier.identity import CONTENT_ID_BYTES
from kvtier.index.schema import BlockEntry, Reason
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
    expires_at: int = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(b.nbytes for b in self.buffers)

    def is_at(self, entry: BlockEntry) -> bool:
        """Whether the index says exactly this already."""
        mine = (self.content_id, self.lengths, self.meta, self.parent_id)
        return mine == (entry.content_id, entry.lengths, entry.meta, entry.parent_id)


@dataclass(slots=True)
class Group:
    """What one commit is to write and to delete, and what was refused."""

    puts: Sequence[NewBlock]
    deletes: Sequence[int]
    refused: dict[int, Reason] = field(default_factory=dict)
    put_off: Collection[int] = ()  # of these, what the policy refused, and may take in another time
    pulled: Collection[int] = ()  # what was refused before, and is taken in with these

    def refuse(self, block_ids: Collection[int], stored: Collection[int], reason: Reason) -> None:
        """Not to write these blocks; older values of them, which are ``stored``, are as good as evicted."""
        self.puts = [p for p in self.puts if p.block_id not in block_ids]
        self.deletes = [*self.deletes, *stored]
        self.refused.update(dict.fromkeys(block_ids, reason))


def content_id_of(vault: Vault, block: RamBlock) -> bytes:
    """What stands for a block's bytes. Raises :class:`KeyMissing`."""
    hasher = vault.content_hasher(block.namespace)
    for buffer in block.buffers:
        hasher.update(buffer)
    return hasher.digest(length=CONTENT_ID_BYTES)


def new_block(
    vault: Vault,
    block_id: int,
    seq: int,
    block: RamBlock,
    *,
    name: bytes | None = None,
    content_id: bytes | None = None,
) -> NewBlock:
    """A block from memory. ``name``: what its key is called on disk, if that is what its key is already.
    ``content_id``: its own, if that is known.

    Raises :class:`KeyMissing`.
    """
    new = NewBlock(
        block_id,
        seq,
        block.namespace,
        vault.name(block.namespace, block.key) if name is None else name,
        block.parent_id,
        b"",
        block.buffers,
        content_id_of(vault, block) if content_id is None else content_id,
        block.expires_at,
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
        expires_at=block.expires_at,
    )


def payload_draft(block: NewBlock | BlockEntry, codec_id: int, payload: Sequence[Buffer], vault: Vault) -> Draft:
    """A record that holds a block's payload, as its codec gave it; encrypted, if it will be, when it is appended."""
    size = sum(memoryview(b).nbytes for b in payload)
    return Draft(head_of(block, RecordKind.BLOCK, codec_id | vault.flag, size + vault.overhead), payload)


def plain_codec(codec_id: int) -> int:
    """The codec's number in a record's, which also says whether it is encrypted."""
    return codec_id & ~ENCRYPTED
