"""Which blocks extend which."""

from __future__ import annotations

from collections.abc import Iterator

from kvtier.tiers.forest import with_descendants


class Counted(dict[int, int]):
    """Counts how often an entry of it is looked at."""

    looks = 0

    def items(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        for item in super().items():
            self.looks += 1
            yield item


def test_descendants() -> None:
    parents = {2: 1, 3: 2, 4: 2, 5: 0, 6: 5, 8: 7}
    assert with_descendants([2, 7, 9], parents) == {2, 3, 4, 7, 8, 9}
    assert with_descendants([1], {1: 2, 2: 1}) == {1, 2}
    assert with_descendants([], parents) == set()


def test_a_long_chain_is_walked_once() -> None:
    parents = Counted({block: block - 1 for block in range(2, 1001)})
    assert len(with_descendants([1], parents)) == 1000
    assert parents.looks == len(parents)
