"""Rule B: when the live context serves a prompt. Tables first, then the bound against brute force."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("llama_cpp")

from kvtier_adapters.llama_cpp.checkpoints import (
    Action,
    Live,
    decide,
    live_resume,
    upstream_searches,
)
from kvtier_adapters.llama_cpp.window import first_needed

SWA = 512


def live(common: int, n_tokens: int | None = None, pos_min: int = 0, logits_ready: bool = False) -> Live:
    n_tokens = common if n_tokens is None else n_tokens
    return Live(common, n_tokens, pos_min, n_tokens - 1, logits_ready)


@pytest.mark.parametrize(
    ("context", "n_prompt", "n_swa", "expected"),
    [
        (live(1000), 1100, 0, 1000),
        (live(1000, 1500), 1100, 0, 1000),  # another ending: plain attention can always be truncated
        (live(1000), 1000, 0, 999),  # all there, but its logits are gone
        (live(1000, logits_ready=True), 1000, 0, 1000),
        (live(1000, 1001, logits_ready=True), 1000, 0, 999),
        (live(0, 500), 1000, 0, 0),
        (live(1000, pos_min=488), 1100, SWA, 1000),  # as a checkpoint as of 1000 is restored
        (live(1000, pos_min=489), 1100, SWA, 1000),  # the window of token 1000 begins at 489
        (live(1000, pos_min=490), 1100, SWA, 0),
        (live(1000, pos_min=488), 1000, SWA, 999),  # one step back from the checkpoint
        (live(1000, pos_min=489), 1000, SWA, 0),
        (live(1000, 1400, pos_min=400), 1100, SWA, 1000),
        (live(1000, 1600, pos_min=1088), 1100, SWA, 0),  # llama.cpp would truncate, and compute without rows
        (live(300, 1600, pos_min=1), 1100, SWA, 0),
        (live(300, 700, pos_min=0), 1100, SWA, 300),
        (Live(1000, 1000, -1, -1, False), 1100, SWA, 0),  # no window at all
        (Live(1000, 1000, 0, 700, False), 1100, SWA, 0),  # a window of somewhere else
        (live(1), 1, 0, 0),
    ],
)
def test_what_a_live_context_saves(context: Live, n_prompt: int, n_swa: int, expected: int) -> None:
    assert live_resume(context, n_prompt, n_swa) == expected


@pytest.mark.parametrize(
    ("saved", "stored", "n_prompt", "expected"),
    [
        (0, 0, 1000, Action.COLD),
        (0, 15, 1000, Action.COLD),
        (0, 16, 1000, Action.RESTORE),
        (500, 0, 1000, Action.LIVE),
        (500, 500, 1000, Action.LIVE),
        (500, 515, 1000, Action.LIVE),
        (500, 516, 1000, Action.RESTORE),
        (999, 1000, 1000, Action.LIVE),  # covers it but for the token that makes the logits: never restored
        (1000, 1000, 1000, Action.LIVE),
        (990, 1000, 1000, Action.LIVE),
    ],
)
def test_where_a_prompt_goes_on(saved: int, stored: int, n_prompt: int, expected: Action) -> None:
    assert decide(saved, stored, n_prompt, min_gain=16) is expected


@given(st.integers(1, 40), st.integers(0, 12))
def test_the_window_is_the_one_that_llama_cpp_masks_by(resume: int, n_swa: int) -> None:
    attended = [p for p in range(resume + 1) if n_swa == 0 or resume - p < n_swa]
    assert first_needed(resume, n_swa) == min([*attended, resume]) if n_swa else first_needed(resume, 0) == 0


@given(st.integers(0, 60), st.integers(1, 60), st.integers(1, 60), st.integers(1, 16))
def test_a_context_that_upstream_keeps_is_kept_here(pos_min: int, common: int, n_prompt: int, n_swa: int) -> None:
    common = min(common, n_prompt)
    context = Live(common, common, pos_min, max(pos_min, common - 1), False)
    resume = min(common, n_prompt - 1)
    if resume and not upstream_searches(pos_min, resume, n_swa, common, n_prompt):
        assert live_resume(context, n_prompt, n_swa) == resume


@pytest.mark.parametrize(
    ("pos_min", "n_past", "before", "now"),
    [
        (487, 1000, True, False),  # what b9509 changed: new tokens after the prefix, window just reaches
        (488, 1000, True, True),
        (486, 1000, False, False),
        (487, 1100, True, True),  # nothing new: one token is evaluated again, one row more is needed
        (0, 1000, False, False),
    ],
)
def test_the_rule_of_b9509(pos_min: int, n_past: int, before: bool, now: bool) -> None:
    for expected, old in ((before, True), (now, False)):
        assert upstream_searches(pos_min, 1000, SWA, n_past, 1100, before_b9509=old) is expected
