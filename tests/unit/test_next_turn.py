"""When a conversation's chain is expected to be used again, in made-up time."""

from __future__ import annotations

from math import inf

import pytest

from kvtier.policy.prefetch import NextTurn


class Server:
    """Conversations one after the other, each of one turn that is answered ``gap_s`` before the next one is asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.policy = NextTurn(lambda: self.now)
        self._blocks = 0

    def conversation(self, gap_s: float | None, stays_s: float = 100.0, group: bytes = b"") -> bool:
        """Whether its chain is brought up after the first answer; None: it never goes on."""
        self._blocks += 10
        chain = list(range(self._blocks, self._blocks + 3))
        self.policy.asked(group, chain)
        brought = self.policy.answered(group, chain, stays_s)
        if gap_s is not None:
            self.now += gap_s
            self.policy.asked(group, [*chain, chain[-1] + 1])
        self.now += 1000.0
        return brought


def test_nothing_comes_up_before_eight_are_known_to_go_on() -> None:
    server = Server()
    assert [server.conversation(10.0) for _ in range(10)] == [False] * 8 + [True] * 2


def test_nor_if_too_many_never_do() -> None:
    server = Server()
    assert sum(server.conversation(None if i % 5 == 0 else 10.0) for i in range(100)) == 0
    assert [server.conversation(10.0) for _ in range(64)][-1]


@pytest.mark.parametrize(("stays_s", "pays"), [(5.0, False), (20.0, True), (inf, True)])
def test_only_those_count_that_come_while_the_chain_is_still_in_ram(stays_s: float, pays: bool) -> None:
    server = Server()
    assert [server.conversation(10.0, stays_s) for _ in range(20)][-1] is pays


def test_namespaces_are_learned_apart() -> None:
    server = Server()
    assert [server.conversation(10.0, group=b"a") for _ in range(12)][-1]
    assert not server.conversation(10.0, group=b"b")


def test_turns_are_learned_apart() -> None:
    server = Server()
    second = []
    for number in range(40):
        chain = [1000 * number + 1]
        server.policy.answered(b"", chain, 100.0)
        server.now += 10
        chain.append(chain[-1] + 1)
        server.policy.asked(b"", chain)
        second.append(server.policy.answered(b"", chain, 100.0))
        server.now += 1000
    assert not any(second), "after their second turn they never go on"
    assert server.policy.answered(b"", [7], 100.0), "after their first one always"
