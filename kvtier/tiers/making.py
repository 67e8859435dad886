"""The tiers that a configuration describes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kvtier.clock import Clock
from kvtier.config import Config
from kvtier.events import Signals
from kvtier.fs import FileSystem
from kvtier.identity import Identity
from kvtier.memory import Memory
from kvtier.policy import registry
from kvtier.policy.guarded import policy_disabled
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.floors import keep_floors
from kvtier.tiers.pressure import Pressure
from kvtier.tiers.ram import RamTier
from kvtier.tiers.setup import TierSetup
from kvtier.vault import Vault


def ram_tier(config: Config, signals: Signals, clock: Clock, ask: Callable[[], Memory]) -> RamTier:
    """The tier in memory. Raises :class:`kvtier.ConfigError` if its policy cannot be used."""
    policy = registry.eviction(config.ram.eviction, "ram.eviction")()
    ram = RamTier(
        config.ram.bytes_max_resolved(), policy, partial(policy_disabled, signals, "ram", type(policy).__name__)
    )
    if ram.bytes_max and config.ram.available_bytes_min != 0:
        ram.pressure = Pressure(ram.bytes_max, config.ram.available_bytes_min_resolved, ask, signals, clock)
    return ram


def disk_tiers(
    config: Config,
    folders: list[str],
    identity: Identity,
    vault: Vault,
    fs: FileSystem,
    clock: Clock,
    signals: Signals,
) -> list[DiskTier]:
    """The tiers on disk, in ``folders``. Raises :class:`kvtier.ConfigError` if a policy cannot be used."""
    tiers = [
        DiskTier(
            fs,
            TierSetup(
                name=t.name,
                kind=t.kind,
                folder=folder,
                tier_no=identity.tier_no(t.name),
                bytes_max=t.bytes_max_resolved(),
                segment_bytes=t.segment_bytes,
                codec=t.codec,
                eviction=registry.eviction(t.eviction, f"tier {t.name}: eviction"),
                promotion=registry.promotion(t.promotion, f"tier {t.name}: promotion")(),
                admission=registry.admission(t.admission, f"tier {t.name}: admission", t.admission_blocks_min)(),
                write_bytes_per_day=t.write_bytes_per_day,
                compaction=registry.compaction(t.compaction, f"tier {t.name}: compaction")(t.compaction_dead_ratio),
                compaction_dead_ratio=t.compaction_dead_ratio,
                compaction_bytes_per_s=t.compaction_bytes_per_s,
                page_cache=t.page_cache,
            ),
            identity.store_id,
            signals,
            clock,
            vault,
        )
        for t, folder in zip(config.tier, folders, strict=True)
    ]
    floors = (t.free_bytes_min_resolved() for t in config.tier)
    keep_floors(list(zip(tiers, floors, strict=True)), fs, clock, signals)
    return tiers
