"""Encryption keys, as their provider gives them.

A *key provider* is a function of the embedding program: it alone knows where keys are kept (a key management
service, a file, an environment variable). The store never writes one down.
"""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple, Protocol

from kvtier.errors import WrongKeys

KEY_BYTES = 32
KEY_ID_BYTES_MAX = 32


class Key(NamedTuple):
    """A secret of 32 bytes, and the name by which its provider finds it again: 1 to 32 printable ASCII characters."""

    key_id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"Key({self.key_id!r})"


class KeyProvider(Protocol):
    """Gives keys; a function will do. Any thread may call it."""

    def __call__(self, namespace: bytes | None, key_id: str | None, /) -> Key:
        """The key of a namespace (None: of the store itself) by its id (None: the current one, for new data).

        Raises :class:`LookupError` if there is none such, or no longer.
        """


def single_key(secret: bytes, key_id: str = "1") -> KeyProvider:
    """A provider with one key of 32 bytes, from which those of the namespaces are derived.

    Such keys can be neither rotated nor dropped one by one. Raises ``ValueError`` for a key of another length.
    """
    if len(secret) != KEY_BYTES:
        raise ValueError(f"a key of {len(secret)} bytes, not {KEY_BYTES}")

    def provide(namespace: bytes | None, wanted: str | None) -> Key:
        if wanted not in (None, key_id):
            raise LookupError(f"no key {wanted!r}")
        purpose = b"store" if namespace is None else b"namespace:" + namespace
        return Key(key_id, hashlib.blake2b(purpose, digest_size=KEY_BYTES, key=secret).digest())

    return provide


def key_file(path: str | os.PathLike[str]) -> KeyProvider:
    """:func:`single_key`, from a file: 32 bytes, or 64 hexadecimal digits.

    Raises :class:`OSError`, and :class:`kvtier.WrongKeys` if there is something else in it, or if others than its
    owner may read it (where files have such modes).
    """
    with open(path, "rb") as file:
        if os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077:
            raise WrongKeys(f"{os.fspath(path)}: others may read it; chmod 600")
        found = file.read(2 * KEY_BYTES + 3)
    if len(found) != KEY_BYTES:
        try:
            found = bytes.fromhex(found.decode("ascii"))
        except ValueError:
            found = b""
    if len(found) != KEY_BYTES:
        raise WrongKeys(f"{os.fspath(path)}: neither {KEY_BYTES} bytes nor {2 * KEY_BYTES} hexadecimal digits")
    return single_key(found)


def is_key_id(key_id: object) -> bool:
    """Whether it is one: 1 to 32 printable ASCII characters."""
    is_text = isinstance(key_id, str) and key_id.isascii() and key_id.isprintable()
    return is_text and 1 <= len(key_id) <= KEY_ID_BYTES_MAX  # type: ignore[arg-type]


def ask(provider: KeyProvider, namespace: bytes | None, key_id: str | None = None) -> Key:
    """The key, checked. Raises :class:`LookupError` as the provider does, :class:`WrongKeys` for what is no key."""
    key = provider(namespace, key_id)
    if not is_key_id(key.key_id):
        raise WrongKeys(f"a key's id must be 1 to {KEY_ID_BYTES_MAX} printable ASCII characters, not {key.key_id!r}")
    if not isinstance(key.secret, bytes) or len(key.secret) != KEY_BYTES:
        raise WrongKeys(f"key {key.key_id!r} is not {KEY_BYTES} bytes")
    if key_id is not None and key.key_id != key_id:
        raise WrongKeys(f"the key provider was asked for {key_id!r} and gave {key.key_id!r}")
    return key
