"""Drafts: evaluated with the token before them, and taken back where the model decides otherwise.

``Llama`` takes them back by counting fewer tokens, which recurrent layers do not hear of. Attached, the answers are
those without drafts, and what is stored has none that were refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from kvtier import Store
from tests import tiny_models
from tests.adapters import engine
from tests.adapters.engine import GEMMA, GEMMA_FULL, SMOL, Setup

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

import llama_cpp
from llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding

from kvtier_adapters.llama_cpp import attach

if TYPE_CHECKING:
    from llama_cpp import Llama

Ids = npt.NDArray[np.intc]
ANSWER = 40
REPEATED = [1, *(b"one two three four five six seven eight nine ten " * 6)]
#: Those whose last tokens cannot be dropped by counting fewer.
RECURRENT = {"mamba", "jamba", "lfm2-swa"}
#: Those that go on at a checkpoint, of which there is one 4 tokens before a prompt's end.
SNAPSHOTS = {*RECURRENT, "deepseek32"}
KINDS = ["gqa", "gemma3", *sorted(SNAPSHOTS)]


class Recorded(LlamaDraftModel):
    """Another draft model, whose drafts are written down."""

    def __init__(self, inner: LlamaDraftModel) -> None:
        self.inner = inner
        self.drafts: list[tuple[int, list[int]]] = []

    def __call__(self, input_ids: Ids, /, **kwargs: Any) -> Ids:
        draft = self.inner(input_ids, **kwargs)
        self.drafts.append((len(input_ids), [int(token) for token in draft]))
        return draft

    def refused(self, text: list[int]) -> Iterator[tuple[list[int], int]]:
        """What was in the context with each draft that was refused, and how much of it was right: of ``text``."""
        for start, draft in self.drafts:
            end = start + self._right(start, draft, text)
            if end < min(start + len(draft), len(text)):
                yield [*text[:start], *draft], end

    def accepted(self, text: list[int]) -> int:
        """How many tokens of ``text`` were drafted."""
        return sum(self._right(start, draft, text) for start, draft in self.drafts)

    @staticmethod
    def _right(start: int, draft: list[int], text: list[int]) -> int:
        said = text[start : start + len(draft)]
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(said, draft, strict=False)))


class Known(LlamaDraftModel):
    """Drafts the next four tokens of a known text."""

    def __init__(self, text: list[int]) -> None:
        self.text = text

    def __call__(self, input_ids: Ids, /, **kwargs: Any) -> Ids:
        return np.array(self.text[len(input_ids) : len(input_ids) + 4], dtype=np.intc)


class Spoiled(LlamaDraftModel):
    """Another draft model, of whose every other draft all tokens from the third on are wrong."""

    def __init__(self, inner: LlamaDraftModel) -> None:
        self.inner = inner
        self.calls = 0

    def __call__(self, input_ids: Ids, /, **kwargs: Any) -> Ids:
        draft = self.inner(input_ids, **kwargs).copy()
        self.calls += 1
        if self.calls % 2:
            draft[2:] ^= 1
        return draft


def load(name: str, draft_model: LlamaDraftModel | None = None) -> Llama:
    """A tiny model; with a draft model, ``Llama`` keeps the logits of ``n_batch`` positions and no more."""
    return llama_cpp.Llama(
        str(tiny_models.path(name)),
        n_ctx=512,
        n_batch=512,
        n_ubatch=128,
        n_threads=1,
        n_threads_batch=1,
        swa_full=False,
        verbose=False,
        draft_model=draft_model,
    )


@pytest.fixture
def tiny() -> Iterator[Callable[..., Llama]]:
    opened: list[Llama] = []

    def get(name: str, draft_model: LlamaDraftModel | None = None) -> Llama:
        opened.append(load(name, draft_model))
        return opened[-1]

    yield get
    for llm in opened:
        llm.close()


@pytest.mark.parametrize("drafter", ["lookup", "known"])
@pytest.mark.parametrize("name", KINDS)
def test_answers_are_those_without_drafts(name: str, drafter: str, tiny: Callable[..., Llama], store: Store) -> None:
    plain = tiny(name)
    answer = engine.greedy(plain, REPEATED, ANSWER)
    text = [*REPEATED, *answer]
    more = [*text, *b" and then"]
    next_answer = engine.greedy(engine.fresh(plain), more, 10)

    drafts = Recorded(Spoiled(Known(text)) if drafter == "known" else LlamaPromptLookupDecoding(num_pred_tokens=6))
    llm = tiny(name, drafts)
    with attach(llm, store, restore_min_tokens=1, block_tokens=4) as attached:
        assert attached.stats.refused == ""
        assert engine.greedy(llm, REPEATED, ANSWER) == answer
        refused = list(drafts.refused(text))
        assert len(refused) >= 4
        assert drafter == "lookup" or drafts.accepted(text) >= 4
        assert (attached.stats.mended > 0) == (name in RECURRENT)
        for with_draft, right in refused:
            assert attached.session.stored_tokens(with_draft) <= right, "a refused token is stored"
        undecided = llm._input_ids.tolist()
        assert attached.session.stored_tokens(undecided) < len(text), "a draft that nothing was decided on is stored"
        assert engine.greedy(llm, more, 10) == next_answer
        assert attached.stats.errors == {}

    engine.fresh(llm)
    with attach(llm, store, restore_min_tokens=1, block_tokens=4) as attached:
        assert engine.greedy(llm, REPEATED, ANSWER) == answer
        assert attached.stats.tokens_restored == len(REPEATED) - (4 if name in SNAPSHOTS else 1)
        assert attached.stats.errors == {}


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_without_kvtier_a_refused_draft_ends_the_answer(name: str, tiny: Callable[..., Llama]) -> None:
    """What the test above is about: ``Llama`` goes on from a state that has taken the draft in."""
    llm = tiny(name, Spoiled(Known([*REPEATED, *engine.greedy(tiny(name), REPEATED, ANSWER)])))
    with pytest.raises(RuntimeError, match="llama_decode returned -1"):
        engine.greedy(llm, REPEATED, ANSWER)


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_only_what_followed_the_last_certain_token_is_evaluated_again(
    name: str, tiny: Callable[..., Llama], store: Store
) -> None:
    answer = engine.greedy(tiny(name), REPEATED, ANSWER)
    drafts = Recorded(Spoiled(Known([*REPEATED, *answer])))
    llm = tiny(name, drafts)
    with attach(llm, store) as attached:
        engine.greedy(llm, REPEATED, ANSWER)
        drafted = sum(len(draft) + 1 for _, draft in drafts.drafts)
        assert attached.stats.mended == len(list(drafts.refused([*REPEATED, *answer])))
        again = attached.stats.tokens_evaluated - len(REPEATED) - drafted
        assert again <= 3 * attached.stats.mended, "the token before a draft, and the two of it that were right"
        assert attached.stats.restores == 0


@pytest.mark.model
@pytest.mark.parametrize("setup", [SMOL, GEMMA, GEMMA_FULL], ids=str)
def test_real_models(setup: Setup, store: Store) -> None:
    """As without a store, but with the same drafts: how many tokens are evaluated together shows in the logits, by how
    much depends on the processor."""

    def drafting(llm: Llama) -> Recorded:
        llm.draft_model = Recorded(Spoiled(LlamaPromptLookupDecoding(num_pred_tokens=5)))
        return llm.draft_model

    with engine.loaded(setup, n_ctx=64, n_batch=64, draft_model=LlamaPromptLookupDecoding()) as llm:
        prompt = engine.words(llm, " one two three four five six seven" * 5)
        drafting(llm)
        llm.eval(prompt[:-1])
        answer = engine.greedy(llm, prompt[-1:], 16, reset=False)
        text = [*prompt, *answer]
        engine.fresh(llm)
        drafts = drafting(llm)
        with attach(llm, store, reproducible=True) as attached:
            assert engine.greedy(llm, prompt, 16) == answer
            refused = list(drafts.refused(text))
            assert len(refused) >= 1
            assert drafts.accepted(text) >= 4
            assert attached.session.stored_tokens(text) == len(text) - 1
            for with_draft, right in refused:
                assert attached.session.stored_tokens(with_draft) <= right
            assert attached.stats.errors == {}
        engine.fresh(llm)
        drafting(llm)
        with attach(llm, store, reproducible=True) as attached:
            assert engine.greedy(llm, prompt, 16) == answer
            assert attached.stats.tokens_restored == len(prompt) - 1


@pytest.mark.parametrize("drafting", [True, False], ids=["drafts", "no drafts"])
def test_logits_of_all_tokens_are_refused_unless_they_are_for_drafts(drafting: bool, store: Store) -> None:
    """A draft model makes ``Llama`` keep them; asked for otherwise, they are wanted of restored tokens as well."""
    draft_model = LlamaPromptLookupDecoding() if drafting else None
    path = str(tiny_models.path("gqa"))
    llm = llama_cpp.Llama(path, n_ctx=256, n_batch=256, verbose=False, logits_all=not drafting, draft_model=draft_model)
    with attach(llm, store) as attached:
        reason = "" if drafting else "logits_all: a restored prefix has no logits"
        assert (llm._logits_all, attached.stats.refused) == (True, reason)
    llm.close()
