"""The whole configuration: where it comes from, and how it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic import ValidationInfo as Info
from pydantic.json_schema import GenerateJsonSchema

from kvtier.config.checks import problems_between
from kvtier.config.problems import Problems, is_within, problems_of, repaired
from kvtier.config.sections import (
    PrefetchConfig,
    QuotaConfig,
    RamConfig,
    Section,
    StoreConfig,
    TierConfig,
    WriteBehindConfig,
)
from kvtier.config.toml_file import read_toml
from kvtier.errors import ConfigError, ConfigProblem
from kvtier.units import MIB, TIB, Percent

#: In a store's folder: the configuration that it was last opened for writing with.
SAVED_FILE = "CONFIG"
SAVED_BYTES_MAX = MIB


class Config(Section):
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

    @property
    def decodes(self) -> bool:
        """Whether a disk tier encodes what it stores."""
        return any(t.codec != "none" for t in self.tier)

    @model_validator(mode="after")
    def _check_between_sections(self) -> Config:
        if problems := [*problems_between(self)]:
            raise Problems(problems)
        return self

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Config:
        """The configuration in a TOML file. A relative ``store.path`` is relative to the file's folder.

        Raises :class:`kvtier.ConfigError`, also for a file that cannot be read or is not TOML.
        """
        file = Path(path)
        raw = read_toml(file)
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
        raw = self.model_dump(exclude_unset=True, exclude={"tier": {"__all__": {"path"}}})
        root = self.store.path
        for saved, tier in zip(raw.get("tier", ()), self.tier, strict=True):
            inside = root is not None and tier.path.is_relative_to(root)
            within = tier.path.relative_to(root) if root is not None and inside else tier.path
            saved["path"] = tier.path if str(within).startswith("~") else within  # "~x" alone would be a home folder
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
