"""What every method of an open store begins with: whether it may be used, and what a name means in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TypeVar

from kvtier.blocks import check_key
from kvtier.errors import ForkedStore, ReadOnlyStore, StoreClosed
from kvtier.identity import Identity
from kvtier.tiers.reading import Wanted
from kvtier.vault import Vault

_T = TypeVar("_T")


class Opened:
    """An open store, in the process that opened it. Any thread."""

    def __init__(self, identity: Identity, vault: Vault, *, read_only: bool) -> None:
        self.read_only = read_only
        self._identity = identity
        self._vault = vault
        self._pid = os.getpid()
        self._closed = False

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedStore("this store was opened before fork(); open it in a spawned process instead")
        if self._closed:
            raise StoreClosed("the store is closed")

    def _check_writable(self) -> None:
        self._check_open()
        if self.read_only:
            raise ReadOnlyStore("the store was opened with read_only=True")

    def _wanted(self, key: bytes, namespace: bytes) -> Wanted:
        check_key(key, namespace)
        name = self._vault.name(namespace, key)
        return Wanted(self._identity.block_id(namespace, name), namespace, key, name)

    def _while_open(self, outcomes: Iterator[_T]) -> Iterator[_T]:
        self._check_open()
        for outcome in outcomes:
            yield outcome
            self._check_open()
