"""Every exception that kvtier raises, as one tree.

::

    KvtierError
    ├── ConfigError            the configuration is wrong; carries every problem, with its path
    ├── StoreError             the store as a whole cannot be used
    │   ├── NotAStore          the folder holds something else
    │   ├── UnsupportedFormat  written by a newer kvtier (or an unknown index engine)
    │   ├── TierMissing        the folder of a tier that holds blocks is not there (its disk not mounted?)
    │   ├── StoreLocked        another process (or object) has it open for writing
    │   ├── WrongKeys          its encryption keys were not given, are other ones, or are no keys
    │   ├── StoreUnwritable    the folder is read-only or not ours, and writing was asked for
    │   ├── UnsafeFolder       other users could have written to it, or own it, or a link stands in for a file
    │   ├── StoreClosed        used after close()
    │   ├── ForkedStore        used in a child of fork(); spawn processes that use the store
    │   └── CorruptStore       damaged beyond automatic repair (the identity file itself)
    ├── LimitError             a key, namespace, metadata or value is over its limit
    ├── TraceError             a trace for replay cannot be used: malformed lines, or no block in it
    ├── ReadOnlyStore          a write was asked of a store opened with read_only=True
    └── FlushError             flush(): some writes did not become durable; carries the first cause

A *miss is never an exception* (see :class:`kvtier.Miss`), and neither is an error of the background
writer: those surface in ``stats``, in events, and from ``flush()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_E = TypeVar("_E", bound=BaseException)

__all__ = [
    "ConfigError",
    "ConfigProblem",
    "CorruptStore",
    "FlushError",
    "ForkedStore",
    "KvtierError",
    "LimitError",
    "NotAStore",
    "ReadOnlyStore",
    "StoreClosed",
    "StoreError",
    "StoreLocked",
    "StoreUnwritable",
    "TierMissing",
    "TraceError",
    "UnsafeFolder",
    "UnsupportedFormat",
    "WrongKeys",
]


class KvtierError(Exception):
    """Base of everything that kvtier raises on purpose."""


@dataclass(frozen=True)
class ConfigProblem:
    """One thing wrong in a configuration: where, what, and what would be right."""

    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(KvtierError):
    """The configuration is wrong. ``problems`` holds all of them, not just the first."""

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class StoreError(KvtierError):
    """The store as a whole cannot be used."""


class NotAStore(StoreError):
    """The folder exists and holds something that is not a kvtier store (or tier)."""


class UnsupportedFormat(StoreError):
    """The store was written in a format that this version does not read."""


class TierMissing(StoreError):
    """A tier that holds blocks of this store is not where the configuration says; nothing was changed."""


class StoreLocked(StoreError):
    """Another process, or another Store object in this one, has the store open for writing."""


class WrongKeys(StoreError):
    """The store is encrypted and was opened without its keys or with others, or the other way round; or what a key
    provider gave is no key. Nothing was changed."""


class StoreUnwritable(StoreError):
    """The folder cannot be written; open with ``read_only=True`` to read what is there."""


class UnsafeFolder(StoreError):
    """A folder of the store, or a file in it, belongs to another user or could have been written by any, or is a
    symbolic link where there should be none. Nothing of it was read or changed."""


class StoreClosed(StoreError):
    """The store was used after ``close()``."""


class ForkedStore(StoreError):
    """The store was used in a forked child, where LMDB and its locks are not valid.

    Nor can the child open the same folder anew; a process that was spawned can.
    """


class CorruptStore(StoreError):
    """The store's identity file is damaged; nothing can be trusted without it."""


class LimitError(KvtierError, ValueError):
    """A key, namespace, metadata or value is over its stated limit."""


class TraceError(KvtierError):
    """A trace for replay cannot be used; the text names the first malformed lines, or says that there is no block."""


class ReadOnlyStore(KvtierError):
    """A write was asked of a store opened with ``read_only=True``."""


class FlushError(KvtierError):
    """Some blocks put before ``flush()`` did not become durable.

    ``failed`` counts them since the last ``flush()``; ``__cause__`` is the first error.
    """

    def __init__(self, message: str, failed: int) -> None:
        self.failed = failed
        super().__init__(message)


def bare(error: _E) -> _E:
    """The error without its traceback and what led to it, for one that is kept as a value: they hold on to all that was
    in use where it was raised, such as the caller's buffers."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
