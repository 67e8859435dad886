"""Objects that an engine names and lays out itself, as blocks of a store. Knows no engine.

**Names.** An object is named by an owner, who must not see the objects of others (a tenant; often the empty one), and
by fields of bytes. The owner is the namespace, so that quotas, encryption keys and erasure of :class:`kvtier.Store`
work by owner, and the fields are hashed::

    key       = blake2b(length and bytes of each field, key=secret of the store, digest_size=32)
    namespace = the owner in UTF-8, or "@" + blake2b(owner, digest_size=32) if that is longer than 64 bytes

An object never changes: what has the name and the size of one that is stored is not stored again, unless that could
not be read. One of another size (an engine that lays its objects out anew keeps their names) takes its place.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from itertools import groupby, islice
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from kvtier import KvtierError, Miss, MissReason

if TYPE_CHECKING:
    from kvtier import HitInto, PutOutcome, Store

_DIGEST_BYTES = 32
_NAMESPACE_BYTES_MAX = 64
_HASHED = b"@"
_UNREAD_MAX = 1 << 16


class Name(NamedTuple):
    """Where an object is in the store."""

    namespace: bytes
    key: bytes


def namespace_of(owner: str) -> bytes:
    """The namespace of an owner; owners that begin with "@" are hashed too, so that no two share one."""
    raw = owner.encode()
    if len(raw) <= _NAMESPACE_BYTES_MAX and not raw.startswith(_HASHED):
        return raw
    return _HASHED + blake2b(raw, digest_size=_DIGEST_BYTES).digest()


def owner_of(namespace: bytes) -> str | None:
    """The owner of a namespace; None if only its hash is known, or if it is nobody's."""
    try:
        return None if namespace.startswith(_HASHED) else namespace.decode()
    except UnicodeDecodeError:
        return None


class Objects:
    """The objects of one store. Any thread; :meth:`save`, :meth:`load` and :meth:`flush` may take as long as the disk
    does.

    Errors of the store (:class:`kvtier.KvtierError`, :class:`OSError`) end in :meth:`load` as a miss, any other there
    as a miss and a line in ``log``; all come out of the other methods.
    """

    def __init__(self, store: Store, log: logging.Logger | None = None) -> None:
        self._store = store
        self._log = log or logging.getLogger("kvtier")
        self._secret = store.derive_key(b"objects")
        self._unread: set[Name] = set()  # of objects that the index has: the last load of each failed

    def name(self, owner: str, fields: Sequence[bytes]) -> Name:
        """The name of an object; other fields, or as many cut otherwise, give another one."""
        hasher = blake2b(key=self._secret, digest_size=_DIGEST_BYTES)
        for field in fields:
            hasher.update(len(field).to_bytes(8, "little"))
            hasher.update(field)
        return Name(namespace_of(owner), hasher.digest())

    def save(self, name: Name, data: memoryview) -> PutOutcome | None:
        """Copy an object into the store; None if it is there already."""
        info = self._store.info(name.key, namespace=name.namespace)
        if info is not None and info.nbytes == data.nbytes and name not in self._unread:
            return None
        outcome = self._store.put(name.key, data, namespace=name.namespace)
        if outcome:
            self._unread.discard(name)
        return outcome

    def flush(self) -> None:
        """Wait until what was saved is on disk."""
        self._store.flush()

    def lock(self, names: Sequence[Name]) -> list[bool]:
        """Which of the objects are there; these are not evicted until they are unlocked as often as they were locked.

        An eviction that is under way may take one all the same. A lock ends with the process at the latest.
        """
        with ExitStack() as undo:
            for namespace, keys in _by_namespace(names):
                self._store.pin(keys, namespace=namespace)
                undo.callback(self._store.unpin, keys, namespace=namespace)
            found = [self._store.contains(name.key, namespace=name.namespace) for name in names]
            undo.pop_all()
        self.unlock([name for name, there in zip(names, found, strict=True) if not there])
        return found

    def unlock(self, names: Sequence[Name]) -> None:
        """Undo one lock of each."""
        for namespace, keys in _by_namespace(names):
            self._store.unpin(keys, namespace=namespace)

    def load(self, names: Sequence[Name], into: Sequence[memoryview]) -> list[bool]:
        """Fill each of ``into`` with an object, every byte checked; False, its contents undefined, for those with which
        that cannot be done: the object is not there, is damaged, cannot be read, or has another size.

        ``into`` is distinct memory that nobody else writes to meanwhile. Objects that were stored one after another
        come in one read.
        """
        targets = iter(into)
        return [
            loaded
            for namespace, keys in _by_namespace(names)
            for loaded in self._load(namespace, keys, list(islice(targets, len(keys))))
        ]

    def _load(self, namespace: bytes, keys: Sequence[bytes], into: Sequence[memoryview]) -> list[bool]:
        try:
            reads = self._store.get_many_into(keys, into, namespace=namespace)
        except Exception as e:
            if len(keys) == 1:
                if not isinstance(e, KvtierError | OSError):
                    self._log.exception("kvtier: an object was not loaded")
                return [False]
            return [self._load(namespace, [key], [target])[0] for key, target in zip(keys, into, strict=True)]
        for read in reads:
            self._note(Name(namespace, read.key), read)
        return [bool(read) for read in reads]

    def _note(self, name: Name, read: HitInto | Miss) -> None:
        if read:
            self._unread.discard(name)
        elif isinstance(read, Miss) and read.reason is MissReason.UNAVAILABLE and len(self._unread) < _UNREAD_MAX:
            self._unread.add(name)

    def delete(self, name: Name) -> int | None:
        """Forget an object, locked or not; its size in bytes, None if it was not there."""
        info = self._store.info(name.key, namespace=name.namespace)
        gone = self._store.delete(name.key, namespace=name.namespace)
        return info.nbytes if info is not None and gone else None


def _by_namespace(names: Sequence[Name]) -> Iterator[tuple[bytes, list[bytes]]]:
    for namespace, group in groupby(names, attrgetter("namespace")):
        yield namespace, [name.key for name in group]
