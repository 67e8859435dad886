"""Where checkpoints are taken in a prompt, and which of them are kept when they take too much room."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("llama_cpp")

from kvtier_adapters.llama_cpp.options import Options
from kvtier_adapters.llama_cpp.placement import BEFORE_END, checkpoints_of, thin

NOWHERE: dict[str, Any] = {"start": 0, "end": 1000, "messages": [], "n_ubatch": 100, "step": 5000, "steps_back": True}


def placed(options: Options | None = None, **changes: Any) -> list[int]:
    return checkpoints_of(options=options or Options(), **{**NOWHERE, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"step": 300}, [300, 600]),  # 900 would leave little behind it
        ({"step": 300, "end": 1051}, [300, 600, 900]),
        ({"step": 300, "start": 300}, [600]),
        ({"step": 300, "start": 299}, [300, 600]),
        ({"step": 300, "start": 310}, [600]),  # the same ones wherever a prompt goes on
        ({"step": 1000}, []),
        ({"messages": [10]}, [10]),
        ({"messages": [10, 400, 700]}, [700]),  # earlier ones are not 8192 tokens apart
        ({"messages": [10, 400, 700], "start": 700}, []),
        ({"messages": [10, 400, 1000]}, []),  # the end of the prompt is one in any case
        ({"messages": [0]}, []),
        ({"steps_back": False}, [1000 - BEFORE_END - 100, 1000 - BEFORE_END]),
        ({"steps_back": False, "end": 50}, [46]),
        ({"steps_back": False, "end": 4}, []),
        ({"steps_back": False, "start": 996}, []),
        ({"steps_back": False, "messages": [10, 700], "step": 300}, [300, 600, 700, 896, 996]),
    ],
)
def test_where_checkpoints_are_taken(changes: dict[str, Any], expected: list[int]) -> None:
    assert placed(**changes) == expected


@pytest.mark.parametrize(
    ("options", "changes", "expected"),
    [
        (Options(checkpoint_user_messages=False), {"messages": [10, 400]}, []),
        (Options(checkpoint_min_step=300), {"messages": [10, 299, 300, 500, 600, 900, 950]}, [300, 600, 900, 950]),
        (Options(checkpoint_min_step=1), {"messages": [10, 400, 700]}, [10, 400, 700]),
        (Options(checkpoint_before_end=False), {"steps_back": False}, []),
        (Options(reproducible=True), {"steps_back": False}, [899, 999]),  # the last token is a batch of its own
        (Options(reproducible=True), {"steps_back": True}, []),
    ],
)
def test_what_the_options_say(options: Options, changes: dict[str, Any], expected: list[int]) -> None:
    assert placed(options, **changes) == expected


@given(
    st.integers(0, 900),
    st.integers(0, 900),
    st.lists(st.integers(0, 1000), max_size=9, unique=True).map(sorted),
    st.integers(1, 400),
    st.booleans(),
)
def test_a_prompt_that_goes_on_later_has_the_same_ones_behind_there(
    start: int, further: int, messages: list[int], step: int, steps_back: bool
) -> None:
    """What decides where a batch ends, and with it the last bits of the output."""
    end = 1000
    first = placed(start=start, messages=messages, step=step, steps_back=steps_back)
    assert first == sorted({p for p in first if start < p < end})
    later = placed(start=start + further, messages=messages, step=step, steps_back=steps_back)
    assert later == [position for position in first if position > start + further]


def each(size: int) -> Any:
    """Every checkpoint takes so many bytes."""
    return lambda kept: size * len(kept)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=40, unique=True), st.integers(0, 45))
def test_the_last_checkpoint_is_kept_and_the_others_within_their_bytes(positions: list[int], room: int) -> None:
    kept = thin(positions, each(10), 10 * room)
    assert kept == sorted(kept)
    assert set(kept) <= set(positions)
    assert max(positions) in kept
    assert len(kept) == max(1, min(room, len(positions))), "no more go than have to"


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 99)), min_size=1, max_size=20), st.integers(0, 900))
def test_checkpoints_of_different_sizes_stay_within_the_bytes(steps: list[tuple[int, int]], most: int) -> None:
    at, sizes = 0, {}
    for step, size in steps:
        at += step
        sizes[at] = size

    def cost(kept: Sequence[int]) -> int:
        return sum(sizes[position] for position in kept)

    kept = thin(list(sizes), cost, most)
    assert kept == [at] or cost(kept) <= most


@pytest.mark.parametrize("turns", [50, 400])
def test_what_is_kept_of_a_long_conversation_thins_out_towards_its_beginning(turns: int) -> None:
    """A turn comes at a time, and each time one goes: distances from the end about double."""
    kept: list[int] = []
    for turn in range(1, turns + 1):
        kept = thin([*kept, 100 * turn], each(1), 8)
    assert len(kept) == 8
    assert kept[-2:] == [100 * (turns - 1), 100 * turns]
    distances = [kept[-1] - position for position in reversed(kept[:-1])]
    assert distances[-1] > 25 * turns, "nothing old is left"
    for near, far in itertools.pairwise(distances):
        assert 1 < far / near <= 4


def test_where_a_conversation_was_left_some_checkpoint_is_near() -> None:
    """Going back by so many tokens never costs several times as many."""
    kept: list[int] = []
    for turn in range(1, 200):
        kept = thin([*kept, 10 * turn], each(1), 12)
        if turn > 12:
            for back in (20, 80, 320):
                wanted = 10 * turn - back
                nearest = max([0, *(position for position in kept if position <= wanted)])
                assert wanted - nearest <= 2 * back
