"""Encryption at rest. Needs the extra ``crypto``.

Payloads are encrypted with AES-256-GCM. The data key is derived (HKDF-SHA256) from the namespace's key, the segment,
and a *salt*: 16 random bytes that each writer makes up when it opens a segment. The nonce is the record's offset. So
a nonce is used once under a data key: a writer only goes forward in its segment, and after a crash, when the same
offset may be written again, there is a new writer with another salt. The associated data are the record's identity:
its place, its name, its content id and its lengths.

Metadata are encrypted with AES-SIV (RFC 5297), which needs no nonce, and are bound to the block's name and content:
so the metadata of a block, empty or not, also prove that it is this content that belongs to the name.

On disk a key is called by a keyed hash, and content ids are keyed with the namespace's key. The store's own secret,
on which all those and :meth:`kvtier.Store.derive_key` depend, is in the ``STORE`` file, encrypted with the store's
key. So nothing on disk lets anyone try out guesses.

What is encrypted begins with a *slip*: the salt, the id of the key, and 8 bytes that are derived beside the data
key. They tell another key from damage.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kvtier.errors import WrongKeys
from kvtier.identity import SECRET_BYTES, Identity
from kvtier.keys import KEY_ID_BYTES_MAX, Key, KeyProvider, ask, is_key_id
from kvtier.segment.format import Place, RecordHead, identity_of
from kvtier.segment.writer import Encrypt
from kvtier.vault import ENCRYPTED, DecryptError, KeyMissing, KeyUnavailable, Named, Vault

_SALT_BYTES = 16
_SLIP = struct.Struct(f"<{_SALT_BYTES}s{KEY_ID_BYTES_MAX}s8s")
_TAG_BYTES = 16
_NO_SALT = bytes(_SALT_BYTES)
_CACHED_MAX = 4096


class _DataKey(NamedTuple):
    """A derived key, and the slip that goes before what it encrypts."""

    slip: bytes
    secret: bytes


def _derive(key: Key, salt: bytes, purpose: bytes, length: int = 32) -> _DataKey:
    both = HKDF(hashes.SHA256(), length + 8, salt, purpose).derive(key.secret)
    return _DataKey(_SLIP.pack(salt, key.key_id.encode(), both[length:]), both[:length])


def _split(stored: bytes | memoryview) -> tuple[bytes, str]:
    """The salt and the key's id in a slip."""
    if len(stored) < _SLIP.size:
        raise DecryptError("shorter than a slip")
    salt, padded, _ = _SLIP.unpack_from(stored)
    key_id = padded.rstrip(b"\0").decode("latin-1")
    if not is_key_id(key_id):
        raise DecryptError("not a key's id")
    return salt, key_id


def _encrypted(key: _DataKey, nonce: bytes, aad: bytes, views: Sequence[memoryview]) -> memoryview:
    """The slip, what is in ``views`` encrypted, and the tag."""
    out = memoryview(bytearray(_SLIP.size + sum(v.nbytes for v in views) + _TAG_BYTES))
    out[: _SLIP.size] = key.slip
    encryptor = Cipher(algorithms.AES(key.secret), modes.GCM(nonce)).encryptor()
    encryptor.authenticate_additional_data(aad)
    at = _SLIP.size
    for view in views:
        at += encryptor.update_into(view, out[at : at + view.nbytes])
    encryptor.finalize()
    out[at:] = encryptor.tag
    return out


def _decrypted(key: _DataKey, nonce: bytes, aad: bytes, stored: memoryview) -> memoryview:
    """What :func:`_encrypted` was given, in the place of its encrypted form."""
    if bytes(stored[: _SLIP.size]) != key.slip:
        raise KeyMissing("the key by this id is another one")
    if stored.nbytes < _SLIP.size + _TAG_BYTES:
        raise DecryptError("no tag")
    body, tag = stored[_SLIP.size : -_TAG_BYTES], bytes(stored[-_TAG_BYTES:])
    decryptor = Cipher(algorithms.AES(key.secret), modes.GCM(nonce, tag)).decryptor()
    decryptor.authenticate_additional_data(aad)
    decryptor.update_into(body, body)
    try:
        decryptor.finalize()
    except InvalidTag as e:
        raise DecryptError("it does not pass its tag") from e
    return body


# -- the store's secret ------------------------------------------------------------------------------


def seal_identity(identity: Identity, keys: KeyProvider) -> Identity:
    """With the secret encrypted by the store's current key. Raises :class:`kvtier.WrongKeys`."""
    try:
        key = _derive(ask(keys, None), os.urandom(_SALT_BYTES), b"kvtier store" + identity.store_id)
    except LookupError as e:
        raise WrongKeys(f"the key provider has no key for the store itself: {e}") from e
    sealed = _encrypted(key, bytes(12), identity.store_id, [memoryview(identity.secret)])
    return replace(identity, sealed_secret=bytes(sealed))


def unseal_identity(identity: Identity, keys: KeyProvider) -> Identity:
    """With the secret decrypted. Raises :class:`kvtier.WrongKeys`."""
    assert identity.sealed_secret is not None
    sealed = memoryview(bytearray(identity.sealed_secret))
    try:
        salt, key_id = _split(sealed)
        key = _derive(ask(keys, None, key_id), salt, b"kvtier store" + identity.store_id)
        secret = bytes(_decrypted(key, bytes(12), identity.store_id, sealed))
    except (LookupError, DecryptError) as e:
        raise WrongKeys(f"the store's secret cannot be decrypted: {e}") from e
    if len(secret) != SECRET_BYTES:
        raise WrongKeys("the store's secret has another length")
    return replace(identity, secret=secret)


