"""A replay and a store that is fed with the same requests: the same hits, refusals, expiries and evictions."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kvtier import Config, Store
from kvtier.config.tier_model import TierModelFile
from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.policy.registry import EVICTION
from kvtier.replay.cell import Cell
from kvtier.replay.cost import CostModel
from kvtier.replay.tier_model import TierModel
from kvtier.replay.trace import Chains, Request, Trace, make_trace
from kvtier.tiers.limits import BLOCK_OVERHEAD_BYTES
from kvtier.tiers.ram import OVERHEAD_BYTES
from tests.clocks import HandClock
from tests.stores import MIB, noise, settle

SIZE = 4096
PLENTY = 1000  # blocks: more than any trace here has
COUNTED = ("not_admitted", "expired", "quota_evictions", "over_quota")


def random_trace(seed: int, requests: int = 80) -> Trace:
    """Chains over a small tree, from two namespaces, some seconds apart."""
    chance, chains, numbers, made = random.Random(seed), Chains(), dict[tuple[int, str], int](), []
    time = 0
    for _ in range(requests):
        parent, blocks = 0, []
        for name in chance.choices("abc", k=chance.randint(1, 7)):
            if (parent, name) not in numbers:
                numbers[parent, name] = chains.extend(parent)
            parent = numbers[parent, name]
            blocks.append(parent)
        made.append(Request(float(time), len(blocks), blocks, None, chance.choice(["", "a"])))
        time += chance.choice([0, 1, 2, 10])
    return make_trace("made", 1, made, chains.parents)


Said = tuple[list[int], Counter[str]]  # leading hits by request, and blocks by what became of them


def replayed(trace: Trace, ids: list[int], ram: int, tiers: list[dict[str, Any]], **more: Any) -> Said:
    """What a replay says. ``ids``: those of the store, which is all chance that there is: where touches fall."""
    shares = {"ram": {"share": ram}} if ram else {}
    told = [{"share": PLENTY, **t} for t in tiers]
    said = TierModelFile.model_validate({"block_bytes": SIZE, "tier": told, **shares, **more})
    model = TierModel(CostModel("test", 1.0, 1.0, 1), said)
    numbers = {block_id: n for n, block_id in enumerate(ids)}
    capacity = ram + PLENTY * len(tiers)
    cell = Cell(trace, ids, numbers, model, capacity, lambda name: EVICTION[name] if name else LeafLru)
    outcome = cell.run(None, None)
    found = Counter[str]()
    for tier in cell.tiers:
        found["not_admitted"] += tier.flows.not_admitted
        found["expired"] += tier.flows.expired
        found["quota_evictions"] += tier.flows.quota_evicted
        found["over_quota"] += tier.flows.over_quota
    return list(outcome.leads), found


def stored(
    folder: Path, trace: Trace, ram: int, tiers: list[dict[str, Any]], ttl_s: int = 0, pin_blocks: int = 0, **more: Any
) -> tuple[list[int], Said]:
    """The ids of a store that a server uses so, by block; and what it says."""
    disk = {"kind": "ssd", "bytes_max": 64 * MIB, "segment_bytes": 16 * MIB}
    config = Config.from_dict(
        {
            "store": {"path": folder / "store", "value_bytes_max": SIZE, "ttl_s": ttl_s},
            "ram": {"bytes_max": ram * (SIZE + OVERHEAD_BYTES), "available_bytes_min": 0},
            "tier": [{**disk, **t} for t in tiers],
            **more,
        }
    )
    clock, leads, pinned, ids = HandClock(now=0.0), [], set[bytes](), [0] * (trace.unique + 1)
    with Store.open(config, background=False, clock=clock) as store:
        assert store._back is not None
        for request in range(len(trace)):
            clock.advance(trace.times[request] - clock.now)
            while store._back._expiry.step() == 0.0:
                pass
            namespace = trace.namespace_names[trace.namespaces[request]].encode()
            keys = [b"%d" % block for block in trace.chain(request)]
            for block, key in zip(trace.chain(request), keys, strict=True):
                ids[block] = store._wanted(key, namespace).block_id
            if namespace:
                store.pin([k for k in keys[:pin_blocks] if k not in pinned], namespace=namespace)
                pinned.update(keys[:pin_blocks])
            lead = store.match(keys, namespace=namespace)
            assert all(store.get_many(keys[:lead], namespace=namespace))
            for at, key in list(enumerate(keys))[lead:]:
                store.put(key, noise(key, SIZE), parent=keys[at - 1] if at else None, namespace=namespace)
            store.flush()
            settle(store)
            leads.append(lead)
        counters = store.stats().counters
    return ids, (leads, Counter({name: counters.get(name, 0) for name in COUNTED}))


DISK = {"name": "disk"}


@pytest.mark.parametrize("ram", [0, 5, 40])
@pytest.mark.parametrize(
    "tier",
    [
        {},
        {"admission": "second-touch"},
        {"admission": "min-chain", "admission_blocks_min": 4},
    ],
)
@pytest.mark.parametrize("ttl_s", [0, 15])
def test_admission_and_ttl(tmp_path: Path, ram: int, tier: dict[str, Any], ttl_s: int) -> None:
    trace = random_trace(ram + ttl_s)
    ids, theirs = stored(tmp_path, trace, ram, [DISK | tier], ttl_s)
    assert replayed(trace, ids, ram, [DISK | tier], ttl_s=ttl_s) == theirs
    leads, counts = theirs
    assert 0 < sum(leads) < trace.references - trace.unique + (not tier and not ttl_s)
    assert (counts["not_admitted"] > 0) == bool(tier)
    assert (counts["expired"] > 0) == bool(ttl_s)


@pytest.mark.parametrize("ram", [0, 6])
@pytest.mark.parametrize("blocks", [3, 12])
@pytest.mark.parametrize("ttl_s", [0, 15])
def test_quotas(tmp_path: Path, ram: int, blocks: int, ttl_s: int) -> None:
    trace = random_trace(blocks)
    quota = [{"namespace": "a", "bytes_max": blocks * (SIZE + BLOCK_OVERHEAD_BYTES)}]
    ids, theirs = stored(tmp_path, trace, ram, [DISK], ttl_s, quota=quota)
    assert replayed(trace, ids, ram, [DISK], ttl_s=ttl_s, quota=quota) == theirs
    assert theirs[1]["quota_evictions"] > 10
    assert (theirs[1]["over_quota"] > 0) == (blocks == 3)


@pytest.mark.parametrize("pin_blocks", [1, 3])
def test_pins(tmp_path: Path, pin_blocks: int) -> None:
    trace = random_trace(3)
    tier = DISK | {"admission": "min-chain", "admission_blocks_min": 6}
    rule = [{"name": "a", "pin_blocks": pin_blocks}]
    ids, theirs = stored(tmp_path, trace, 8, [tier], pin_blocks=pin_blocks)
    assert replayed(trace, ids, 8, [tier], namespace=rule) == theirs != replayed(trace, ids, 8, [tier])
