"""Compaction: which segments, by whose policy, in which order; and by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvtier import ConfigError, Store
from kvtier.check import verify
from kvtier.cli.app import run
from kvtier.compacting import compact
from kvtier.events import Event, PolicyDisabled
from kvtier.fs import PortableFileSystem
from kvtier.index.lmdb_index import View
from kvtier.policy.base import SegmentFacts, TierFacts
from kvtier.policy.compaction import Copy, Reclaim
from kvtier.tiers.ledger import Ledger
from tests.sparse import KEYS, SIZE, copying, intact, steps, thin_out
from tests.stores import (
    KIB,
    MIB,
    config,
    disk_tier,
    fill,
    flip,
    names,
    noise,
    occupied,
    segments,
    settle,
    tier,
    value_of,
)

# -- which -------------------------------------------------------------------------------------------


def test_a_pinned_segment_stays(tmp_path: Path) -> None:
    with Store.open(copying(tmp_path), fs=PortableFileSystem(), background=False) as store:
        values = thin_out(store)
        store.pin([KEYS[0]])
        store.resume_compaction()
        settle(store)
        assert 1 in disk_tier(store).segments
        assert 2 not in disk_tier(store).segments
        store.unpin([KEYS[0]])
        settle(store)
        compacted = store.stats().counters["compaction_segments"]
        assert intact(store, values)
        assert compacted >= 2


def test_an_idle_store_that_has_nothing_to_compact_looks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read wakes the worker: a look at all segments, and along the chains that are held, is not for each."""
    looks: list[None] = []
    monkeypatch.setattr(Copy, "pick", lambda policy, candidates: looks.append(None))
    monkeypatch.setattr(Copy, "is_due", lambda policy, tier: True)
    walks: list[None] = []
    pinned = Ledger.pinned_segments

    def counted(ledger: Ledger, view: View, tier_no: int) -> set[int]:
        walks.append(None)
        return pinned(ledger, view, tier_no)

    monkeypatch.setattr(Ledger, "pinned_segments", counted)
    with Store.open(copying(tmp_path), background=False, fs=PortableFileSystem()) as store:
        values = thin_out(store)
        store.pin(list(values))
        store.resume_compaction()
        settle(store)
        before = len(looks)
        assert before > 0
        for key in values:
            store.get(key)
            list(store.get_many([key]))
            settle(store)
        assert (len(looks), walks) == (before, [])
        store.unpin(list(values))
        settle(store)
        assert len(looks) > before


@pytest.mark.parametrize("known", [False, True])
def test_a_segment_in_which_something_is_damaged_stays(tmp_path: Path, known: bool) -> None:
    """What can be read of it is copied once at most."""
    with Store.open(copying(tmp_path), fs=PortableFileSystem(), background=False) as store:
        values = thin_out(store)
        flip(segments(tmp_path)[0], 5000)
        if known:
            assert not store.get(KEYS[0])
        store.resume_compaction()
        settle(store)
        assert steps(store) == 0
        assert not store.get(KEYS[0])
        del values[KEYS[0]]
        assert intact(store, values)
        assert store.stats().counters["compaction_segments"] >= 2


def test_policies() -> None:
    facts = [SegmentFacts(1, 100, 80), SegmentFacts(2, 100, 40), SegmentFacts(3, 1000, 500), SegmentFacts(4, 100, 100)]
    for policy in (Reclaim(0.25), Copy(0.25)):
        assert policy.pick(facts) == 2
        assert policy.pick(facts[:1]) is None
        assert policy.pick(facts[3:]) is None
    assert Copy(0.25).is_due(TierFacts(1300, 10_000, facts))  # as a whole it is dead enough
    assert not Copy(0.75).is_due(TierFacts(1300, 10_000, facts))
    assert Copy(0.75).is_due(TierFacts(9000, 10_000, facts))  # or nearly full
    assert not Copy(0.25).is_due(TierFacts(0, 10_000, []))
    assert not Reclaim(0.25).is_due(TierFacts(1300, 10_000, facts))


