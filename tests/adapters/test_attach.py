"""``attach``: the same answers through every way of asking a ``Llama``, and nothing left behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from kvtier import Store
from tests.adapters import engine
from tests.adapters.engine import GEMMA, SMOL, Setup

if TYPE_CHECKING:
    from llama_cpp import Llama

pytest.importorskip("llama_cpp")

from kvtier_adapters.llama_cpp import StoreCache, StoredState, attach

pytestmark = pytest.mark.model

Models = Callable[[Setup], "Llama"]
SYSTEM = "You are a careful assistant who answers briefly. " * 8


def complete(llm: Llama, text: str, **options: Any) -> str:
    answer = cast(Any, llm.create_completion(text, temperature=0.0, max_tokens=12, **options))
    if options.get("stream"):
        return "".join(chunk["choices"][0]["text"] for chunk in answer)
    return str(answer["choices"][0]["text"])


def chat(llm: Llama, *said: str) -> str:
    roles = ["system", *(("user", "assistant") * len(said))]
    messages = [{"role": r, "content": c} for r, c in zip(roles, (SYSTEM, *said), strict=False)]
    answer = cast(Any, llm.create_chat_completion(cast(Any, messages), temperature=0.0, max_tokens=12))
    return str(answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_completions_are_those_of_the_bare_model(stream: bool, model: Models, store: Store) -> None:
    llm = model(SMOL)
    expected = complete(llm, SYSTEM + "The sky is", stream=stream)
    engine.fresh(llm)
    with attach(llm, store) as attached:
        assert complete(llm, SYSTEM + "The sky is", stream=stream) == expected
        evaluated = attached.stats.tokens_evaluated
    engine.fresh(llm)
    with attach(llm, store) as attached:
        complete(llm, SYSTEM + "The sky is", stream=stream)
        assert attached.stats.tokens_restored > 70
        assert attached.stats.tokens_evaluated <= 12 < evaluated
        assert attached.stats.errors == {}


@pytest.mark.parametrize("setup", [SMOL, GEMMA], ids=str)
def test_a_chat_goes_on_after_a_restart(setup: Setup, model: Models, store: Store) -> None:
    llm = model(setup)
    with attach(llm, store, reproducible=True):
        first = chat(llm, "Name a colour.")
        expected = chat(llm, "Name a colour.", first, "Another one?")
    engine.fresh(llm)
    with attach(llm, store, reproducible=True) as attached:
        assert chat(llm, "Name a colour.", first, "Another one?") == expected
        assert attached.stats.restores == 1
        assert attached.stats.tokens_evaluated <= 12 < 90 < attached.stats.tokens_restored
    engine.fresh(llm)
    with attach(llm, store, reproducible=True) as attached:
        assert chat(llm, "Name a colour.") == first
        assert attached.stats.restores == 1


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_an_abandoned_stream_leaves_what_it_evaluated(taken: int, model: Models, store: Store) -> None:
    llm = model(SMOL)
    with attach(llm, store) as attached:
        stream = cast("Iterator[Any]", llm.create_completion(SYSTEM, temperature=0.0, max_tokens=20, stream=True))
        for _ in range(taken):
            next(stream)
        evaluated = attached.stats.tokens_evaluated
        del stream
        gc.collect()
        assert attached.session.stored_tokens(llm._input_ids) == (evaluated if taken else 0)
        assert attached.stats.errors == {}


def test_a_stream_closed_late_does_not_disturb_the_next_prompt(model: Models, store: Store) -> None:
    llm = model(SMOL)
    a, b = engine.prompt(llm, 300), engine.prompt(llm, 280, skip=3000)
    with attach(llm, store) as attached:
        stale, current = llm.generate(a, temp=0.0), llm.generate(b, temp=0.0)
        next(stale)
        next(current)
        before = attached.stats.as_dict()
        stale.close()
        assert attached.stats.as_dict() == before, "what it would store is not its own"
        assert attached.session.stored_tokens(a) == 300, "stored when b took the context over"
        current.close()
        assert attached.session.stored_tokens(b) == 280


def test_a_long_prompt_is_captured_on_the_way(model: Models, store: Store) -> None:
    """An interrupted document goes on at the last checkpoint."""
    llm = model(GEMMA)
    prompt = engine.prompt(llm, 900)
    original = llm._ctx.decode
    seen: list[int] = []

    def decode(batch: Any) -> None:
        if len(seen) == 3:
            assert attached.session.stored_tokens(prompt) == 768
            raise RuntimeError("power cut")
        seen.append(batch.n_tokens())
        original(batch)

    with attach(llm, store, checkpoint_tokens=256) as attached:
        llm._ctx.decode = decode  # type: ignore[method-assign]
        try:
            with pytest.raises(RuntimeError, match="power cut"):
                engine.greedy(llm, prompt, 1)
        finally:
            llm._ctx.decode = original  # type: ignore[method-assign]
    assert seen == [256, 256, 256]
    engine.fresh(llm)
    with attach(llm, store, checkpoint_tokens=256) as attached:
        engine.greedy(llm, prompt, 1)
        assert attached.stats.tokens_evaluated == 900 - 768


def test_the_batches_are_those_of_the_bare_model(model: Models, store: Store) -> None:
    """Segments for capture must not change the batch boundaries, or outputs would."""
    llm = model(SMOL)
    prompt = engine.prompt(llm, 900)
    expected = engine.greedy(llm, prompt, 8)
    engine.fresh(llm)
    with attach(llm, store, checkpoint_tokens=300):
        assert engine.greedy(llm, prompt, 8) == expected


def test_saved_states_are_light_and_come_back(model: Models, store: Store) -> None:
    llm = model(SMOL)
    a, b = engine.prompt(llm, 300), engine.prompt(llm, 200, skip=3000)
    with attach(llm, store) as attached:
        engine.evaluate(llm, a)
        state = llm.save_state()
        assert isinstance(state, StoredState)
        assert (state.llama_state, state.scores.nbytes, state.n_tokens) == (b"", 0, 300)
        engine.fresh(llm)
        engine.evaluate(llm, b)
        evaluated = attached.stats.tokens_evaluated
        llm.load_state(state)
        assert llm._input_ids.tolist() == a
        assert attached.stats.tokens_evaluated == evaluated
        assert attached.session.stored_tokens(b) == 200, "what was there was saved first"
    engine.fresh(llm)
    with engine.in_ram() as empty, attach(llm, empty) as attached:
        llm.load_state(state)  # nothing stored here: it is evaluated
        assert llm._input_ids.tolist() == a
        assert attached.stats.tokens_evaluated == 300


def test_a_state_of_the_bare_model_still_loads(model: Models, store: Store) -> None:
    llm = model(SMOL)
    prompt = engine.prompt(llm, 100)
    llm.eval(prompt)
    state = llm.save_state()
    engine.fresh(llm)
    with attach(llm, store):
        llm.load_state(state)
        assert llm._input_ids.tolist() == prompt


def test_detaching_gives_everything_back(model: Models, store: Store) -> None:
    llm = model(SMOL)
    mine: list[Any] = []
    before = dict(vars(llm))
    setattr(llm, "eval", mine.append)  # noqa: B010
    attached = attach(llm, store)
    assert isinstance(llm.cache, StoreCache)
    with pytest.raises(ValueError, match="attached already"):
        attach(llm, store)
    attached.detach()
    attached.detach()
    assert llm.eval == mine.append
    del llm.eval
    after = dict(vars(llm))
    assert after.keys() == before.keys()
    assert all(after[k] is before[k] for k in before if not isinstance(before[k], np.ndarray))
    assert engine.greedy(llm, engine.prompt(llm, 20), 2)
    assert attached.stats.prompts == 0


def test_a_cache_set_later_is_left_alone(model: Models, store: Store) -> None:
    from llama_cpp.llama_cache import LlamaRAMCache

    llm = model(SMOL)
    later = LlamaRAMCache()
    with attach(llm, store):
        llm.set_cache(later)
        complete(llm, "One, two, three")
        complete(llm, "One, two, three")
    assert llm.cache is later
    llm.set_cache(None)


def test_an_attached_model_is_freed_like_any_other(store: Store) -> None:
    llm = engine.load(SMOL, n_ctx=256)
    attached = attach(llm, store)
    engine.greedy(llm, [1, 2, 3], 2)
    gone = weakref.ref(llm)
    gc.disable()
    try:
        del llm
        assert gone() is None
    finally:
        gc.enable()
    attached.detach()


def test_a_refused_model_runs_as_if_nothing_were_attached(store: Store) -> None:
    with engine.loaded(SMOL, n_ctx=256, n_batch=64, logits_all=True) as llm:
        before = dict(vars(llm))
        attached = attach(llm, store)
        assert dict(vars(llm)).keys() == before.keys()
        assert attached.stats.refused.startswith("logits_all")
        attached.detach()


def test_a_failing_store_does_not_disturb_a_completion(model: Models) -> None:
    llm = model(SMOL)
    expected = complete(llm, SYSTEM)
    engine.fresh(llm)
    store = engine.in_ram()
    with attach(llm, store) as attached:
        store.close()
        assert complete(llm, SYSTEM) == expected
        assert attached.stats.errors["StoreClosed"] >= 2


def test_speculative_decoding_gives_the_same_answer(model: Models, store: Store) -> None:
    """Drafts that are evaluated and rejected never become stored rows of the conversation."""
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    llm = model(SMOL)
    prompt = engine.words(llm, "one two three four five six seven " * 12)
    with engine.loaded(SMOL, n_ctx=512, n_batch=512, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4)) as draft:
        expected = engine.greedy(draft, prompt, 24)
        engine.fresh(draft)
        with attach(draft, store) as attached:
            assert engine.greedy(draft, prompt, 24) == expected
            assert attached.session.stored_tokens([*prompt, *expected[:-1]]) == len(prompt) + 23
        engine.fresh(draft)
        with attach(draft, store) as attached:
            engine.greedy(draft, prompt, 24)
            assert attached.stats.tokens_restored == len(prompt) - 1
