"""``Attachment.read``: its progress, what is durable by then, and what it does about a store that fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier import Config, Store
from tests import tiny_models
from tests.adapters import engine

if TYPE_CHECKING:
    from llama_cpp import Llama

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

import llama_cpp

from kvtier_adapters.llama_cpp import Options, Progress, attach
from kvtier_adapters.llama_cpp.placement import checkpoints_of

pytestmark = pytest.mark.model
LENGTH, STEP = 700, 128
KINDS = ["gqa", "gemma3", "mamba", "jamba"]  # attention, window, recurrent, hybrid


def load(name: str) -> Llama:
    path = str(tiny_models.path(name))
    return llama_cpp.Llama(
        path, n_ctx=1024, n_batch=STEP, n_threads=1, n_threads_batch=1, swa_full=False, verbose=False
    )


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest) -> Iterator[Llama]:
    llm = load(request.param)
    yield llm
    llm.close()


@pytest.fixture
def llm(loaded: Llama) -> Llama:
    return engine.fresh(loaded)


def logits(llm: Llama) -> list[float]:
    return list(llama_cpp.llama_get_logits_ith(llm.ctx, -1)[: llm.n_vocab()])


def options(**changes: Any) -> dict[str, Any]:
    return {"checkpoint_tokens": STEP, "reproducible": True, **changes}


def test_progress_grows_from_what_is_there_to_the_end(llm: Llama, store: Store) -> None:
    prompt, seen = engine.prompt(llm, LENGTH), list[Progress]()
    with attach(llm, store, **options()) as attached:
        assert attached.read(prompt, seen.append) == seen[-1] == Progress(LENGTH, LENGTH, 0)
        done = [now.done for now in seen]
        assert done[0] == 0
        assert all(0 < b - a <= 1.5 * STEP for a, b in pairwise(done))
        assert {(now.tokens, now.restored) for now in seen} == {(LENGTH, 0)}
        assert attached.stats.tokens_evaluated == LENGTH
        assert attached.stats.errors == {}

        more = [*prompt, *engine.words(llm, " and more")]
        assert attached.read(more) == Progress(len(more), len(more), LENGTH)
        assert attached.stats.tokens_evaluated == len(more)
        assert attached.read(prompt) == Progress(LENGTH, LENGTH, LENGTH), "live or stored, it is all there"
        assert attached.stats.tokens_evaluated == len(more)


def test_a_prompt_goes_on_behind_what_was_read(llm: Llama, store: Store) -> None:
    prompt, question = engine.prompt(llm, LENGTH), engine.words(llm, "\n\nWhat is a Contribution?")
    with attach(llm, store, **options()) as attached:
        attached.read(prompt)
        expected = engine.greedy(llm, [*prompt, *question], 8)
        assert attached.stats.tokens_evaluated == LENGTH + len(question) + 7
    engine.fresh(llm)
    with attach(llm, store, **options()) as attached:
        assert attached.read(prompt).restored == LENGTH
        assert engine.greedy(llm, [*prompt, *question], 8) == expected
        assert attached.stats.errors == {}


def test_a_document_that_was_read_is_a_prompt_like_any_other(llm: Llama, store: Store) -> None:
    """``reproducible``: evaluated in the same batches, it leaves the same logits."""
    prompt = engine.prompt(llm, LENGTH)
    with attach(llm, store, **options()) as attached:
        attached.read(prompt)
        expected = logits(llm)
    engine.fresh(llm)
    with attach(llm, store, **options()) as attached:
        engine.greedy(llm, prompt, 1)
        assert attached.stats.tokens_restored == LENGTH - 1
        assert logits(llm) == expected


@pytest.mark.parametrize("length", [0, 1])
def test_very_short_documents(llm: Llama, store: Store, length: int) -> None:
    with attach(llm, store, **options()) as attached:
        assert attached.read(engine.prompt(llm, length)) == Progress(length, length, 0)
        assert attached.stats.tokens_evaluated == length


def test_a_document_that_is_too_long_leaves_everything_alone(llm: Llama, store: Store) -> None:
    prompt = engine.prompt(llm, llm.n_ctx() + 1)
    with attach(llm, store, **options()) as attached:
        attached.read(prompt[:50])
        with pytest.raises(ValueError, match=r"1025 tokens in a context of 1024"):
            attached.read(prompt)
        assert (llm.n_tokens, attached.stats.tokens_evaluated) == (50, 50)


class Killed(Exception):
    """In place of a kill."""


def opened(folder: Path, queue: str) -> Store:
    """A store whose queue has room for so much, and that skips what does not fit; written in ``flush`` only."""
    sections: dict[str, Any] = {
        "store": {"path": folder, "value_bytes_max": "48KiB"},
        "write_behind": {"bytes_max": queue, "when_full": "skip"},
        "tier": [{"name": "disk", "kind": "ssd", "bytes_max": "1GiB"}],
    }
    return Store.open(Config.from_dict(sections), background=False)


@pytest.mark.parametrize("queue", ["48KiB", "64MiB"])
@pytest.mark.parametrize("block_tokens", [100, 256])
def test_what_is_reported_as_done_is_durable(llm: Llama, tmp_path: Path, queue: str, block_tokens: int) -> None:
    """As the callback sees it, each time: a copy of the folder has all that it was told of."""

    def copy(now: Progress) -> None:
        shutil.copytree(tmp_path / "store", tmp_path / str(now.done))
        reported.append(now.done)

    def stop(now: Progress) -> None:
        assert astuple(now) == (LENGTH, done, done)
        raise Killed

    prompt, reported = engine.prompt(llm, LENGTH), list[int]()
    chosen = options(block_tokens=block_tokens)
    with opened(tmp_path / "store", queue) as store, attach(llm, store, **chosen) as attached:
        attached.read(prompt, copy)
        assert attached.stats.errors == {}
        if "rows" in attached.stats.memory:
            assert bool(attached.stats.captures_skipped) == (queue == "48KiB")
    assert len(reported) > LENGTH // STEP
    for done in reported:
        engine.fresh(llm)
        with opened(tmp_path / str(done), queue) as store, attach(llm, store, **chosen) as attached:
            with pytest.raises(Killed):
                attached.read(prompt, stop)
            assert attached.stats.tokens_evaluated == 0


@pytest.mark.parametrize("after", [0, 2])
def test_a_store_that_fails_does_not_stop_reading(llm: Llama, store: Store, after: int) -> None:
    prompt, seen = engine.prompt(llm, LENGTH), list[Progress]()
    [expected] = engine.uninterrupted(llm, prompt, count=8)
    engine.fresh(llm)

    def close(now: Progress) -> None:
        seen.append(now)
        if len(seen) > after:
            store.close()

    with attach(llm, store, **options()) as attached:
        assert attached.read(prompt, close) == seen[-1] == Progress(LENGTH, LENGTH, 0)
        assert attached.stats.tokens_evaluated == LENGTH
        assert attached.stats.errors["StoreClosed"] > 0
        assert engine.greedy(llm, prompt, 8) == expected


@given(
    st.integers(2, 400),
    st.integers(1, 60),
    st.lists(st.integers(1, 400), max_size=4, unique=True).map(sorted),
    st.booleans(),
)
def test_segments_are_the_same_wherever_reading_goes_on(
    end: int, step: int, messages: list[int], steps_back: bool
) -> None:
    def after(start: int) -> list[int]:
        return checkpoints_of(start, end, messages, Options(), n_ubatch=30, step=step, steps_back=steps_back)

    whole = after(0)
    assert [after(position) for position in whole] == [whole[i + 1 :] for i in range(len(whole))]
