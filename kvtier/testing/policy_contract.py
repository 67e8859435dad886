"""What every :class:`kvtier.policy.base.EvictionPolicy` must do, as a pytest class to inherit::

    import pytest

    pytest.register_assert_rewrite("kvtier.testing.policy_contract")  # before the import: readable failures
    from kvtier.testing.policy_contract import EvictionPolicyContract

    class TestMyPolicy(EvictionPolicyContract):
        @pytest.fixture
        def policy(self):
            return MyPolicy()

Which block goes first is the policy's own business. That it is a leaf, that it is not held, that none is lost
or given away twice, is not. Clocks only rise, as the tiers' do, but for blocks that are added: they may have
been used long ago.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from kvtier.policy.base import NO_PARENT, EvictionPolicy, Hint

SIZE = 1000  # bytes of a block


class EvictionPolicyContract:
    """Needs a fixture ``policy``: a new, empty one. Subclasses may add tests of what only they promise."""

    @pytest.fixture
    def policy(self) -> EvictionPolicy:
        raise NotImplementedError("override the fixture `policy`")

    # Counting

    def test_an_empty_policy_gives_nothing(self, policy: EvictionPolicy) -> None:
        assert len(policy) == 0
        assert policy.pop() is None

    def test_every_block_is_given_once(self, policy: EvictionPolicy) -> None:
        for block in range(1, 101):
            policy.add(block, NO_PARENT, block, SIZE)
        assert len(policy) == 100
        assert sorted(_drained(policy)) == list(range(1, 101))
        assert len(policy) == 0
        assert policy.pop() is None

    def test_adding_again_is_touching(self, policy: EvictionPolicy) -> None:
        for clock in range(1, 5):
            policy.add(1, NO_PARENT, clock, SIZE)
        assert len(policy) == 1
        assert _drained(policy) == [1]

    def test_a_removed_block_is_not_given(self, policy: EvictionPolicy) -> None:
        for block in (1, 2, 3):
            policy.add(block, NO_PARENT, block, SIZE)
        policy.remove(2)
        assert len(policy) == 2
        assert sorted(_drained(policy)) == [1, 3]

    def test_a_block_may_come_back(self, policy: EvictionPolicy) -> None:
        policy.add(1, NO_PARENT, 1, SIZE)
        assert policy.pop() == 1
        policy.add(1, NO_PARENT, 2, SIZE)
        policy.remove(1)
        policy.add(1, NO_PARENT, 3, SIZE)
        assert _drained(policy) == [1]

    def test_blocks_may_come_in_any_order_of_clocks(self, policy: EvictionPolicy) -> None:
        clocks = list(range(1, 501))
        random.Random(1).shuffle(clocks)
        for block, clock in enumerate(clocks, 1):
            policy.add(block, NO_PARENT if block % 10 == 1 else block - 1, clock, SIZE)
        order = _drained(policy)
        assert sorted(order) == list(range(1, 501))
        assert all(order.index(block) < order.index(block - 1) for block in range(1, 501) if block % 10 != 1)

    def test_any_size_and_any_id_will_do(self, policy: EvictionPolicy) -> None:
        ids = [1, (1 << 64) - 1, 1 << 63, *(n << 32 for n in range(1, 50))]
        for clock, block in enumerate(ids, 1):
            policy.add(block, NO_PARENT, clock, (0, 1, 1 << 40)[clock % 3])
        assert sorted(_drained(policy)) == sorted(ids)

    def test_a_hint_is_advice(self, policy: EvictionPolicy) -> None:
        hints = [
            Hint(),
            Hint(ended=True),
            Hint(returns_at=1e9),
            Hint(returns_at=-1.0),
            Hint(priority=-5),
            Hint(priority=9),
        ]
        policy.hint(99, hints[1])  # unknown
        for block, hint in enumerate(hints, 1):
            policy.add(block, block - 1, block, SIZE)
            policy.hint(block, hint)
        assert len(policy) == len(hints)
        assert _drained(policy) == [6, 5, 4, 3, 2, 1]

    def test_unknown_blocks_are_ignored(self, policy: EvictionPolicy) -> None:
        policy.touch(7, 1)
        policy.remove(7)
        policy.release(7)
        assert len(policy) == 0
        policy.add(7, NO_PARENT, 2, SIZE)
        assert _drained(policy) == [7]

    # Chains

    def test_children_go_before_their_parents(self, policy: EvictionPolicy) -> None:
        for block in range(1, 11):
            policy.add(block, block - 1, block, SIZE)
        assert _drained(policy) == list(range(10, 0, -1))

    def test_the_order_of_arrival_does_not_matter(self, policy: EvictionPolicy) -> None:
        for clock, block in enumerate((3, 1, 4, 2), 1):  # 1 - 2 - 3 - 4
            policy.add(block, block - 1, clock, SIZE)
        assert _drained(policy) == [4, 3, 2, 1]

    def test_a_parent_outlives_all_its_branches(self, policy: EvictionPolicy) -> None:
        policy.add(1, NO_PARENT, 1, SIZE)
        for block in range(2, 12):
            policy.add(block, 1, block, SIZE)
        for block in range(2, 12):
            policy.touch(block, 100 + block)
        assert _drained(policy)[-1] == 1

    def test_a_block_without_its_parent_can_go(self, policy: EvictionPolicy) -> None:
        policy.add(2, 1, 1, SIZE)
        policy.add(3, 3, 2, SIZE)  # its own parent: as if it had none
        assert sorted(_drained(policy)) == [2, 3]

    def test_a_parent_that_comes_late_is_protected(self, policy: EvictionPolicy) -> None:
        policy.add(2, 1, 1, SIZE)
        policy.add(1, NO_PARENT, 2, SIZE)
        assert _drained(policy) == [2, 1]

    def test_a_removed_child_frees_its_parent(self, policy: EvictionPolicy) -> None:
        policy.add(1, NO_PARENT, 1, SIZE)
        policy.add(2, 1, 2, SIZE)
        policy.remove(2)
        assert _drained(policy) == [1]

    def test_a_removed_parent_is_protected_when_it_comes_back(self, policy: EvictionPolicy) -> None:
        policy.add(1, NO_PARENT, 1, SIZE)
        policy.add(2, 1, 2, SIZE)
        policy.remove(1)
        policy.add(1, NO_PARENT, 3, SIZE)
        assert _drained(policy) == [2, 1]

    def test_a_block_may_change_its_parent(self, policy: EvictionPolicy) -> None:
        policy.add(1, NO_PARENT, 1, SIZE)
        policy.add(2, NO_PARENT, 2, SIZE)
        policy.add(3, 1, 3, SIZE)
        policy.add(3, 2, 4, SIZE)
        order = _drained(policy)
        assert sorted(order) == [1, 2, 3]
        assert order.index(3) < order.index(2)

    # Holds

    def test_a_held_block_stays(self, policy: EvictionPolicy) -> None:
        for block in (1, 2, 3):
            policy.add(block, NO_PARENT, block, SIZE)
        policy.hold(1)
        assert sorted(_drained(policy)) == [2, 3]
        assert len(policy) == 1
        policy.release(1)
        assert _drained(policy) == [1]

    def test_holds_are_counted(self, policy: EvictionPolicy) -> None:
        policy.add(1, NO_PARENT, 1, SIZE)
        for _ in range(3):
            policy.hold(1)
        for _ in range(2):
            policy.release(1)
            assert policy.pop() is None
        policy.release(1)
        assert policy.pop() == 1

    def test_a_hold_protects_ancestors(self, policy: EvictionPolicy) -> None:
        for block in range(1, 6):
            policy.add(block, block - 1, block, SIZE)
        policy.hold(3)
        assert _drained(policy) == [5, 4]
        policy.release(3)
        assert _drained(policy) == [3, 2, 1]

    def test_a_hold_may_come_first_and_stay_longer(self, policy: EvictionPolicy) -> None:
        policy.hold(1)
        for clock in (1, 2):
            policy.add(1, NO_PARENT, clock, SIZE)
            assert policy.pop() is None
            policy.remove(1)
        policy.add(1, NO_PARENT, 3, SIZE)
        policy.release(1)
        assert policy.pop() == 1

    def test_a_ring_of_parents_does_not_keep_its_blocks_for_ever(self, policy: EvictionPolicy) -> None:
        for block, parent in ((1, 3), (2, 1), (3, 2), (4, 4)):
            policy.add(block, parent, block, SIZE)
        assert sorted(_drained(policy)) == [1, 2, 3, 4]

    # Everything at once

    @pytest.mark.parametrize("seed", range(20))
    def test_rules_hold_in_any_order_of_calls(self, policy: EvictionPolicy, seed: int) -> None:
        rng = random.Random(seed)
        parents: dict[int, int] = {}
        holds: Counter[int] = Counter()
        for clock in range(1, 600):
            block = rng.randint(1, 12)
            match rng.randrange(7):
                case 0 | 1:
                    parents[block] = rng.randint(0, block - 1)  # no cycles
                    policy.add(block, parents[block], clock, SIZE)
                case 2:
                    policy.touch(block, clock)
                case 3:
                    policy.remove(block)
                    parents.pop(block, None)
                case 4:
                    policy.hold(block)
                    holds[block] += 1
                case 5:
                    policy.hint(block, Hint(rng.random() < 0.5, rng.choice((None, clock)), rng.randint(-1, 1)))
                    if holds[block]:
                        policy.release(block)
                        holds[block] -= 1
                case _:
                    given = policy.pop()
                    may_go = {b for b in parents if b not in parents.values() and not holds[b]}
                    assert given in may_go if may_go else given is None
                    parents.pop(given or 0, None)
            assert len(policy) == len(parents)


def _drained(policy: EvictionPolicy) -> list[int]:
    given = []
    while (block := policy.pop()) is not None:
        given.append(block)
    return given
