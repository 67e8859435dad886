"""The values that a configuration may hold: sizes, shares, folders, names; with their JSON schema."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema

from kvtier.blocks import NAMESPACE_BYTES_MAX
from kvtier.config.problems import one_of
from kvtier.units import BadValue, Percent, parse_cap, parse_size

#: ``Hit.tier`` uses these for the places that are not disk tiers.
RESERVED_TIER_NAMES = frozenset({"ram", "queue"})

#: The policies that come with the package, of which one is chosen by name; a test holds them to the registry.
EvictionName = Literal["leaf-lru", "slru", "s3-fifo", "sieve", "w-tinylfu", "gdsf", "hit-density"]
CompactionName = Literal["reclaim", "copy"]
PromotionName = Literal["always", "never", "second-hit"]
PrefetchName = Literal["chain", "next-turn"]
AdmissionName = Literal["always", "second-touch", "min-chain", "write-budget"]

_CLASS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")
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


def _parse_rate(value: object) -> int:
    rate = parse_size(value)
    if not rate:
        raise BadValue("nothing can be done with 0 bytes a second", 'for example "32MiB"')
    return rate


def _parse_policy(kind: str, names: tuple[str, ...], value: object) -> str:
    if isinstance(value, str) and (value in names or _CLASS.fullmatch(value)):
        return value
    hint = f'{one_of(str(value), names)}, or a class: "package.module:Class"'
    raise BadValue(f"unknown {kind} {json.dumps(value, default=str)}", hint)


def _policy_schema(names: tuple[str, ...]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"enum": list(names)}, {"type": "string", "pattern": f"^{_CLASS.pattern}$"}]})


Size = Annotated[int, BeforeValidator(parse_size), WithJsonSchema(_SIZE_SCHEMA)]
Rate = Annotated[int, BeforeValidator(_parse_rate), WithJsonSchema(_SIZE_SCHEMA)]
_as_text = PlainSerializer(lambda value: str(value) if isinstance(value, Percent) else value)
_SIZE_OR_SHARE_SCHEMA = WithJsonSchema({"anyOf": [*_SIZE_SCHEMA["anyOf"], _SHARE_SCHEMA]})
Cap = Annotated[int | Percent, PlainValidator(parse_cap), _as_text, _SIZE_OR_SHARE_SCHEMA]
Floor = Annotated[int | Percent | None, PlainValidator(parse_cap), _as_text, _SIZE_OR_SHARE_SCHEMA]
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

_EVICTION, _COMPACTION = get_args(EvictionName), get_args(CompactionName)
_PROMOTION, _ADMISSION = get_args(PromotionName), get_args(AdmissionName)
Eviction = Annotated[str, PlainValidator(partial(_parse_policy, "eviction", _EVICTION)), _policy_schema(_EVICTION)]
Compaction = Annotated[
    str, PlainValidator(partial(_parse_policy, "compaction", _COMPACTION)), _policy_schema(_COMPACTION)
]
Promotion = Annotated[str, PlainValidator(partial(_parse_policy, "promotion", _PROMOTION)), _policy_schema(_PROMOTION)]
Admission = Annotated[str, PlainValidator(partial(_parse_policy, "admission", _ADMISSION)), _policy_schema(_ADMISSION)]
_PREFETCH = get_args(PrefetchName)
Prefetch = Annotated[
    str, PlainValidator(partial(_parse_policy, "prefetch policy", _PREFETCH)), _policy_schema(_PREFETCH)
]
BytesPerDay = Annotated[
    int | None, PlainValidator(lambda value: None if value is None else parse_size(value)), WithJsonSchema(_SIZE_SCHEMA)
]
Ttl = Annotated[int, Field(strict=True, ge=0, le=10 * 366 * 86_400)]
Namespace = Annotated[str, PlainValidator(_parse_namespace)]
NamespaceName = Annotated[
    str | None,
    PlainValidator(_parse_namespace),
    WithJsonSchema({"type": "string", "maxLength": NAMESPACE_BYTES_MAX}),
]
