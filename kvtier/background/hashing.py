"""Content ids of long blocks, found on a thread of its own while the worker waits for the disk.

A content id is the dearest thing that a block costs the processor on its way to disk. The worker says what is queued,
and takes the ids when it needs them; what the thread has not begun by then it computes itself, so neither waits idly.

Threads: the worker's only.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from kvtier.background.write_behind import Pending
from kvtier.tiers.drafts import content_id_of
from kvtier.tiers.ram import RamBlock
from kvtier.vault import KeyMissing, Vault

#: Shorter blocks are hashed sooner than handed over.
LEAST_BYTES = 256 << 10


class ContentIds:
    """See the module."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvtier-hash")
        self._begun: dict[Pending, Future[bytes]] = {}

    def expect(self, queued: Iterable[Pending]) -> None:
        """Begin with these, in order; what was expected before and is not among them is no longer queued."""
        long = {p: p.block for p in queued if p.block is not None and p.block.nbytes >= LEAST_BYTES}
        for gone in self._begun.keys() - long.keys():
            self._begun.pop(gone).cancel()
        with suppress(RuntimeError):  # no thread can be had: the interpreter is going down, or there are too many
            for pending, block in long.items():
                if pending not in self._begun:
                    self._begun[pending] = self._thread.submit(content_id_of, self._vault, block)

    def of(self, pending: Pending, block: RamBlock) -> bytes:
        """The content id of a queued block. Raises :class:`kvtier.vault.KeyMissing`."""
        begun = self._begun.pop(pending, None)
        if begun is not None and not begun.cancel():
            with suppress(KeyMissing):  # it was asked for early: the provider may have it by now
                return begun.result()
        return content_id_of(self._vault, block)

    def forget(self) -> None:
        """Begin anew with all of them: keys were forgotten, which ids depend on."""
        self.expect(())

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)
