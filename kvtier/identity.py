"""Who a store is: its id, its secret, the names of its tiers; and the ids derived from them.

Block ids and content ids are keyed by the store's secret, so that nobody can plan a collision and two
namespaces never share an id. The secret lies in the store's own folder: it is no encryption key.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import blake3
import xxhash

from kvtier.errors import CorruptStore, NotAStore, UnsupportedFormat
from kvtier.fs import FileSystem
from kvtier.segment.format import FORMAT_VERSION

STORE_FILE = "STORE"
TIER_FILE = "TIER"
#: Of ``STORE``, which alone says how all of a store is laid out; one more if it is encrypted.
STORE_FORMAT, UNPADDED_STORE_FORMAT = 3, 1
NEWEST_FORMATS = {"store": STORE_FORMAT + 1, "tier": FORMAT_VERSION}
IDENTITY_BYTES_MAX = 64 * 1024
CONTENT_ID_BYTES = 16
TIERS_MAX = 255
STORE_ID_BYTES = 16
SECRET_BYTES = 32


@dataclass(frozen=True)
class Identity:
    """The contents of the ``STORE`` file. ``tiers`` only ever grows; a tier's number is its place in it.

    ``sealed_secret``: of an encrypted store, the secret as it is on disk; ``secret`` is empty until it is decrypted.
    ``has_padding``: heads of records may end in padding, which an older kvtier takes for damage.
    """

    store_id: bytes
    secret: bytes = field(repr=False)
    engine: str
    tiers: tuple[str, ...] = ()
    sealed_secret: bytes | None = None
    has_padding: bool = True

    @classmethod
    def new(cls, engine: str) -> Identity:
        return cls(os.urandom(STORE_ID_BYTES), os.urandom(SECRET_BYTES), engine)

    def written_to(self, names: Iterable[str]) -> Identity:
        """This identity as one that this version writes to, in tiers of these names too."""
        return replace(self, tiers=self.tiers + tuple(n for n in names if n not in self.tiers), has_padding=True)

    def tier_no(self, name: str) -> int:
        return self.tiers.index(name)

    def block_id(self, namespace: bytes, key: bytes) -> int:
        """64 bits that name a block in the index and to policies; the full key is confirmed at every use."""
        h = self._block_hasher.copy()
        h.update(bytes((len(namespace),)) + namespace + key)
        return int.from_bytes(h.digest(), "big") or 1

    @cached_property
    def _block_hasher(self) -> hashlib.blake2b:
        """Keyed, and fed with nothing."""
        return hashlib.blake2b(digest_size=8, key=self.secret, person=b"kvtier block")

    def content_hasher(self, namespace: bytes) -> blake3.blake3:
        """A keyed BLAKE3 for the contents of one namespace; its first 16 bytes are the content id."""
        return blake3.blake3(key=self.derive_key(b"content:" + namespace))

    def derive_key(self, purpose: bytes) -> bytes:
        """32 bytes that only this store gives for this purpose."""
        return hashlib.blake2b(purpose, digest_size=32, key=self.secret, person=b"kvtier key").digest()


def dump_identity(identity: Identity) -> bytes:
    """The ``STORE`` file: JSON with a checksum over its other fields."""
    plain = STORE_FORMAT if identity.has_padding else UNPADDED_STORE_FORMAT
    fields: dict[str, object] = {
        "kvtier": "store",
        "format": plain,
        "store_id": identity.store_id.hex(),
        "engine": identity.engine,
        "tiers": list(identity.tiers),
    }
    if identity.sealed_secret is None:
        fields |= {"secret": identity.secret.hex()}
    else:
        fields |= {"format": plain + 1, "sealed_secret": identity.sealed_secret.hex()}
    return _with_sum(fields)


def load_identity(fs: FileSystem, path: str, engine: str) -> Identity:
    """Read and check a ``STORE`` file. Raises NotAStore, UnsupportedFormat or CorruptStore."""
    fields = _checked_fields(fs, path, "store")
    try:
        is_encrypted = fields["format"] in (STORE_FORMAT + 1, UNPADDED_STORE_FORMAT + 1)
        identity = Identity(
            bytes.fromhex(fields["store_id"]),
            b"" if is_encrypted else bytes.fromhex(fields["secret"]),
            str(fields["engine"]),
            tuple(str(name) for name in fields["tiers"]),
            bytes.fromhex(fields["sealed_secret"]) if is_encrypted else None,
            fields["format"] in (STORE_FORMAT, STORE_FORMAT + 1),
        )
        if len(identity.store_id) != STORE_ID_BYTES or len(identity.secret) != SECRET_BYTES * (not is_encrypted):
            raise ValueError("its ids have other lengths than they should")
    except (KeyError, TypeError, ValueError) as e:
        raise CorruptStore(f"{path}: {e}") from e
    if identity.engine != engine:
        raise UnsupportedFormat(f"{path}: the index needs engine {identity.engine}, this is {engine}")
    return identity


def dump_tier(store_id: bytes, name: str, tier_no: int) -> bytes:
    """The ``TIER`` file in a tier's folder: which store and tier it belongs to."""
    fields = {
        "kvtier": "tier",
        "format": FORMAT_VERSION,
        "store_id": store_id.hex(),
        "name": name,
        "tier_no": tier_no,
    }
    return _with_sum(fields)


def check_tier(fs: FileSystem, path: str, store_id: bytes, name: str, tier_no: int) -> None:
    """Raise unless the ``TIER`` file says that the folder is this tier of this store."""
    fields = _checked_fields(fs, path, "tier")
    found = (fields.get("store_id"), fields.get("name"), fields.get("tier_no"))
    if found != (store_id.hex(), name, tier_no):
        raise NotAStore(f"{path}: the folder belongs to tier {found[1]!r} of store {found[0]}")


def _with_sum(fields: dict[str, object]) -> bytes:
    body = json.dumps(fields, sort_keys=True)
    return json.dumps({**fields, "sum": xxhash.xxh3_64_hexdigest(body.encode())}, sort_keys=True, indent=1).encode()


def _checked_fields(fs: FileSystem, path: str, kind: str) -> dict[str, Any]:
    try:
        fields = json.loads(fs.read_file(path, IDENTITY_BYTES_MAX))
        if not isinstance(fields, dict) or fields.get("kvtier") != kind:
            raise NotAStore(f"{path} is not a kvtier {kind} file")
    except (ValueError, RecursionError) as e:
        raise CorruptStore(f"{path}: {e}") from e
    found = fields.pop("sum", None)
    newest = NEWEST_FORMATS[kind]
    if isinstance(fields.get("format"), int) and fields["format"] > newest:
        raise UnsupportedFormat(f"{path}: format {fields['format']} is newer than {newest}, which this reads")
    if found != xxhash.xxh3_64_hexdigest(json.dumps(fields, sort_keys=True).encode()):
        raise CorruptStore(f"{path}: its checksum differs")
    return fields
