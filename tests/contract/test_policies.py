"""Every eviction policy that a configuration can name, against the contract."""

from __future__ import annotations

import typing

import pytest

pytest.register_assert_rewrite("kvtier.testing.policy_contract")

from kvtier import codec, config  # noqa: E402
from kvtier.policy import registry  # noqa: E402
from kvtier.policy.base import EvictionPolicy, Hint, SegmentFacts  # noqa: E402
from kvtier.testing.policy_contract import EvictionPolicyContract  # noqa: E402


@pytest.mark.parametrize("name", registry.EVICTION)
class TestEviction(EvictionPolicyContract):
    @pytest.fixture
    def policy(self, name: str) -> EvictionPolicy:
        return registry.EVICTION[name]()


class Hoarder:
    """Breaks the contract: gives away parents, and held blocks."""

    def __init__(self) -> None:
        self._blocks: list[int] = []

    def add(self, block: int, parent: int, clock: int, nbytes: int) -> None:
        self.remove(block)
        self._blocks.append(block)

    def touch(self, block: int, clock: int) -> None: ...

    def remove(self, block: int) -> None:
        if block in self._blocks:
            self._blocks.remove(block)

    def pop(self) -> int | None:
        return self._blocks.pop(0) if self._blocks else None

    def hold(self, block: int) -> None: ...

    def release(self, block: int) -> None: ...

    def hint(self, block: int, hint: Hint) -> None: ...

    def __len__(self) -> int:
        return len(self._blocks)


def test_the_contract_can_fail() -> None:
    contract = EvictionPolicyContract()
    contract.test_every_block_is_given_once(Hoarder())
    for test in (contract.test_children_go_before_their_parents, contract.test_a_held_block_stays):
        with pytest.raises(AssertionError):
            test(Hoarder())


def test_a_configuration_names_what_there_is() -> None:
    names = {
        config.EvictionName: registry.EVICTION,
        config.PromotionName: registry.PROMOTION,
        config.CompactionName: registry.COMPACTION,
        config.AdmissionName: registry.ADMISSION,
        config.PrefetchName: registry.PREFETCH,
        config.CodecName: codec.CODEC_IDS,
    }
    for literal, known in names.items():
        assert set(typing.get_args(literal)) == set(known)


def test_promotion_says_yes_or_no() -> None:
    assert registry.PROMOTION["always"]().promote(1) is True
    assert registry.PROMOTION["never"]().promote(1) is False


def test_reclaim_picks_the_segment_that_frees_most_for_least() -> None:
    reclaim = registry.COMPACTION["reclaim"](0.25)
    full, half, most = SegmentFacts(1, 100, 99), SegmentFacts(2, 100, 50), SegmentFacts(3, 100, 10)
    assert reclaim.pick([full, half, most]) == 3
    assert reclaim.pick([full, half]) == 2
    assert reclaim.pick([full]) is None
    assert reclaim.pick([]) is None
    assert reclaim.pick([SegmentFacts(4, 0, 0)]) is None  # nothing to gain
    assert reclaim.pick([SegmentFacts(5, 100, 0), most]) == 5
