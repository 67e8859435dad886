"""A policy that fails is given up once, and the default goes on with every block and every hold."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kvtier import Config, ConfigError, Hit, Store
from kvtier.events import Event, PolicyDisabled
from kvtier.policy import registry
from kvtier.policy.base import NO_PARENT, Hint
from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.policy.guarded import Guarded

METHODS = ("add", "touch", "remove", "pop", "hold", "release", "hint", "__len__")
HERE = __name__


class Failing(LeafLru):
    """Raises at the n-th call of a method."""

    method, at = "pop", 1

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def _call(self, method: str) -> None:
        self._calls += method == self.method
        if method == self.method and self._calls >= self.at:
            raise RuntimeError("out of order")

    def add(self, block: int, parent: int, clock: int, nbytes: int) -> None:
        self._call("add")
        super().add(block, parent, clock, nbytes)

    def touch(self, block: int, clock: int) -> None:
        self._call("touch")
        super().touch(block, clock)

    def remove(self, block: int) -> None:
        self._call("remove")
        super().remove(block)

    def pop(self) -> int | None:
        self._call("pop")
        return super().pop()

    def hold(self, block: int) -> None:
        self._call("hold")
        super().hold(block)

    def release(self, block: int) -> None:
        self._call("release")
        super().release(block)

    def hint(self, block: int, hint: Hint) -> None:
        self._call("hint")

    def __len__(self) -> int:
        self._call("__len__")
        return super().__len__()


class GivesGarbage(LeafLru):
    """Gives blocks that nobody has heard of."""

    def pop(self) -> int | None:
        return 12345


class GivesText(LeafLru):
    def pop(self) -> int | None:
        return "block"  # type: ignore[return-value]


class GivesTheSame(LeafLru):
    """Gives the same block again and again."""

    def pop(self) -> int | None:
        return next((block for block in self._table.ids if block), None)


class GivesNothing(LeafLru):
    def pop(self) -> int | None:
        return None


class NoPolicy:
    """Lacks nearly all methods."""

    def add(self) -> None: ...


WRONG = (GivesGarbage, GivesText, GivesTheSame, GivesNothing)


def failing(method: str, at: int) -> Failing:
    policy = Failing()
    policy.method, policy.at = method, at
    return policy


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [1, 2, 5])
def test_whichever_call_raises_nothing_is_lost(method: str, at: int) -> None:
    reasons: list[str] = []
    there: dict[int, int] = {}
    held = 3

    def add_again(reason: str) -> None:
        reasons.append(reason)
        for block, clock in there.items():
            guarded.add(block, NO_PARENT, clock, 1)

    guarded = Guarded(failing(method, at), add_again)
    guarded.hold(held)
    rng = random.Random(at)
    for clock in range(1, 200):
        block = rng.randint(1, 20)
        match rng.randrange(5):
            case 0 | 1:
                there[block] = clock
                guarded.add(block, NO_PARENT, clock, 1)
            case 2:
                there |= {block: clock} if block in there else {}
                guarded.touch(block, clock)
            case 3:
                there.pop(block, None)
                guarded.remove(block)
                guarded.hint(block, Hint(ended=True))
                guarded.hold(21)
                guarded.release(21)
            case _:
                given = guarded.pop()
                assert given != held
                assert given is None if not there.keys() - {held} else there.pop(given or 0)
        assert len(guarded) == len(there)
    assert reasons == ["RuntimeError: out of order"]
    guarded.release(held)
    assert {guarded.pop() for _ in tuple(there)} == set(there)


def test_a_held_block_that_is_given_away_is_kept() -> None:
    reasons: list[str] = []
    guarded = Guarded(GivesTheSame(), reasons.append)
    guarded.add(1, NO_PARENT, 1, 1)
    guarded.hold(1)
    assert guarded.pop() is None
    assert reasons == ["it gave block 0x1, which is held"]


def test_what_is_all_held_is_no_failure() -> None:
    reasons: list[str] = []
    guarded = Guarded(LeafLru(), reasons.append)
    guarded.add(1, NO_PARENT, 1, 1)
    guarded.hold(1)
    assert guarded.pop() is None
    guarded.release(1)
    assert guarded.pop() == 1
    assert guarded.pop() is None
    assert not reasons


# -- in a store -------------------------------------------------------------------------------------

VALUE = bytes(8 << 10)


def config(path: Path, *, ram: str = "leaf-lru", disk: str = "leaf-lru") -> Config:
    return Config.from_dict(
        {
            "store": {"path": str(path), "value_bytes_max": "16KiB"},
            "ram": {"bytes_max": "100KiB", "eviction": ram},
            "tier": [{"name": "disk", "kind": "ssd", "bytes_max": "1MiB", "segment_bytes": "128KiB", "eviction": disk}],
        }
    )


def value(number: int) -> bytes:
    return number.to_bytes(8, "little") + VALUE


def fill(config: Config) -> tuple[list[PolicyDisabled], int, dict[int, bytes]]:
    """What was told while more was put than there is room for; how often policies were disabled; what is there."""
    events: list[Event] = []
    with Store.open(config, listeners=[events.append], background=False) as store:
        for number in range(200):
            store.put(str(number).encode(), value(number))
            store.get(str(number // 2).encode())
            if number % 5 == 4:
                store.flush()
        count = store.stats().counters.get("policies_disabled", 0)
    with Store.open(config, background=False) as store:
        found = {}
        for number in range(200):
            hit = store.get(str(number).encode())
            if isinstance(hit, Hit):
                found[number] = bytes(hit.buffers[0])
    return [e for e in events if isinstance(e, PolicyDisabled)], count, found


@pytest.mark.parametrize("method", ["add", "touch", "remove", "pop"])
def test_a_tier_whose_policy_raises_goes_on(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Failing, "method", method)
    monkeypatch.setattr(Failing, "at", 7)
    _, _, usual = fill(config(tmp_path / "usual"))
    for where in ("ram", "disk"):
        made = config(tmp_path / where, **{where: f"{HERE}:Failing"})
        events, count, found = fill(made)
        assert events == [PolicyDisabled(where, "Failing", "RuntimeError: out of order")]
        assert count == 1
        assert len(found) >= len(usual) * 9 // 10  # how many pages the index takes is chance: ids are random
        assert found == {number: value(number) for number in found}


@pytest.mark.parametrize("policy", WRONG)
@pytest.mark.parametrize("where", ["ram", "disk"])
def test_a_tier_whose_policy_gives_what_it_must_not_goes_on(where: str, policy: type[LeafLru], tmp_path: Path) -> None:
    made = config(tmp_path, **{where: f"{HERE}:{policy.__name__}"})
    events, count, found = fill(made)
    assert [(e.tier, e.policy) for e in events] == [(where, policy.__name__)]
    assert count == 1
    assert 199 in found
    assert found == {number: value(number) for number in found}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:Policy", "ModuleNotFoundError"),
        (f"{HERE}:Nobody", "AttributeError"),
        (f"{HERE}:failing", "is not a class"),
        (f"{HERE}:NoPolicy", "has no method touch, remove"),
        ("builtins:property.fget", "unknown eviction"),
        ("random", "unknown eviction"),
    ],
)
def test_a_name_that_means_no_policy(name: str, says: str, tmp_path: Path) -> None:
    for where in ("ram", "disk"):
        with pytest.raises(ConfigError, match=says):
            Store.open(config(tmp_path, **{where: name}))
    Store.open(config(tmp_path)).close()  # nothing is left open


def test_a_class_of_another_package_can_be_named() -> None:
    assert registry.eviction(f"{HERE}:Failing") is Failing
