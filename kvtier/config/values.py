"""The values that a configuration may hold: sizes, shares, folders, names; with their JSON schema."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainValidator, WithJsonSchema

from kvtier.blocks import NAMESPACE_BYTES_MAX
from kvtier.units import BadValue, Percent, parse_cap, parse_size

#: ``Hit.tier`` uses these for the places that are not disk tiers.
RESERVED_TIER_NAMES = frozenset({"ram", "queue"})

_TIER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_SIZE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*(([kKmMgGtT][iI]?)?[bB])?\s*$"},
    ]
}
_SHARE_SCHEMA = {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*%\s*$"}


def without_default(schema: dict[str, Any]) -> None:
    del schema["default"]  # null, which TOML cannot say


def _parse_path(value: object) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or "\0" in str(value):
        raise BadValue(f"{value!r} is not a path", 'write a folder, for example "/var/lib/kvtier"')
    try:
        return Path(os.fspath(value)).expanduser()
    except RuntimeError as e:
        raise BadValue(f"{value!r}: there is no such home folder", "write the whole path") from e


def _parse_tier_name(value: object) -> str:
    if not isinstance(value, str) or not _TIER_NAME.fullmatch(value):
        hint = "1 to 32 of a-z, 0-9, '-' and '_', for example \"nvme\""
        raise BadValue(f"{value!r} is not a tier name", hint)
    if value in RESERVED_TIER_NAMES:
        raise BadValue(f"{value!r} is reserved", "for a place that is not a disk tier")
    return value


def _parse_namespace(value: object) -> str:
    if not isinstance(value, str):
        raise BadValue(f"{value!r} is not a namespace", 'write its name, for example "tenant-a"')
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise BadValue(f"{value!r} is not Unicode text", 'for example "tenant-a"') from None
    if size > NAMESPACE_BYTES_MAX:
        raise BadValue(f"{value!r} has {size} bytes in UTF-8", f"up to {NAMESPACE_BYTES_MAX}")
    return value


Size = Annotated[int, BeforeValidator(parse_size), WithJsonSchema(_SIZE_SCHEMA)]
Cap = Annotated[
    int | Percent,
    PlainValidator(parse_cap),
    WithJsonSchema({"anyOf": [*_SIZE_SCHEMA["anyOf"], _SHARE_SCHEMA]}),
]
Folder = Annotated[Path, PlainValidator(_parse_path), WithJsonSchema({"type": "string", "minLength": 1})]
StoreFolder = Annotated[
    Path | None,
    PlainValidator(lambda value: None if value is None else _parse_path(value)),
    WithJsonSchema({"type": "string", "minLength": 1}),
]
TierName = Annotated[
    str,
    PlainValidator(_parse_tier_name),
    WithJsonSchema({"type": "string", "pattern": f"^{_TIER_NAME.pattern}$"}),
]


NamespaceName = Annotated[
    str | None,
    PlainValidator(_parse_namespace),
    WithJsonSchema({"type": "string", "maxLength": NAMESPACE_BYTES_MAX}),
]
