"""Which vault a store has: whether it is encrypted was decided when it was made."""

from __future__ import annotations

import importlib
from typing import Any

from kvtier.errors import WrongKeys
from kvtier.identity import Identity
from kvtier.keys import KeyProvider
from kvtier.vault import Vault


def new_identity(engine: str, keys: KeyProvider | None) -> Identity:
    """Of a store that is being made: encrypted if there are keys. Raises :class:`kvtier.WrongKeys`."""
    identity = Identity.new(engine)
    return identity if keys is None else resealed(identity, keys)


def resealed(identity: Identity, keys: KeyProvider) -> Identity:
    """With the secret encrypted by the store's current key. Raises :class:`kvtier.WrongKeys`."""
    sealed: Identity = _encryption().seal_identity(identity, keys)
    return sealed


def unlocked(identity: Identity, keys: KeyProvider | None, root: str) -> Identity:
    """A stored identity, with its secret. Raises :class:`kvtier.WrongKeys`."""
    if identity.sealed_secret is None:
        if keys is not None:
            raise WrongKeys(f"{root} was made without encryption, and cannot be encrypted now: make another store")
        return identity
    if keys is None:
        raise WrongKeys(f"{root} is encrypted: open it with its keys")
    known: Identity = _encryption().unseal_identity(identity, keys)
    return known


def vault_of(identity: Identity, keys: KeyProvider | None) -> Vault:
    """The vault of an identity that has its secret."""
    if identity.sealed_secret is None:
        return Vault(identity)
    vault: Vault = _encryption().EncryptedVault(identity, keys)
    return vault


def _encryption() -> Any:
    """The module that needs the extra; loaded only where it is used."""
    try:
        return importlib.import_module("kvtier.encryption")
    except ModuleNotFoundError as e:
        raise WrongKeys(f"encryption needs the package {e.name}: pip install 'kvtier[crypto]'") from e