# -- blocks ------------------------------------------------------------------------------------------


class _Known(NamedTuple):
    """What the provider was asked for since keys were last forgotten, and what was derived from it."""

    current: dict[bytes, Key]
    keys: dict[tuple[bytes, str], Key]
    derived: dict[tuple[bytes, str, bytes, bytes], _DataKey]


class EncryptedVault(Vault):
    """See the module."""

    flag = ENCRYPTED
    overhead = _SLIP.size + _TAG_BYTES

    def __init__(self, identity: Identity, keys: KeyProvider) -> None:
        super().__init__(identity)
        self._provider = keys
        self._known = _Known({}, {}, {})

    @property
    def era(self) -> object:  # type: ignore[override]
        return self._known

    def name(self, namespace: bytes, key: bytes) -> bytes:
        named = bytes((len(namespace),)) + namespace + key
        return hashlib.blake2b(named, digest_size=32, key=self._identity.secret, person=b"kvtier name").digest()

    def check_writable(self, namespace: bytes) -> None:
        self._key_of(self._known, namespace, None)

    def content_hasher(self, namespace: bytes) -> blake3.blake3:
        purpose = b"kvtier content" + self._identity.store_id
        return blake3.blake3(key=self._key(namespace, None, _NO_SALT, purpose).secret)

    def encrypt_meta(self, block: Named, meta: bytes) -> bytes:
        key = self._key(block.namespace, None, _NO_SALT, self._meta_purpose, 64)
        return key.slip + AESSIV(key.secret).encrypt(meta, _bound_to(block))

    def decrypt_meta(self, block: Named) -> bytes:
        _, key_id = _split(block.meta)
        key = self._key(block.namespace, key_id, _NO_SALT, self._meta_purpose, 64)
        if not block.meta.startswith(key.slip):
            raise KeyMissing("the key by this id is another one")
        try:
            return AESSIV(key.secret).decrypt(block.meta[_SLIP.size :], _bound_to(block))
        except (InvalidTag, ValueError) as e:
            raise DecryptError("the metadata do not pass their tag") from e

    def encryptor(self) -> Encrypt:
        salt, used_to = os.urandom(_SALT_BYTES), -1

        def encrypt(head: RecordHead, place: Place, payload: Sequence[memoryview]) -> Sequence[memoryview]:
            nonlocal salt, used_to
            if place.offset <= used_to:  # an append that was broken off is made again: not with the same nonce
                salt = os.urandom(_SALT_BYTES)
            used_to = place.offset
            key = self._key(head.namespace, None, salt, _segment_purpose(place))
            return [_encrypted(key, _nonce(place), identity_of(head, place), payload)]

        return encrypt

    def decrypt_payload(self, head: RecordHead, place: Place, stored: memoryview) -> memoryview:
        if not head.codec & ENCRYPTED:
            raise DecryptError("a payload that is not encrypted in a store with encryption")
        salt, key_id = _split(stored)
        key = self._key(head.namespace, key_id, salt, _segment_purpose(place))
        return _decrypted(key, _nonce(place), identity_of(head, place), stored)

    def is_current(self, block: Named) -> bool:
        try:
            return _split(block.meta)[1] == self._key_of(self._known, block.namespace, None).key_id
        except DecryptError:
            return True  # another key would not make it better

    def forget_keys(self) -> None:
        self._known = _Known({}, {}, {})  # what is being asked for now goes into the old one

    @property
    def _meta_purpose(self) -> bytes:
        return b"kvtier meta" + self._identity.store_id

    def _key(self, namespace: bytes, key_id: str | None, salt: bytes, purpose: bytes, length: int = 32) -> _DataKey:
        """Derived from a key of the namespace (None: its current one). Raises :class:`KeyMissing`."""
        known = self._known
        key = self._key_of(known, namespace, key_id)
        at = namespace, key.key_id, salt, purpose
        if (found := known.derived.get(at)) is not None:
            return found
        if len(known.derived) >= _CACHED_MAX:
            known.derived.clear()
        return known.derived.setdefault(at, _derive(key, salt, purpose + b"\0" + namespace, length))

    def _key_of(self, known: _Known, namespace: bytes, key_id: str | None) -> Key:
        """A key of the namespace (None: its current one), which the provider is asked for once."""
        if key_id is None:
            if (current := known.current.get(namespace)) is None:
                current = known.current[namespace] = self._ask(namespace, None)
                known.keys.setdefault((namespace, current.key_id), current)
            return current
        if (found := known.keys.get((namespace, key_id))) is None:
            found = known.keys[namespace, key_id] = self._ask(namespace, key_id)
        return found

    def _ask(self, namespace: bytes, key_id: str | None) -> Key:
        try:
            return ask(self._provider, namespace, key_id)
        except Exception as e:
            kind = KeyMissing if isinstance(e, LookupError) else KeyUnavailable
            raise kind(f"key {key_id or '(current)'} of namespace {namespace!r}: {type(e).__name__}: {e}") from e


def _segment_purpose(place: Place) -> bytes:
    return b"kvtier segment" + place._replace(offset=0).seed()


def _nonce(place: Place) -> bytes:
    return place.offset.to_bytes(12, "little")


def _bound_to(block: Named) -> list[bytes]:
    lengths = struct.pack(f"<{len(block.lengths)}Q", *block.lengths)
    return [block.namespace, block.key, block.content_id, struct.pack("<Q", block.parent_id), lengths]