class First:
    """A policy of another package: the first segment that is not all alive."""

    copies = True

    def __init__(self, dead_ratio: float) -> None:
        self.dead_ratio = dead_ratio

    def is_due(self, tier: TierFacts) -> bool:
        return True

    def pick(self, segments: Sequence[SegmentFacts]) -> int | None:
        return next((s.segment_no for s in segments if s.disk_bytes - s.live_bytes > self.dead_ratio * 1000), None)


class Stubborn(First):
    """One that fails."""

    def pick(self, segments: Sequence[SegmentFacts]) -> int | None:
        raise RuntimeError("no")


def test_a_policy_of_another_package(tmp_path: Path) -> None:
    with Store.open(copying(tmp_path), fs=PortableFileSystem(), background=False) as store:
        values = thin_out(store)
    events: list[Event] = []
    theirs = copying(tmp_path, compaction=f"{__name__}:First", compaction_dead_ratio=0.5)
    with Store.open(theirs, fs=PortableFileSystem(), background=False, listeners=[events.append]) as store:
        settle(store)
        assert store.stats().counters["compaction_segments"] >= 3
        assert intact(store, values)
    assert not any(isinstance(e, PolicyDisabled) for e in events)


def test_a_policy_that_fails_is_told_once_and_given_up(tmp_path: Path) -> None:
    events: list[Event] = []
    settings = copying(tmp_path, compaction=f"{__name__}:Stubborn")
    with Store.open(settings, fs=PortableFileSystem(), background=False, listeners=[events.append]) as store:
        values = thin_out(store)
        store.resume_compaction()
        settle(store)
        store.put(b"more", b"value")
        store.flush()
        settle(store)
        assert intact(store, values)
    assert events == [PolicyDisabled("disk", "Stubborn", "RuntimeError: no")]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("compaction", "nonsense"),
        ("compaction", "os:path"),
        ("compaction_dead_ratio", 0),
        ("compaction_dead_ratio", 1.0),
        ("compaction_bytes_per_s", 0),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key), Store.open(copying(tmp_path, **{key: value})):
        pass


# -- where to ---------------------------------------------------------------------------------------


def places(store: Store, number: int = 0) -> dict[bytes, tuple[int, int]]:
    """Segment and offset of each block in a tier."""
    assert store._back is not None
    with store._back.parts.index.read() as view:
        here = [e for _, e in view.blocks() if e.tier_no == disk_tier(store, number).tier_no]
    return {e.key: (e.segment_no, e.offset) for e in here}


def order_on_disk(store: Store, number: int = 0) -> list[bytes]:
    found = places(store, number)
    return sorted(found, key=found.__getitem__)


def test_copies_stand_apart_from_what_is_put(tmp_path: Path) -> None:
    with Store.open(copying(tmp_path), fs=PortableFileSystem(), background=False) as store:
        thin_out(store, every=4)  # so that the copies leave room in their segment
        fill(store, names(12, "new"), SIZE)  # they begin a segment in which all is alive
        before = places(store)
        store.resume_compaction()
        settle(store)
        fill(store, names(2, "later"), SIZE)
        after = places(store)
        copies = {after[key][0] for key in before if after[key] != before[key]}
        others = {after[key][0] for key in after if after[key] == before.get(key) or key not in before}
        assert copies
        assert others
        assert not copies & others


@pytest.mark.parametrize("kind", ["ssd", "hdd"])
def test_compaction_puts_chains_together_on_a_disk_that_turns(tmp_path: Path, kind: str) -> None:
    with Store.open(copying(tmp_path, kind=kind), fs=PortableFileSystem(), background=False) as store:
        store.pause_compaction()
        for turn in range(4):  # of two conversations at once, with something between that will go
            for chain in (b"a", b"b"):
                parent = b"%s%d" % (chain, turn - 1) if turn else None
                store.put(b"%s%d" % (chain, turn), noise((chain, turn), SIZE), parent=parent)
                for i in range(2):
                    store.put(b"gone %d %s%d" % (i, chain, turn), noise((chain, turn, i), SIZE))
                store.flush()
        for key in order_on_disk(store):
            if key.startswith(b"gone"):
                store.delete(key)
        store.flush()
        store.resume_compaction()
        settle(store)
        chains = [k.decode() for k in order_on_disk(store) if k[:1] in b"ab"]
        together = ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]
        assert (chains == together) == (kind == "hdd")
        assert sorted(chains) == together


