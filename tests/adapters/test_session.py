"""What a session restores, refuses and survives, on real models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from kvtier import Store
from tests.adapters import engine
from tests.adapters.engine import GEMMA, GEMMA_FULL, SMOL, SMOL_PLAIN, Setup

if TYPE_CHECKING:
    from llama_cpp import Llama

pytest.importorskip("llama_cpp")

from kvtier_adapters.llama_cpp import LlamaSession, Options

pytestmark = pytest.mark.model

Models = Callable[[Setup], "Llama"]


@pytest.mark.parametrize("setup", [SMOL, SMOL_PLAIN, GEMMA], ids=str)
@pytest.mark.parametrize("length", [1, 255, 256, 300])
def test_a_prefix_of_any_length_is_restored_to_the_token(
    setup: Setup, length: int, model: Models, store: Store
) -> None:
    llm = model(setup)
    prompt = engine.prompt(llm, length + 40)
    engine.stored(llm, store, prompt[:length], restore_min_tokens=1)
    engine.evaluate(llm, prompt[:length])
    expected = engine.next_token(llm, prompt[length:])
    engine.fresh(llm)
    session = LlamaSession(llm, store, Options(restore_min_tokens=1))
    assert session.stored_tokens(prompt) == length
    assert session.position(prompt) == length == llm.n_tokens
    assert engine.next_token(llm, prompt[length:]) == expected
    assert session.stats.as_dict()["errors"] == {}


@pytest.mark.parametrize("setup", [SMOL, GEMMA], ids=str)
def test_a_prompt_that_is_stored_whole_leaves_one_token_to_evaluate(setup: Setup, model: Models, store: Store) -> None:
    llm = model(setup)
    prompt = engine.prompt(llm, 600)
    engine.evaluate(llm, prompt[:-1])
    expected = engine.next_token(llm, prompt[-1:])
    engine.fresh(llm)
    session = engine.stored(llm, store, prompt)
    assert session.position(prompt) == 599
    assert engine.next_token(llm, prompt[-1:]) == expected
    assert session.restore([*prompt, 5]) == 600


@pytest.mark.parametrize("setup", [SMOL, GEMMA], ids=str)
def test_capture_writes_each_row_once(setup: Setup, model: Models, store: Store) -> None:
    llm = model(setup)
    prompt = engine.prompt(llm, 400)
    session = LlamaSession(llm, store)
    sizes = []
    for start in range(0, 400, 100):
        llm.eval(prompt[start : start + 100])
        session.capture()
        session.capture()
        sizes.append(session.stats.bytes_captured)
    turns = [b - a for a, b in zip([0, *sizes], sizes, strict=False)]
    assert max(turns) <= 1.02 * min(turns)
    engine.fresh(llm)
    engine.evaluate(llm, prompt)
    again = LlamaSession(llm, store)
    again.capture()
    assert again.stats.bytes_captured == 0


def test_window_rows_are_written_once_too(model: Models, store: Store) -> None:
    llm = model(GEMMA)
    prompt = engine.prompt(llm, 700)
    session = LlamaSession(llm, store)
    engine.evaluate(llm, prompt[:600])
    session.capture(checkpoint=True)
    row = engine.WINDOW_ROW_BYTES["gemma3"]
    first = session.stats.checkpoint_bytes
    assert 512 * row < first <= 1.01 * 600 * row
    llm.eval(prompt[600:])
    session.capture(checkpoint=True)
    assert session.stats.checkpoint_bytes - first <= 1.01 * 100 * row
    engine.fresh(llm)
    again = LlamaSession(llm, store)
    assert again.stored_tokens(prompt) == 700
    assert again.stored_tokens(prompt[:650]) == 600


def test_only_what_is_not_live_is_read(model: Models, store: Store) -> None:
    llm = model(SMOL)
    prompt = engine.prompt(llm, 700)
    session = engine.stored(llm, store, prompt)
    assert session.position(prompt) == 699
    whole = session.stats.bytes_restored
    llm.eval(prompt[699:])
    llm.n_tokens = 520  # as if another conversation had left the first blocks
    llm._ctx.kv_cache_seq_rm(-1, 520, -1)
    assert session.position(prompt) == 699
    assert session.stats.bytes_restored - whole < 0.3 * whole
    expected = engine.next_token(llm, prompt[699:])
    engine.fresh(llm)
    engine.evaluate(llm, prompt[:699])
    assert engine.next_token(llm, prompt[699:]) == expected


def test_behind_a_window_rows_that_are_live_are_not_read_again(model: Models, store: Store) -> None:
    llm = model(GEMMA)
    shared = engine.prompt(llm, 768)
    one, other = ([*shared, *engine.words(llm, text)] for text in (" One ends like this." * 40, " The other so." * 40))
    session = engine.stored(llm, store, one, reproducible=True)
    assert session.position(one) == len(one) - 1
    whole = session.stats.bytes_restored
    expected = engine.next_token(llm, one[-1:])
    engine.evaluate(engine.fresh(llm), other)
    assert session.position(one) == len(one) - 1
    read = session.stats.bytes_restored - whole
    saved = session.explain(one).bytes_to_read - read
    assert saved == pytest.approx(768 * engine.ROW_BYTES["gemma3"], rel=0.01)
    assert engine.next_token(llm, one[-1:]) == expected


def test_a_live_context_that_covers_the_prompt_is_never_restored(model: Models, store: Store) -> None:
    llm = model(SMOL)
    prompt = engine.prompt(llm, 300)
    session = engine.stored(llm, store, prompt)
    engine.evaluate(llm, prompt)
    llm.eval([7])
    assert session.position([*prompt, 7]) == 301, "its logits are ready to sample from"
    for shorter in (300, 290, 260):
        assert session.position(prompt[:shorter]) == shorter - 1 == llm.n_tokens
    assert (session.stats.restores_avoided, session.stats.bytes_restored) == (4, 0)


def test_two_conversations_take_turns(model: Models, store: Store) -> None:
    llm = model(GEMMA)
    a, b = engine.prompt(llm, 600), engine.prompt(llm, 580, skip=2000)
    session = LlamaSession(llm, store)
    for turn in range(3):
        for tokens in (a, b):
            held = session.position(tokens)
            if turn == 0:
                assert held <= 1, "nothing in common but the first token"
                engine.evaluate(engine.fresh(llm), tokens)
            else:
                assert held == len(tokens) - 1
                llm.eval(tokens[held:])
    assert (session.stats.restores, session.stats.errors) == (4, {})


def test_an_old_turn_of_a_sliding_window_is_not_truncated_to(model: Models, store: Store) -> None:
    """``Llama.generate`` would remove the later rows and go on without the window's."""
    llm = model(GEMMA)
    old, longer = engine.prompt(llm, 200), engine.prompt(llm, 1000)
    other = [*old, *engine.words(llm, " Something else altogether, which was never said before.")]
    engine.evaluate(llm, old)
    expected = engine.next_token(llm, other[200:])
    engine.fresh(llm)

    session = LlamaSession(llm, store)
    engine.evaluate(llm, longer)
    assert session._to is not None
    assert session._to.native.pos_min > 0, "the test needs a window that has moved on"
    assert session.position(other) == 0  # nothing stored back there, nothing live: from zero
    assert engine.next_token(llm, other) is not None
    engine.fresh(llm)

    session = engine.stored(llm, store, old)
    engine.evaluate(llm, longer)
    assert session.position(other) == 200
    assert session.stats.restores == 1
    assert engine.next_token(llm, other[200:]) == expected


def test_state_of_one_window_size_in_memory_serves_the_other(model: Models, store: Store) -> None:
    """``swa_full`` is not part of the fingerprint: the rows are the same."""
    full = model(GEMMA_FULL)
    prompt = engine.prompt(full, 700)
    engine.evaluate(full, prompt[:-1])
    expected = engine.next_token(full, prompt[-1:])
    engine.fresh(full)
    engine.stored(full, store, prompt)
    llm = model(GEMMA)
    session = LlamaSession(llm, store)
    assert session.position(prompt) == 699
    assert engine.next_token(llm, prompt[-1:]) == expected


def test_a_long_prompt_beyond_the_window_needs_its_checkpoint(model: Models, store: Store) -> None:
    llm = model(GEMMA)
    prompt = engine.prompt(llm, 700)
    session = LlamaSession(llm, store)
    engine.evaluate(llm, prompt)
    session.capture(checkpoint=False)
    engine.fresh(llm)
    assert session.position(prompt) == 0
    assert session.stats.misses == {"no checkpoint": 1}
