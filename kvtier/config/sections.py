"""The sections of a configuration, one class each. To add a key: a field here, and its row in docs/configuration.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kvtier.config.floors import AVAILABLE_BYTES_MIN, FREE_BYTES_MIN, floor_bytes
from kvtier.config.problems import problems_of
from kvtier.config.values import (
    Admission,
    BytesPerDay,
    Cap,
    Compaction,
    Eviction,
    Floor,
    Folder,
    NamespaceName,
    Prefetch,
    Promotion,
    Rate,
    Size,
    StoreFolder,
    TierName,
    Ttl,
    without_default,
)
from kvtier.errors import ConfigError
from kvtier.memory import memory
from kvtier.units import GIB, KIB, MIB, TIB, BadValue, Percent, disk_total, format_size, parse_size

#: The names that a configuration may use; a test holds them to the registries of policies and codecs.
TierKind = Literal["ssd", "hdd"]
CodecName = Literal["none", "zstd", "zstd-planes"]
WhenFull = Literal["wait", "skip"]
WriteMode = Literal["through", "back"]

SEGMENT_BYTES_MIN = 64 * KIB
#: What a record may need besides its payload: header, key, namespace, metadata, lengths, alignment.
RECORD_OVERHEAD_BYTES_MAX = 8 * KIB
SEGMENT_BYTES_DEFAULT: dict[TierKind, int] = {"ssd": 256 * MIB, "hdd": GIB}


def _size(default: str, description: str) -> Any:
    extra: dict[str, Any] = {"default": default}
    return Field(parse_size(default), description=description, examples=[default], json_schema_extra=extra)


class Section(BaseModel):
    """Frozen; a wrong one is refused with all of its problems."""

    model_config = ConfigDict(frozen=True, extra="forbid", title=None)

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as e:
            raise ConfigError(problems_of(type(self), e)) from None

    # Tells pydantic that a section inside another one needs no call of this __init__: the outermost one
    # collects the problems of all of them.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class StoreConfig(Section):
    """``[store]``: the store as a whole."""

    path: StoreFolder = Field(
        None,
        json_schema_extra=without_default,
        description="Folder of the store; relative to this file's folder. Needed if there is a disk tier.",
        examples=["/var/lib/kvtier"],
    )
    value_bytes_max: Size = _size("64MiB", "The largest value that can be put, all its buffers together.")
    ttl_s: Ttl = Field(
        0,
        description="How many seconds a block lives that is put without a ttl of its own; 0: no limit.",
        examples=[86400],
    )


class RamConfig(Section):
    """``[ram]``: the tier in memory."""

    bytes_max: Cap = _size("1GiB", "Cap of the RAM tier: a size, or a share of memory; 0 for none.")
    eviction: Eviction = Field("leaf-lru", description="What leaves first at the cap.")
    write: WriteMode = Field("through", description="Whether a block goes to disk when it is put, or when it leaves.")
    available_bytes_min: Floor = Field(
        None,
        json_schema_extra=without_default,
        description="The RAM tier shrinks while less memory than this is available: a size, or a share. "
        "Default: 512MiB, or 5% of a memory that is smaller than 10GiB.",
        examples=["2GiB", "10%"],
    )

    def bytes_max_resolved(self) -> int:
        """The cap in bytes, a share taken of the memory there is. :class:`OSError` if that is not known."""
        return self.bytes_max.of(memory().total) if isinstance(self.bytes_max, Percent) else self.bytes_max

    def available_bytes_min_resolved(self, total: int) -> int:
        """The floor in bytes, of ``total`` bytes of memory."""
        return floor_bytes(self.available_bytes_min, total, AVAILABLE_BYTES_MIN)


class WriteBehindConfig(Section):
    """``[write_behind]``: the queue between ``put`` and the first disk tier."""

    bytes_max: Size = _size("256MiB", "Most bytes waiting to be written.")
    when_full: WhenFull = Field("wait", description="What a put does that finds the queue full.")


class PrefetchConfig(Section):
    """``[prefetch]``: reading ahead."""

    bytes_max: Size = _size("64MiB", "Most bytes read ahead and not yet taken.")
    coalesce_bytes_max: Size = _size("8MiB", "Neighbours on disk are read together up to this size.")
    threads: Annotated[int, Field(strict=True, ge=1, le=64)] = Field(
        2, description="Threads that read ahead.", examples=[2]
    )
    policy: Prefetch = Field("chain", description="What comes up before it is asked for.")


class TierConfig(Section):
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
    free_bytes_min: Floor = Field(
        None,
        json_schema_extra=without_default,
        description="So much of its disk stays free, whoever fills it: a size, or a share. "
        "Default: 1GiB, or 1% of a disk that is smaller than 100GiB.",
        examples=["10GiB", "5%"],
    )
    codec: CodecName = Field("none", description="How payloads are encoded on disk.")
    eviction: Eviction = Field("leaf-lru", description="What leaves first at the cap.")
    admission: Admission = Field("always", description="Which blocks are written here.")
    admission_blocks_min: Annotated[int, Field(strict=True, ge=2, le=256)] = Field(
        2, description="For admission min-chain: how long a chain has to be.", examples=[4]
    )
    write_bytes_per_day: BytesPerDay = Field(
        None,
        json_schema_extra=without_default,
        description="Most bytes written here in a day. Without it: no limit.",
        examples=["200GiB"],
    )
    promotion: Promotion = Field("always", description="Whether a hit here moves the block one disk tier up.")
    compaction: Compaction = Field("reclaim", description="How dead space is given back.")
    compaction_dead_ratio: Annotated[float, Field(ge=0.1, le=0.95)] = Field(
        0.65, description="From which dead share on a segment is emptied.", examples=[0.65]
    )
    compaction_bytes_per_s: Rate = _size("32MiB", "Most bytes a second that compaction copies while nothing waits.")
    page_cache: bool = Field(
        False, description="Whether what is long goes through the system's page cache, read or written."
    )

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

    def free_bytes_min_resolved(self) -> int:
        """The floor in bytes. Raises :class:`OSError` if the disk that holds ``path`` cannot be asked."""
        return floor_bytes(self.free_bytes_min, disk_total(self.path), FREE_BYTES_MIN)


class QuotaConfig(Section):
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
