"""The configuration: frozen sections, from TOML or from Python, validated at once.

Every way in (:meth:`Config.from_toml`, :meth:`Config.from_dict`, ``Config(...)``) makes the same checks, and
:class:`kvtier.ConfigError` carries *all* problems, each with its path and what would be right. Sizes are
``int`` bytes or text (``"50GiB"``, ``"512 MB"``); a tier's cap may also be a share of its disk (``"10%"``),
which stays symbolic until :meth:`TierConfig.bytes_max_resolved`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic import ValidationInfo as Info
from pydantic.json_schema import GenerateJsonSchema

from kvtier.config_problems import Problems, is_within, path_of, problems_of, repaired
from kvtier.config_values import Cap, Folder, NamespaceName, Size, StoreFolder, TierName, without_default
from kvtier.errors import ConfigError, ConfigProblem
from kvtier.units import GIB, KIB, MIB, TIB, BadValue, Percent, format_size, parse_size

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The names that a configuration may use; a test holds them to the registries of policies and codecs.
TierKind = Literal["ssd", "hdd"]
CodecName = Literal["none", "zstd", "zstd-planes"]
EvictionName = Literal["leaf-lru"]
PromotionName = Literal["always", "never"]
CompactionName = Literal["reclaim"]
WhenFull = Literal["wait", "skip"]

#: In a store's folder: the configuration that it was last opened for writing with.
SAVED_FILE = "CONFIG"
SAVED_BYTES_MAX = MIB
SEGMENT_BYTES_MIN = 64 * KIB
#: What a record may need besides its payload: header, key, namespace, metadata, lengths, alignment.
RECORD_OVERHEAD_BYTES_MAX = 8 * KIB
SEGMENT_BYTES_DEFAULT: dict[TierKind, int] = {"ssd": 256 * MIB, "hdd": GIB}


def _size(default: str, description: str) -> Any:
    extra: dict[str, Any] = {"default": default}
    return Field(parse_size(default), description=description, examples=[default], json_schema_extra=extra)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", title=None)

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as e:
            raise ConfigError(problems_of(type(self), e)) from None

    # Tells pydantic that a section inside another one needs no call of this __init__: the outermost one
    # collects the problems of all of them.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class StoreConfig(_Section):
    """``[store]``: the store as a whole."""

    path: StoreFolder = Field(
        None,
        json_schema_extra=without_default,
        description="Folder of the store; relative to this file's folder. Needed if there is a disk tier.",
        examples=["/var/lib/kvtier"],
    )
    value_bytes_max: Size = _size("64MiB", "The largest value that can be put, all its buffers together.")


class RamConfig(_Section):
    """``[ram]``: the tier in memory."""

    bytes_max: Size = _size("1GiB", "Cap of the RAM tier; 0 for none.")
    eviction: EvictionName = Field("leaf-lru", description="What leaves first at the cap.")


class WriteBehindConfig(_Section):
    """``[write_behind]``: the queue between ``put`` and the first disk tier."""

    bytes_max: Size = _size("256MiB", "Most bytes waiting to be written.")
    when_full: WhenFull = Field("wait", description="What a put does that finds the queue full.")


class PrefetchConfig(_Section):
    """``[prefetch]``: reading ahead."""

    bytes_max: Size = _size("64MiB", "Most bytes read ahead and not yet taken.")
    coalesce_bytes_max: Size = _size("8MiB", "Neighbours on disk are read together up to this size.")
    threads: Annotated[int, Field(strict=True, ge=1, le=64)] = Field(
        2, description="Threads that read ahead.", examples=[2]
    )


class TierConfig(_Section):
    """``[[tier]]``: one disk tier. The order in the file is the order of the ladder, fastest first."""

    name: TierName = Field(description="Shown in hits, stats and events.", examples=["nvme"])
    kind: TierKind = Field(description="What the disk is: sets defaults and habits.", examples=["ssd"])
    path: Folder = Field(
        default_factory=lambda data: Path(data["name"]),
        description="Folder of the tier; relative to the store's path. Default: the tier's name.",
        examples=["/mnt/nvme/kvtier"],
    )
    segment_bytes: Size = Field(
        default_factory=lambda data: SEGMENT_BYTES_DEFAULT[data["kind"]],
        description="Size of one segment file. Default: 256MiB on ssd, 1GiB on hdd.",
        examples=["256MiB"],
    )
    bytes_max: Cap = Field(
        description="Cap of all that the tier has on disk: a size, or a share of the disk that holds it.",
        examples=["50GiB", "10%"],
    )
    codec: CodecName = Field("none", description="How payloads are encoded on disk.")
    eviction: EvictionName = Field("leaf-lru", description="What leaves first at the cap.")
    promotion: PromotionName = Field("always", description="Whether a hit here moves the block one disk tier up.")
    compaction: CompactionName = Field("reclaim", description="How dead space is given back.")

    @field_validator("segment_bytes")
    @classmethod
    def _segment_has_a_size(cls, value: int) -> int:
        if value < SEGMENT_BYTES_MIN:
            raise BadValue(f"{format_size(value)} is too small", f"from {format_size(SEGMENT_BYTES_MIN)}")
        if value > TIB:
            raise BadValue(f"{format_size(value)} is too big", f"up to {format_size(TIB)}")
        return value

    def bytes_max_resolved(self) -> int:
        """The cap in bytes, a share taken of the disk that holds ``path`` now.

        Raises :class:`OSError` if that disk cannot be asked.
        """
        return self.bytes_max.of_disk(self.path) if isinstance(self.bytes_max, Percent) else self.bytes_max


class QuotaConfig(_Section):
    """``[[quota]]``: how much one namespace, or each of the others, may have on all disk tiers together."""

    namespace: NamespaceName = Field(
        None,
        json_schema_extra=without_default,
        description="The namespace, in UTF-8. Without it: each namespace that has no quota of its own.",
        examples=["tenant-a"],
    )
    bytes_max: Size = Field(
        description="Cap of its values as they were put, and 1KiB for each block.", examples=["10GiB"]
    )


class Config(_Section):
    """Everything that a :class:`kvtier.Store` can be told. Immutable; all paths are absolute."""

    model_config = ConfigDict(title="kvtier configuration")

    store: StoreConfig = Field(default_factory=StoreConfig)
    ram: RamConfig = Field(default_factory=RamConfig)
    write_behind: WriteBehindConfig = Field(default_factory=WriteBehindConfig)
    prefetch: PrefetchConfig = Field(default_factory=PrefetchConfig)
    tier: tuple[TierConfig, ...] = Field((), description="The disk tiers, fastest first. None: RAM only.")
    quota: tuple[QuotaConfig, ...] = Field((), description="What namespaces may have, at most. None: no limit.")

    def __init__(self, /, **data: Any) -> None:
        try:
            BaseModel.__init__(self, **data)
        except ValidationError as e:
            problems = problems_of(Config, e)
            try:  # what is wrong between sections shows only once each of them is right in itself
                Config.model_validate(repaired(data, e, _tier_stand_in))
            except ValidationError as more:
                known = tuple(p.path for p in problems)
                problems += [p for p in problems_of(Config, more) if not is_within(p.path, known)]
            raise ConfigError(problems) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @field_validator("store")
    @classmethod
    def _absolute(cls, store: StoreConfig) -> StoreConfig:
        return store.model_copy(update={"path": Path(os.path.abspath(store.path))}) if store.path else store

    @field_validator("tier")
    @classmethod
    def _inside_the_store(cls, tiers: tuple[TierConfig, ...], info: Info) -> tuple[TierConfig, ...]:
        store = info.data.get("store")
        if store is None or store.path is None:
            return tiers
        return tuple(t.model_copy(update={"path": Path(os.path.abspath(store.path / t.path))}) for t in tiers)

    @model_validator(mode="after")
    def _check_between_sections(self) -> Config:
        if problems := [*_size_problems(self), *_tier_problems(self), *_quota_problems(self)]:
            raise Problems(problems)
        return self

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Config:
        """The configuration in a TOML file. A relative ``store.path`` is relative to the file's folder.

        Raises :class:`kvtier.ConfigError`, also for a file that cannot be read or is not TOML.
        """
        file = Path(path)
        try:
            raw = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as e:
            raise ConfigError([ConfigProblem(str(file), f"cannot be read: {e.strerror or e}")]) from e
        except UnicodeDecodeError as e:
            raise ConfigError([ConfigProblem(str(file), f"is not UTF-8 text: {e.reason}")]) from e
        except (ValueError, RecursionError) as e:
            raise ConfigError([ConfigProblem(str(file), f"is not valid TOML: {e}")]) from e
        store = raw.get("store")
        folder = store.get("path") if isinstance(store, dict) else None
        if isinstance(folder, str) and folder and not folder.startswith("~"):
            raw["store"]["path"] = file.parent / folder
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """The configuration in plain dicts and lists, as TOML or JSON gives them.

        Raises :class:`kvtier.ConfigError`.
        """
        try:
            return cls(**raw)
        except (RecursionError, ValueError) as e:  # nested too deeply to look at, or with too many digits to show
            raise ConfigError([ConfigProblem("configuration", f"cannot be taken apart: {e}")]) from e

    @classmethod
    def for_folder(cls, path: str | os.PathLike[str]) -> Config:
        """The defaults: 1 GiB of RAM, and one SSD tier, ``disk``, of at most 10 % of the disk of ``path``."""
        tier = TierConfig(name="disk", kind="ssd", bytes_max=Percent(10))
        return cls(store=StoreConfig(path=path), tier=(tier,))

    @classmethod
    def of_store(cls, path: str | os.PathLike[str]) -> Config:
        """What the store in the folder ``path`` was last opened with; the defaults if there is none yet.

        Raises :class:`kvtier.ConfigError`, also if the saved configuration is damaged.
        """
        saved = Path(path) / SAVED_FILE
        try:
            with saved.open("rb") as file:
                raw = json.loads(file.read(SAVED_BYTES_MAX))  # a longer one ends in the middle: that is no JSON
            raw["store"]["path"] = path
        except (FileNotFoundError, NotADirectoryError):
            return cls.for_folder(path)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as e:
            raise ConfigError(
                [ConfigProblem(str(saved), f"cannot be read: {e}", "open with a file or a Config")]
            ) from e
        return cls.from_dict(raw)

    def to_json(self) -> str:
        """Everything that was set, as JSON that :meth:`from_dict` takes; folders inside the store's are relative."""
        raw = self.model_dump(exclude_unset=True, exclude={"tier": {"__all__": {"path", "bytes_max"}}})
        root = self.store.path
        for saved, tier in zip(raw.get("tier", ()), self.tier, strict=True):
            inside = root is not None and tier.path.is_relative_to(root)
            within = tier.path.relative_to(root) if root is not None and inside else tier.path
            saved["path"] = tier.path if str(within).startswith("~") else within  # "~x" alone would be a home folder
            saved["bytes_max"] = tier.bytes_max
        return json.dumps(raw, default=str, indent=1)


