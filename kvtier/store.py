"""The store: the one object that an embedding server holds, and the only composition root."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from kvtier.advised import Advised
from kvtier.assembly import Parts, config_of, open_parts
from kvtier.back import Back
from kvtier.background.prefetcher import slabs
from kvtier.batched import Batched
from kvtier.blocks import (
    BlockInfo,
    Buffer,
    Explanation,
    Hit,
    HitInto,
    Miss,
    MissReason,
    PutItem,
    PutOutcome,
    check_meta,
)
from kvtier.buffers import byte_views, owned
from kvtier.clock import Clock, StoreTime, SystemClock
from kvtier.config import Config
from kvtier.errors import FlushError, WrongKeys
from kvtier.events import Listener, Signals
from kvtier.front import Front
from kvtier.fs import FileSystem, default_file_system
from kvtier.headroom import Headroom
from kvtier.identity import Identity
from kvtier.index.lmdb_index import ENGINE
from kvtier.keys import KeyProvider
from kvtier.memory import Memory, memory
from kvtier.policy.base import NO_PARENT
from kvtier.pool import BufferPool
from kvtier.reads import Reads
from kvtier.skips import Skips
from kvtier.stats import StoreStats, stats_of
from kvtier.tiers.making import ram_tier
from kvtier.tiers.ram import RamBlock, RamTier
from kvtier.vault import KeyMissing, Vault

_MATCH_AT_ONCE = 64
_READY_BYTES_MAX = 64 << 20


def _spare_bytes_max(config: Config) -> int:
    """Memory that is kept ready: for a quarter of what may wait to be written, and for restores that pass through."""
    ahead = config.prefetch
    passing = sum(slabs(ahead.threads, min(ahead.coalesce_bytes_max, ahead.bytes_max), decodes=config.decodes))
    return min(_READY_BYTES_MAX, config.write_behind.bytes_max // 4) + passing


class Store(Advised, Batched):
    """A tiered block store: RAM, then the disk tiers of its configuration, in order.

    Blocks are opaque: a key (1 to 128 bytes) in a namespace (0 to 64 bytes) names one value of 1 to 64
    buffers and up to 1 KiB of metadata. ``put`` returns at once and writes behind; ``get`` returns checked
    bytes or a :class:`kvtier.Miss` with its reason. A store has one writing process; any number of others
    may open it with ``read_only=True``.

    Threads: every method may be called from any thread. Fork: using the store in a forked child raises
    :class:`kvtier.ForkedStore`, and the child cannot open the folder anew; spawn such processes instead.
    After ``close()``, all methods but ``close`` raise :class:`kvtier.StoreClosed`.

    >>> with Store.open(Config(ram={"bytes_max": "16MiB"})) as store:
    ...     _ = store.put(b"k1", b"some bytes")
    ...     bytes(store.get(b"k1").buffers[0])
    b'some bytes'
    """

    # -- opening and closing ------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        source: Config | str | os.PathLike[str],
        *,
        read_only: bool = False,
        listeners: Sequence[Listener] = (),
        fs: FileSystem | None = None,
        clock: Clock | None = None,
        background: bool = True,
        keys: KeyProvider | None = None,
        memory: Callable[[], Memory] = memory,
    ) -> Store:
        """Open a store, creating it if there is none (unless ``read_only``), recovering it if need be.

        ``source``: a :class:`kvtier.Config`, the path of a ``.toml`` file, or a folder (then with what it was
        last opened for writing with, or the defaults of :meth:`Config.for_folder` if it is new).
        ``keys``: where encryption keys come from, called as :class:`kvtier.KeyProvider` says; needs the extra
        ``crypto``. With it a new store is encrypted, and an encrypted one cannot be opened without it.
        ``listeners`` are called with each event. ``fs``, ``clock``, ``memory`` and ``background=False`` (no thread:
        ``flush`` and ``close`` do the work) are for tests.

        Raises :class:`kvtier.ConfigError`, a :class:`kvtier.StoreError` that says why the folder cannot be
        used, or :class:`OSError`.
        """
        config = config_of(source)
        signals, clock = Signals(listeners), clock or SystemClock()
        ram = ram_tier(config, signals, clock, memory)
        parts = None
        if config.tier:
            parts = open_parts(config, fs or default_file_system(), clock, signals, keys, read_only=read_only)
        passing = parts.ladder.ledger.time if parts else StoreTime(clock)
        try:
            return cls(config, ram, parts, signals, passing, read_only=read_only, background=background)
        except BaseException:
            if parts:
                parts.close()
            raise

    def __init__(
        self,
        config: Config,
        ram: RamTier,
        parts: Parts | None,
        signals: Signals,
        passing: StoreTime,
        *,
        read_only: bool,
        background: bool,
    ) -> None:
        """Use :meth:`open`."""
        identity = parts.identity if parts else Identity.new(ENGINE)
        super().__init__(identity, parts.vault if parts else Vault(identity), read_only=read_only)
        self.config = config
        self._signals = signals
        self._closing = threading.Lock()
        first_seq = parts.ladder.ledger.last_seq + 1 if parts else 1
        ask_again = parts.ladder.tiers[0].gate.used if parts and not read_only else lambda block_id, cost: False
        self._front = Front(
            ram,
            config.write_behind.bytes_max,
            first_seq,
            passing,
            ask_again,
            write_back=config.ram.write == "back" and not read_only,
        )
        self._skip_when_full = config.write_behind.when_full == "skip"
        self._skips = Skips(signals)
        self._pool = BufferPool(_spare_bytes_max(config))
        self._back: Back | None = None
        if parts:
            self._back = Back(
                config, parts, self._front, self._pool, signals, read_only=read_only, background=background
            )
        self._reads = Reads(self._front, self._back, signals)
        self._headroom = Headroom(self._front, self._back, self._pool, signals, background=background)
        atexit.register(self.close)

    def close(self) -> None:
        """Write what is queued, then release everything. Idempotent; a no-op in a forked child."""
        if os.getpid() != self._pid:
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
        atexit.unregister(self.close)
        self._headroom.close()
        self._front.close()
        if self._back:
            self._back.close()
        self._pool.keep_spare(False)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- writing ------------------------------------------------------------------------------------

    def buffer(self, nbytes: int) -> memoryview:
        """Writable memory of ``nbytes``, to be filled with a value and given to the store (``put(..., give=True)``).

        It is memory that an earlier value was in, if there is any: the first touch of new memory costs several times
        the copy into it. Its contents are undefined, and may be those of an earlier value, of any namespace; it is the
        caller's alone for as long as a view of it exists.
        """
        self._check_open()
        return self._pool.take(nbytes)

    def put(
        self,
        key: bytes,
        buffers: Buffer | Sequence[Buffer],
        *,
        meta: bytes = b"",
        parent: bytes | None = None,
        namespace: bytes = b"",
        give: bool = False,
        ttl: float | None = None,
    ) -> PutOutcome:
        """Store one block: the last put of a key wins, and identical bytes cost no disk write.

        The buffers (flat or not, contiguous, bytes-like) are copied once, so the caller may reuse them;
        ``bytes`` objects are kept as they are, uncopied. With ``give`` no buffer is copied: they are the store's
        from here on, nothing may change them any more, and the whole memory of each is kept as long as its
        block is. No disk I/O happens on this thread, but a full write queue makes it wait or skip, as configured.
        After ``ttl`` seconds, or those of ``store.ttl_s`` if it is None, the block is a miss; 0 for never.

        Raises :class:`kvtier.LimitError`, :class:`kvtier.ReadOnlyStore`, and :class:`kvtier.WrongKeys` if the store
        is encrypted and there is no key for the namespace (any more).
        """
        self._check_writable()
        wanted = self._wanted(key, namespace)
        check_meta(meta)
        try:
            self._vault.check_writable(namespace)
        except KeyMissing as e:
            raise WrongKeys(str(e)) from e
        views = byte_views(buffers, self.config.store.value_bytes_max)
        parent_id = NO_PARENT if parent is None else self._wanted(parent, namespace).block_id
        kept = tuple(v.toreadonly() if give else owned(v, self._pool) for v in views)
        expires_at = self._front.time.after(self.config.store.ttl_s if ttl is None else ttl)
        block = RamBlock(namespace, key, parent_id, meta, kept, expires_at)
        self._signals.count("puts")
        back = self._back
        if back is None:
            self._front.put_in_ram(wanted.block_id, block)
            return PutOutcome.QUEUED
        outcome = self._front.put(
            wanted.block_id,
            block,
            skip_when_full=self._skip_when_full,
            is_new=lambda: not back.has(wanted),
            wait=back.wait,
        )
        back.poke()
        self._skips.note(outcome, self._front.queue.bytes_used)
        return outcome

    def put_many(self, items: Iterable[PutItem], *, namespace: bytes = b"") -> list[PutOutcome]:
        """``put`` for several blocks, in order (parents before children)."""
        return [self.put(i.key, i.buffers, meta=i.meta, parent=i.parent, namespace=namespace, ttl=i.ttl) for i in items]

    def delete(self, key: bytes, *, namespace: bytes = b"") -> bool:
        """Forget a block, at once for readers and durably after ``flush()``; whether it was there."""
        self._check_writable()
        wanted = self._wanted(key, namespace)
        found = self._front.find(wanted, use=False)
        if found is None and (self._back is None or self._back.locate([wanted])[0] is MissReason.ABSENT):
            return False
        if found is not None and found.block is None:
            return False
        self._front.delete(namespace, wanted.block_id, on_disk=self._back is not None)
        if self._back:
            self._back.poke()
        return True

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything put or deleted before this call is durable, but for what a policy, budget or quota
        refused: :meth:`explain` says so.

        Raises :class:`kvtier.FlushError` if any write failed since the last ``flush``, and
        :class:`TimeoutError` after ``timeout`` seconds.
        """
        self._check_open()
        back = self._back
        if back is None or self.read_only:
            return
        back.save_recency()
        deadline = None if timeout is None else time.monotonic() + timeout
        failed, error = self._front.drain(lambda changed: back.wait(changed, deadline))
        if failed:
            raise FlushError(f"{failed} blocks did not become durable: {error}", failed) from error

    def pause_compaction(self) -> None:
        """Copy nothing to compact a tier until :meth:`resume_compaction`, or until the store is opened again.

        A step that is under way ends, which takes as long as copying 4 MiB, or one block. A tier at its cap evicts
        meanwhile.
        """
        self._check_writable()
        if self._back is not None:
            self._back.pause_compaction(True)

    def resume_compaction(self) -> None:
        """Go on with compaction where it was paused."""
        self._check_writable()
        if self._back is not None:
            self._back.pause_compaction(False)

    def rotate_keys(self) -> int:
        """Encrypt anew what is encrypted with older keys: the store's secret, and blocks; how many those were.

        The key provider is asked anew for all keys. Once this returns, older keys may be dropped. Blocks whose key
        is gone, or whose namespace has none, stay as they are: misses. May take long; reads and puts go on.
        Raises :class:`kvtier.ReadOnlyStore`, :class:`kvtier.WrongKeys` (no key for the store itself), and
        :class:`OSError` or :class:`kvtier.FlushError` if something could not be read or written, or its key not be had
        now: then older keys are still needed.
        """
        self._check_writable()
        if self._back is None:
            return 0
        self.flush()
        return self._back.rotate_keys()

    def forget_keys(self) -> None:
        """Forget all keys, and the blocks in RAM: each is asked for anew when it is next needed.

        To erase a namespace, have the provider drop its key, then call this: its blocks are misses from then on,
        and what is on disk can be read by nobody.
        """
        self._check_open()
        if self._back is not None:
            self._back.forget_keys()
        self._front.forget_all()

    # -- reading ------------------------------------------------------------------------------------

    def get(self, key: bytes, *, namespace: bytes = b"") -> Hit | Miss:
        """One block, every byte checked. From RAM nothing is copied; from disk it enters RAM on the way."""
        self._check_open()
        return self._reads.get(self._wanted(key, namespace))

    def get_into(self, key: bytes, buffers: Buffer | Sequence[Buffer], *, namespace: bytes = b"") -> HitInto | Miss:
        """One block into the caller's writable buffers, whose sizes must sum to the block's.

        From an uncompressed disk tier the bytes are read straight into them (and do not enter RAM). They must be
        distinct memory that nobody else writes to meanwhile: else their contents are undefined, as after a
        :class:`Miss`. Raises :class:`kvtier.LimitError`, before anything is filled, if the sizes differ.
        """
        self._check_open()
        return self._reads.get_into(self._wanted(key, namespace), self._targets(buffers))

    def match(self, keys: Sequence[bytes], *, namespace: bytes = b"") -> int:
        """How many of ``keys``, from the first on without a gap, are present. Reads no payload."""
        self._check_open()
        count = 0
        for at in range(0, len(keys), _MATCH_AT_ONCE):
            wanted = [self._wanted(k, namespace) for k in keys[at : at + _MATCH_AT_ONCE]]
            for present in self._reads.present(wanted):
                if not present:
                    return count
                count += 1
        return count

    def contains(self, key: bytes, *, namespace: bytes = b"") -> bool:
        """Whether the block is present. Reads no payload; does not count as a use."""
        self._check_open()
        return self._reads.present([self._wanted(key, namespace)])[0]

    def info(self, key: bytes, *, namespace: bytes = b"") -> BlockInfo | None:
        """Metadata and sizes of a block without reading its payload; None if it is not present."""
        return self.info_many([key], namespace=namespace)[0]

    def info_many(self, keys: Iterable[bytes], *, namespace: bytes = b"") -> list[BlockInfo | None]:
        """:meth:`info` for several keys, from one view of the index: for a chain, much faster than one by one."""
        self._check_open()
        return self._reads.info_many([self._wanted(k, namespace) for k in keys])

    def explain(self, key: bytes, *, namespace: bytes = b"") -> Explanation:
        """Where a block is, or why it is not there: evicted, deleted, damaged, ...; from which tier, and when.

        A store with a disk tier remembers its last 65,536 departures (fewer with a first tier below 64 MiB), durably;
        what was not admitted or could not be written is durable with the commit that follows it. An index that is made
        anew has forgotten them all, and of the RAM tier's evictions none is remembered. Reads no payload; does not
        count as a use.
        """
        self._check_open()
        return self._reads.explain(self._wanted(key, namespace))

    # -- facts --------------------------------------------------------------------------------------

    def stats(self) -> StoreStats:
        """Counters and sizes at this moment."""
        self._check_open()
        return stats_of(self._front, self._back.ladder if self._back else None, self._signals, self._reads.tally)

    def derive_key(self, purpose: bytes) -> bytes:
        """32 secret bytes that only this store gives for this purpose, for keyed hashes over prompts.

        They stay the same for the life of the store. A store without a disk tier makes up new ones each time
        it is opened.
        """
        self._check_open()
        return self._identity.derive_key(b"user:" + purpose)
