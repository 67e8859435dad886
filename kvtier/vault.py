"""What of a block is written as it is, and what is encrypted: nothing, in a store without encryption.

A vault stands between blocks in memory and records on disk. It gives names (what a key is called on disk), content
ids, and the forms in which metadata and payloads are stored. :class:`Vault` is the plain one, in which all is as it
was put; :class:`kvtier.encryption.EncryptedVault` is the other.

Threads: any.
"""

from __future__ import annotations

from typing import Protocol

import blake3

from kvtier.identity import Identity
from kvtier.segment.format import Place, RecordHead
from kvtier.segment.writer import Encrypt, as_it_is

#: Added to the codec's number in a record: the codec's output is encrypted.
ENCRYPTED = 0x80


class DecryptError(ValueError):
    """Bytes that do not decrypt: they were changed, or are not what they are taken for."""


class KeyMissing(LookupError):
    """The key that they were encrypted with is not there: nothing is known of them, good or bad."""


class KeyUnavailable(KeyMissing):
    """The key provider failed: the key may be there another time."""


class Named(Protocol):
    """What a block's metadata are bound to: its name and its content."""

    @property
    def namespace(self) -> bytes: ...
    @property
    def key(self) -> bytes: ...
    @property
    def parent_id(self) -> int: ...
    @property
    def content_id(self) -> bytes: ...
    @property
    def lengths(self) -> tuple[int, ...]: ...
    @property
    def meta(self) -> bytes: ...


class Vault:
    """Everything as it is."""

    #: Added to the codec's number, and to the length of its output.
    flag = overhead = 0
    #: Another object once keys were forgotten: what a current key made before may be another thing now.
    era: object = None

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def name(self, namespace: bytes, key: bytes) -> bytes:
        """What a key is called on disk."""
        return key

    def content_hasher(self, namespace: bytes) -> blake3.blake3:
        """A keyed BLAKE3 for the contents of one namespace. Raises :class:`KeyMissing`."""
        return self._identity.content_hasher(namespace)

    def check_writable(self, namespace: bytes) -> None:
        """Raises :class:`KeyMissing` if there is no key to store anything with in this namespace."""

    def encrypt_meta(self, block: Named, meta: bytes) -> bytes:
        """How metadata are stored, bound to all else that names ``block``. Raises :class:`KeyMissing`."""
        return meta

    def decrypt_meta(self, block: Named) -> bytes:
        """The metadata of a stored block. Raises :class:`DecryptError`, :class:`KeyMissing`."""
        return block.meta

    def encryptor(self) -> Encrypt:
        """For the payloads that one writer appends to one segment."""
        return as_it_is

    def decrypt_payload(self, head: RecordHead, place: Place, stored: memoryview) -> memoryview:
        """The codec's output, decrypted in place. Raises :class:`DecryptError`, :class:`KeyMissing`."""
        if head.codec & ENCRYPTED:
            raise DecryptError("an encrypted payload in a store without encryption")
        return stored

    def is_current(self, block: Named) -> bool:
        """Whether a stored block is encrypted with its namespace's current key. Raises :class:`KeyMissing`."""
        return True

    def forget_keys(self) -> None:
        """Forget all keys: the provider is asked again."""
