"""What is encrypted: payloads, metadata and the store's secret. The first byte of the input says which.

What is accepted is what was encrypted with the key: it encrypts to the same bytes again.
"""

from __future__ import annotations

from dataclasses import replace

from kvtier import encryption
from kvtier.encryption import EncryptedVault
from kvtier.errors import WrongKeys
from kvtier.identity import Identity
from kvtier.keys import single_key
from kvtier.segment.format import Place, RecordHead, RecordKind, identity_of
from kvtier.vault import ENCRYPTED, DecryptError, KeyMissing
from tests.fuzz.parsers.target import Target, expect, expect_same

KEYS = single_key(bytes(range(32)))
IDENTITY = Identity(bytes(range(16)), bytes(32), "lmdb-0.9")
PLACE = Place(IDENTITY.store_id, 3, 7, 4096)
HEAD = RecordHead(
    kind=RecordKind.BLOCK,
    codec=ENCRYPTED,
    seq=1,
    parent_id=2,
    namespace=b"tenant",
    key=bytes(32),
    meta=b"",
    lengths=(4, 5),
    content_id=bytes(16),
    stored_len=0,
    payload_sum=bytes(16),
)
OVERHEAD = EncryptedVault.overhead
SLIP_BYTES = OVERHEAD - 16

vault = EncryptedVault(IDENTITY, KEYS)


def parse(data: bytes) -> None:
    stored = data[1:]
    if data[:1] == b"M":
        block = replace(HEAD, meta=stored)
        meta = vault.decrypt_meta(block)
        expect_same(lambda: vault.encrypt_meta(block, meta), stored)
    elif data[:1] == b"S":
        identity = encryption.unseal_identity(replace(IDENTITY, secret=b"", sealed_secret=stored), KEYS)
        expect(len(identity.secret) == 32, f"a secret of {len(identity.secret)} bytes")
    else:
        head = replace(HEAD, stored_len=len(stored))
        plain = vault.decrypt_payload(head, PLACE, memoryview(bytearray(stored)))
        expect(plain.nbytes == len(stored) - OVERHEAD, f"{plain.nbytes} bytes of {len(stored)}")
        expect_same(lambda: encrypted_payload(stored, bytes(plain)), stored)


def encrypted_payload(like: bytes, plain: bytes) -> bytes:
    """Under the salt in ``like``."""
    head = replace(HEAD, stored_len=len(plain) + OVERHEAD)
    key = vault._key(head.namespace, None, like[:16], encryption._segment_purpose(PLACE))
    bound = identity_of(head, PLACE)
    return bytes(encryption._encrypted(key, encryption._nonce(PLACE), bound, [memoryview(plain)]))


def reseal(data: bytes) -> bytes:
    """What the input would be, had its inside been encrypted."""
    stored = data[1:]
    if len(stored) < OVERHEAD:
        return data
    if data[:1] == b"M":
        return data[:1] + vault.encrypt_meta(HEAD, stored[OVERHEAD:])
    if data[:1] == b"S":
        sealed = encryption.seal_identity(replace(IDENTITY, secret=stored[SLIP_BYTES:-16]), KEYS).sealed_secret
        assert sealed is not None
        return data[:1] + sealed
    return data[:1] + encrypted_payload(stored, stored[SLIP_BYTES:-16])


TARGET = Target(parse, (DecryptError, KeyMissing, WrongKeys), reseal)
