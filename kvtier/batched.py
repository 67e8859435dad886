"""Several blocks in one call: neighbours on disk then come in one read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kvtier.blocks import Buffer, Hit, HitInto, Miss
from kvtier.buffers import byte_views
from kvtier.config import Config
from kvtier.errors import LimitError
from kvtier.opened import Opened
from kvtier.reads import Reads


class Batched(Opened):
    """The part of :class:`kvtier.Store` that reads several blocks in one call. Any thread."""

    config: Config
    _reads: Reads

    def get_many(self, keys: Iterable[bytes], *, namespace: bytes = b"", keep: bool = True) -> Iterator[Hit | Miss]:
        """The blocks of ``keys``, in order, reading ahead of the consumer by up to ``prefetch.bytes_max``.

        Neighbours on disk come in one read. Use it for a chain: all of it then counts as used together.
        ``keep=False``: what comes from disk does not enter RAM but passes through a few buffers, each used
        again once the consumer has let go of its block; faster, and in bounded memory, for a long chain that
        is needed once.
        """
        self._check_open()
        return self._while_open(self._reads.get_many([self._wanted(k, namespace) for k in keys], keep=keep))

    def get_many_into(
        self, keys: Sequence[bytes], buffers: Sequence[Buffer | Sequence[Buffer]], *, namespace: bytes = b""
    ) -> list[HitInto | Miss]:
        """:meth:`Store.get_into` for several blocks, each of ``keys`` into those of ``buffers`` with its index.

        They are looked up together, and neighbours on disk come in one read of up to 8 MiB (or one block). All of them
        then count as used together. Several threads share the work best if each has a contiguous part. All buffers must
        be distinct memory that nobody else writes to meanwhile. Raises :class:`kvtier.LimitError`, before anything is
        filled, if there are not as many buffers as keys, or if the sizes of one block differ.
        """
        self._check_open()
        if len(keys) != len(buffers):
            raise LimitError(f"get_many_into got {len(keys)} keys and buffers for {len(buffers)} blocks")
        targets = [self._targets(b) for b in buffers]
        return self._reads.get_many_into([self._wanted(k, namespace) for k in keys], targets)

    def _targets(self, buffers: Buffer | Sequence[Buffer]) -> Sequence[memoryview]:
        targets = byte_views(buffers, self.config.store.value_bytes_max)
        if any(t.readonly for t in targets):
            raise LimitError("get_into needs writable buffers")
        return targets