@pytest.mark.parametrize("kind", ["ssd", "hdd"])
def test_a_batch_that_is_demoted_stands_chain_by_chain_on_a_disk_that_turns(tmp_path: Path, kind: str) -> None:
    tiers = [tier("top"), tier("low", kind=kind)]
    with Store.open(config(tmp_path, *tiers), background=False) as store:
        assert store._back is not None
        keys = [b"%s%d" % (chain, turn) for turn in range(3) for chain in (b"a", b"b", b"c")]
        for key in keys:
            parent = b"%s%d" % (key[:1], int(key[1:]) - 1)
            store.put(key, noise(key, KIB), parent=parent if parent in keys else None)
        store.flush()
        ladder = store._back.ladder
        ladder._evict(ladder.tiers[0], [store._wanted(k, b"").block_id for k in reversed(keys)])
        expected = sorted(keys) if kind == "hdd" else keys
        assert order_on_disk(store, 1) == expected


@pytest.mark.parametrize(("kind", "blocks"), [("ssd", 1), ("hdd", 6)])
def test_an_eighth_of_a_tier_goes_down_to_a_disk_that_turns_at_once(tmp_path: Path, kind: str, blocks: int) -> None:
    tiers = [tier("top", bytes_max=4 * MIB), tier("low", kind=kind)]
    with Store.open(config(tmp_path, *tiers), background=False) as store:
        for key in names(60):
            fill(store, [key], SIZE)
            if moved := store.stats().counters.get("demotions", 0):
                break
        assert moved == blocks


# -- by hand -----------------------------------------------------------------------------------------


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """The folder of a store with much dead space, whose configuration never copies."""
    settings = config(tmp_path, tier(compaction_dead_ratio=0.25))
    with Store.open(settings, fs=PortableFileSystem(), background=False) as store:
        thin_out(store)
    return tmp_path / "store"


def test_by_hand(sparse: Path) -> None:
    before = occupied(sparse)
    seen: list[tuple[int, int]] = []
    done = compact(sparse, progress=lambda *at: seen.append(at), fs=PortableFileSystem())
    (gain,) = done.tiers
    assert done.is_done
    assert (gain.name, gain.segments_dropped, gain.segments_left) == ("disk", 4, 0)
    assert gain.bytes_copied == 12 * (SIZE + 128)
    assert gain.bytes_before - gain.bytes_after > 20 * SIZE
    assert before - occupied(sparse) > 20 * SIZE
    assert seen
    assert seen[-1][0] == seen[-1][1]
    assert verify(sparse).is_sound
    assert len(segments(sparse.parent)) == 2  # of 12 blocks
    again = compact(sparse, fs=PortableFileSystem())
    assert again.tiers[0].bytes_copied == 0
    with Store.open(sparse, background=False) as store:
        assert store.config.tier[0].compaction == "reclaim"  # as it was
        assert store.match(KEYS[:1]) == 1
        assert all(value_of(store.get(k)) == noise(k, SIZE) for k in KEYS[::3])


def test_by_hand_where_something_is_damaged(sparse: Path) -> None:
    flip(segments(sparse.parent)[0], 5000)
    done = compact(sparse, fs=PortableFileSystem())
    assert not done.is_done
    assert done.tiers[0].segments_left == 1
    with Store.open(sparse, background=False) as store:
        assert [k for k in KEYS[::3] if not store.get(k)] == KEYS[:1]


def test_the_command(sparse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compact", str(sparse), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["done"] is True
    assert found["tiers"][0]["name"] == "disk"
    assert run(["compact", str(sparse), "--tier", "disk"]) == 0
    out, err = capsys.readouterr()
    assert "bytes_reclaimed" in out
    assert err == ""


def test_the_command_refuses(sparse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compact", str(sparse), "--tier", "nvme"]) == 2
    assert "there is no tier 'nvme'" in capsys.readouterr().err
    with Store.open(sparse):
        assert run(["compact", str(sparse)]) == 2
    assert "kvtier: " in capsys.readouterr().err


def test_by_hand_nothing_is_made_where_no_store_is(tmp_path: Path) -> None:
    assert run(["compact", str(tmp_path / "mistyped")]) == 2
    assert list(tmp_path.iterdir()) == []