def json_schema() -> str:
    """The JSON schema of the file, for editors: what ``kvtier config schema`` prints."""
    schema = Config.model_json_schema(schema_generator=_Schema)
    return json.dumps({"$schema": _Schema.schema_dialect, **schema}, indent=2) + "\n"


class _Schema(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # "Bytes Max" says nothing that "bytes_max" does not


def _tier_stand_in(index: int) -> dict[str, Any]:
    return {"name": f"tier-{index}", "kind": "ssd", "bytes_max": TIB}


def _size_problems(config: Config) -> Iterator[ConfigProblem]:
    value, shown = config.store.value_bytes_max, format_size(config.store.value_bytes_max)
    if value < 1:
        yield ConfigProblem("store.value_bytes_max", "a value needs at least one byte", 'for example "64MiB"')
    if config.tier and config.store.path is None:
        yield ConfigProblem("store.path", "required key is missing", "a store with disk tiers has a folder")
    if not config.tier and config.ram.bytes_max == 0:
        message = "is 0 and there is no disk tier, so nothing can be stored"
        yield ConfigProblem("ram.bytes_max", message, 'for example "1GiB"')
    if config.tier and config.write_behind.bytes_max < value:
        message = f"is smaller than store.value_bytes_max ({shown})"
        yield ConfigProblem("write_behind.bytes_max", message, f"at least {shown}, or lower that limit")
    if not 0 < config.prefetch.coalesce_bytes_max <= config.prefetch.bytes_max:
        message = "must be more than 0 and at most prefetch.bytes_max"
        hint = f"at most {format_size(config.prefetch.bytes_max)}"
        yield ConfigProblem("prefetch.coalesce_bytes_max", message, hint)


def _tier_problems(config: Config) -> Iterator[ConfigProblem]:
    value = config.store.value_bytes_max
    seen: list[TierConfig] = []
    for i, tier in enumerate(config.tier):
        if any(tier.name == other.name for other in seen):
            message = f"{tier.name!r} is used twice"
            yield ConfigProblem(path_of(("tier", i, "name")), message, "give each tier a name of its own")
        if clash := _path_clash(tier, seen, config.store.path):
            yield ConfigProblem(path_of(("tier", i, "path")), clash, "give each tier a folder of its own")
        if tier.segment_bytes < value + RECORD_OVERHEAD_BYTES_MAX:
            message = f"{format_size(tier.segment_bytes)} cannot hold a value of store.value_bytes_max"
            hint = f"at least {value + RECORD_OVERHEAD_BYTES_MAX} bytes, or lower that limit"
            yield ConfigProblem(path_of(("tier", i, "segment_bytes")), message, hint)
        if problem := _cap_problem(tier):
            yield ConfigProblem(path_of(("tier", i, "bytes_max")), *problem)
        seen.append(tier)


def _quota_problems(config: Config) -> Iterator[ConfigProblem]:
    if config.quota and not config.tier:
        yield ConfigProblem("quota", "there is no disk tier for it", "quotas are of what is on disk: add a [[tier]]")
        return
    seen: list[str | None] = []
    for i, quota in enumerate(config.quota):
        whose = "the other namespaces" if quota.namespace is None else f"namespace {quota.namespace!r}"
        if quota.namespace in seen:
            message = f"{whose} have a quota already" if quota.namespace is None else f"{whose} has a quota already"
            yield ConfigProblem(path_of(("quota", i, "namespace")), message, "give each one quota")
        seen.append(quota.namespace)
        if problem := _quota_problem(config, quota):
            yield ConfigProblem(path_of(("quota", i, "bytes_max")), *problem)


def _quota_problem(config: Config, quota: QuotaConfig) -> tuple[str, str] | None:
    if quota.bytes_max < 1:
        return "leaves no room for a block", 'for example "10GiB"'
    try:
        disks = sum(tier.bytes_max_resolved() for tier in config.tier)
    except (OSError, ValueError):
        return None  # which is reported of the tier
    if quota.bytes_max > disks:
        shown = format_size(disks)
        return f"{format_size(quota.bytes_max)} is more than all disk tiers together ({shown})", f"at most {shown}"
    return None


def _cap_problem(tier: TierConfig) -> tuple[str, str] | None:
    share = isinstance(tier.bytes_max, Percent)
    if share and not tier.path.is_absolute():
        return None  # store.path is missing, which is reported: no disk to ask
    try:
        cap = tier.bytes_max_resolved()
    except OSError as e:
        return f"the disk that holds {tier.path} cannot be asked: {e.strerror}", "give a size"
    if cap >= tier.segment_bytes:
        return None
    shown = f"{tier.bytes_max} of the disk ({format_size(cap)})" if share else format_size(cap)
    size = format_size(tier.segment_bytes)
    return f"{shown} is smaller than one segment ({size})", f"at least {size}, or lower segment_bytes"


def _path_clash(tier: TierConfig, others: list[TierConfig], store: Path | None) -> str:
    def real(path: Path) -> Path:
        return Path(os.path.normcase(os.path.realpath(path)))

    mine = real(tier.path)
    if store is not None and (mine == real(store) or mine in real(store).parents):
        return f"{tier.path} holds the store itself"
    for other in others:
        theirs = real(other.path)
        if mine == theirs:
            return f"{tier.path} is the folder of tier {other.name!r}"
        if mine in theirs.parents or theirs in mine.parents:
            return f"{tier.path} and the folder of tier {other.name!r} lie inside one another"
    return ""
