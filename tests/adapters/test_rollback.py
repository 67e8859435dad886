"""``Llama`` goes back by counting fewer tokens, and on by evaluating: attached, never with rows or a state missing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from kvtier import Store
from tests import models, tiny_models
from tests.adapters import engine, tiny_llama
from tests.adapters.engine import GEMMA

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

import llama_cpp

from kvtier_adapters.llama_cpp import LlamaSession, Options, attach
from kvtier_adapters.llama_cpp.binding import as_tokens
from kvtier_adapters.llama_cpp.native import SequenceState

if TYPE_CHECKING:
    from llama_cpp import Llama

Logits = npt.NDArray[np.float32]
Models = Callable[[str], "Llama"]

KINDS = ["gqa", "gemma3", "mamba", "jamba", "lfm2-swa", "deepseek32"]
RECURRENT = {"mamba", "jamba", "lfm2-swa"}
LENGTH, BACK = 600, 300
TEXT = [1, *(models.ROOT / "LICENSE").read_bytes()[: LENGTH - 1]]
MORE = list(b" And so on")
#: In a store without state: the model's hash and the catalogue of fingerprints.
MODEL_BLOCKS = 2


@pytest.fixture(scope="module")
def tiny() -> Iterator[Models]:
    """``tiny(name)``: a loaded model with an empty context and nothing attached."""
    kept: dict[str, Llama] = {}

    def get(name: str) -> Llama:
        if name not in kept:
            kept[name] = llama_cpp.Llama(
                str(tiny_models.path(name)),
                n_ctx=1024,
                n_batch=128,
                n_ubatch=128,
                n_threads=1,
                n_threads_batch=1,
                swa_full=False,
                verbose=False,
            )
        llm = engine.fresh(kept[name])
        assert "_kvtier_attachment" not in vars(llm), "the test before this one did not detach"
        return llm

    yield get
    for llm in kept.values():
        llm.close()


def logits(llm: Llama) -> Logits:
    """Those behind the last token."""
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), (llm.n_vocab(),)).copy()


def fresh_logits(llm: Llama, *evaluations: Sequence[int]) -> Logits:
    """What follows in a context that has evaluated nothing else. It is empty then."""
    engine.fresh(llm)
    for tokens in evaluations:
        llm.eval(list(tokens))
    found = logits(llm)
    engine.fresh(llm)
    return found


def decode_behind_its_back(llm: Llama, tokens: Sequence[int]) -> None:
    """What a multimodal handler does with an image: ``Llama`` hears how many positions it took, and no more."""
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for at, token in enumerate(tokens):
        batch.token[at], batch.pos[at], batch.logits[at] = token, llm.n_tokens + at, at == len(tokens) - 1
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
    assert llama_cpp.llama_decode(llm.ctx, batch) == 0
    llama_cpp.llama_batch_free(batch)
    llm.n_tokens += len(tokens)


@pytest.mark.parametrize("name", ["gemma3", *sorted(RECURRENT)])
def test_without_kvtier_the_logits_are_wrong_or_there_are_none(name: str, tiny: Models) -> None:
    """What the next tests are about."""
    llm = tiny(name)
    expected = fresh_logits(llm, TEXT[:BACK], MORE)
    llm.eval(TEXT)
    llm.n_tokens = BACK
    if name in RECURRENT:
        with pytest.raises(RuntimeError, match="llama_decode returned -1"):
            llm.eval(MORE)
    else:
        llm.eval(MORE)  # and nothing tells that rows of its window are missing
        assert np.abs(logits(llm) - expected).max() > 1


@pytest.mark.parametrize("name", KINDS)
def test_going_back_gives_the_logits_of_a_fresh_context(name: str, tiny: Models, store: Store) -> None:
    llm = tiny(name)
    expected = fresh_logits(llm, TEXT[:BACK], MORE)
    with attach(llm, store) as attached:
        llm.eval(TEXT)
        llm.n_tokens = BACK
        llm.eval(MORE)
        assert np.array_equal(logits(llm), expected)
        assert llm._input_ids.tolist() == [*TEXT[:BACK], *MORE]
        again = 0 if name == "gqa" else BACK
        assert attached.stats.mended == (again > 0)
        assert attached.stats.tokens_evaluated == LENGTH + again + len(MORE)
        assert attached.stats.errors == {}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_stored_is_not_evaluated_again(name: str, tiny: Models, store: Store) -> None:
    llm = tiny(name)
    expected = fresh_logits(llm, TEXT[:256], TEXT[256:BACK], MORE)
    with attach(llm, store) as attached:
        llm.eval(TEXT[:256])
        attached.session.capture(checkpoint=True)
        llm.eval(TEXT[256:])
        llm.n_tokens = BACK
        llm.eval(MORE)
        assert np.abs(logits(llm) - expected).max() < 0.1
        again = 0 if name == "gqa" else BACK - 256
        assert attached.stats.restores == (again > 0)
        assert attached.stats.tokens_evaluated == LENGTH + again + len(MORE)


def test_a_window_that_is_still_there_is_gone_on_in(tiny: Models, store: Store) -> None:
    """The ring has a batch more than the window: going back a little needs no mending."""
    llm = tiny("gemma3")
    expected = fresh_logits(llm, TEXT[: LENGTH - 20], MORE)
    with attach(llm, store) as attached:
        llm.eval(TEXT)
        llm.n_tokens = LENGTH - 20
        llm.eval(MORE)
        assert np.array_equal(logits(llm), expected)
        assert attached.stats.mended == 0


@pytest.mark.parametrize("name", KINDS)
def test_a_context_that_was_cleared_without_a_word_is_filled_again(name: str, tiny: Models, store: Store) -> None:
    llm = tiny(name)
    expected = fresh_logits(llm, TEXT[:BACK], MORE)
    with attach(llm, store) as attached:
        llm.eval(TEXT[:BACK])
        llm._ctx.kv_cache_clear()
        llm.eval(MORE)
        assert np.array_equal(logits(llm), expected)
        assert (attached.stats.mended, attached.stats.errors) == (1, {})


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_stored_of_a_context_that_could_not_be_mended(
    name: str, tiny: Models, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = tiny(name)
    with attach(llm, store) as attached:
        llm.eval(TEXT)
        llm.n_tokens = BACK
        with monkeypatch.context() as broken:
            broken.setattr(SequenceState, "pos_max", property(lambda self: 1 // 0))
            try:
                llm.eval(MORE)
            except RuntimeError:  # a recurrent memory: llama.cpp itself says no
                llm.n_tokens = BACK
        attached.session.capture(checkpoint=True)
        assert attached.stats.errors == {"ZeroDivisionError": 1}
        assert attached.session.stored_tokens([*TEXT[:BACK], *MORE]) == 0
        llm.reset()
        llm.eval(TEXT)
        attached.session.capture(checkpoint=True)
        assert attached.session.stored_tokens(TEXT) == LENGTH


@pytest.mark.parametrize("name", KINDS)
def test_a_reset_begins_anew(name: str, tiny: Models, store: Store) -> None:
    llm = tiny(name)
    expected = fresh_logits(llm, MORE)
    with attach(llm, store) as attached:
        llm.eval(TEXT[:BACK])
        llm.reset()
        llm.eval(MORE)
        assert np.array_equal(logits(llm), expected)
        assert attached.stats.mended == 0
        assert attached.session.held == len(MORE)


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_that_begins_like_the_last_one(name: str, tiny: Models, store: Store) -> None:
    """``Llama.generate`` drops the rest of what it holds, and believes that what it keeps is whole."""
    llm = tiny(name)
    prompt = [*TEXT[:BACK], *MORE]
    expected = engine.greedy(llm, prompt, 12)
    llm = tiny(name)
    with attach(llm, store) as attached:
        llm.eval(TEXT)
        assert engine.greedy(llm, prompt, 12) == expected
        assert attached.stats.errors == {}


@pytest.mark.model
def test_a_real_model(store: Store) -> None:
    with engine.loaded(GEMMA, n_batch=128, n_ubatch=128) as llm:
        tokens = engine.prompt(llm, 800)
        expected = fresh_logits(llm, tokens[:100], tokens[5:15])
        with attach(llm, store) as attached:
            llm.eval(tokens)
            llm.n_tokens = 100
            llm.eval(tokens[5:15])
            assert np.array_equal(logits(llm), expected)
            assert attached.stats.mended == 1


@pytest.mark.parametrize("name", KINDS)
def test_an_evaluation_that_fails_half_way_is_gone_on_from(
    name: str, tiny: Models, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = tiny(name)
    expected = fresh_logits(llm, TEXT[:256], MORE)
    decode = llm._ctx.decode
    decoded: list[int] = []

    def fails(batch: Any) -> None:
        if len(decoded) == 2:
            raise RuntimeError("power cut")
        decoded.append(batch.n_tokens())
        decode(batch)

    with attach(llm, store) as attached:
        with monkeypatch.context() as patch:
            patch.setattr(llm._ctx, "decode", fails)
            with pytest.raises(RuntimeError, match="power cut"):
                llm.eval(TEXT)
        assert decoded == [128, 128]
        assert not attached.session.foreign
        assert attached.session.held == 256 == attached.stats.tokens_evaluated
        llm.eval(MORE)
        assert np.array_equal(logits(llm), expected)
        assert attached.stats.mended == 0


@pytest.mark.parametrize("name", KINDS)
def test_what_was_not_seen_evaluated_is_left_alone(name: str, tiny: Models, store: Store) -> None:
    llm = tiny(name)
    image = list(b"an image is no text")
    expected = fresh_logits(llm, TEXT[:50], image, MORE)
    with attach(llm, store) as attached:
        llm.eval(TEXT[:50])
        decode_behind_its_back(llm, image)
        assert attached.session.foreign
        llm.eval(MORE)
        assert np.array_equal(logits(llm), expected)
        prompt = llm._input_ids.tolist()  # for the image: whatever was there
        answer = engine.greedy(llm, prompt, 6)
        attached.session.capture(checkpoint=True)
        assert attached.stats.mended == 0
    assert store.stats().blocks == MODEL_BLOCKS
    llm = tiny(name)
    llm.eval(TEXT[:50])
    decode_behind_its_back(llm, image)
    llm.eval(MORE)
    assert engine.greedy(llm, llm._input_ids.tolist(), 6) == answer


@pytest.mark.parametrize("name", KINDS)
def test_after_a_reset_it_is_stored_again(name: str, tiny: Models, store: Store) -> None:
    llm = tiny(name)
    expected = engine.greedy(llm, TEXT[:BACK], 6)
    llm = tiny(name)
    with attach(llm, store, restore_min_tokens=1) as attached:
        llm.eval(MORE * 3)
        engine.fresh(llm)
        decode_behind_its_back(llm, list(b"an image comes first"))
        assert attached.session.foreign
        llm.reset()
        assert engine.greedy(llm, TEXT[:BACK], 6) == expected
        assert attached.stats.errors == {}
    llm = tiny(name)
    with attach(llm, store, restore_min_tokens=1) as attached:
        assert engine.greedy(llm, TEXT[:BACK], 6) == expected
        assert attached.stats.tokens_restored >= BACK - 4


class Multimodal:
    """As the chat handlers of ``llama_cpp`` that take images."""

    clip_model_path = "mmproj.gguf"

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError


def _as_the_server_wraps(handler: Callable[..., Any], settings: Any) -> Callable[..., Any]:
    def chat_handler_with_kwargs(*args: Any, **kwargs: Any) -> Any:
        return handler(*args, **{**settings.chat_template_kwargs, **kwargs})

    return chat_handler_with_kwargs


class Settings:
    """``llama_cpp.server``'s have this field for every model."""

    clip_model_path = None
    chat_template_kwargs = MappingProxyType({"enable_thinking": False})


@pytest.mark.parametrize(
    "handler",
    [Multimodal(), functools.partial(Multimodal(), stream=True), _as_the_server_wraps(Multimodal(), Settings())],
    ids=["bare", "partial", "wrapped"],
)
def test_a_handler_of_images_is_refused(handler: Any, tiny: Models, store: Store) -> None:
    llm = tiny("gqa")
    llm.chat_handler = handler
    try:
        with attach(llm, store) as attached:
            assert attached.stats.refused == "multimodal chat handler"
    finally:
        llm.chat_handler = None


def test_a_handler_of_text_is_not(tiny: Models, store: Store) -> None:
    def of_text(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    llm = tiny("gqa")
    llm.chat_handler = _as_the_server_wraps(of_text, Settings())
    try:
        with attach(llm, store) as attached:
            assert attached.stats.refused == ""
    finally:
        llm.chat_handler = None


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_a_state_from_before_drafts_serves_its_own_tokens_only(name: str, store: Store) -> None:
    with tiny_llama.loaded(name) as llm:
        first, other = engine.prompt(llm, 300), engine.prompt(llm, 300, skip=900)
        engine.fresh(llm).eval(other[:200])
        llm.eval([9])
        expected = logits(llm)
        engine.fresh(llm)
        with attach(llm, store, restore_min_tokens=1000) as attached:  # nothing is brought back from the store
            llm.eval(first[:100])
            attached.session.before_drafts()
            llm.eval(other[:300])
            llm.reset()
            llm.eval(other)
            llm.n_tokens = 200  # refused, as it were: the state of the first 100 of `first` is of no use
            llm.eval([9])
            assert attached.stats.mended == 1
            np.testing.assert_allclose(logits(llm), expected, atol=1e-3)


@pytest.mark.parametrize("name", ["jamba", "mamba", "lfm2-swa", "qwen4exp"])
def test_a_checkpoint_of_a_shorter_context_is_never_taken_for_that_of_a_longer_one(name: str, store: Store) -> None:
    with tiny_llama.loaded(name) as llm:
        prompt = engine.prompt(llm, 300)
        session = LlamaSession(llm, store, Options(restore_min_tokens=1, reproducible=True))
        llm.eval(prompt)
        session.capture(checkpoint=True)
        memory = session.stats.memory
        llm.eval([5])
        expected = logits(llm)
        engine.fresh(llm)
        llm.eval(prompt[:100])
        session.capture(checkpoint=True)
        assert (session.stats.memory, session.stats.errors) == (memory, {})
        engine.fresh(llm)
        assert session.stored_tokens(prompt[:101]) == 0
        assert session.position([*prompt, 5]) == 300
        llm.eval([5])
        np.testing.assert_array_equal(logits(llm), expected)


@pytest.mark.parametrize("swa_full", [True, False])
@pytest.mark.parametrize("name", ["gemma3", "lfm2-swa"])
def test_rows_of_a_window_that_two_pieces_have_are_restored_once(name: str, swa_full: bool, store: Store) -> None:
    """A prompt is stored up to 290 at once, and again from 280 on: its window rows are those of the first time."""
    with tiny_llama.loaded(name, swa_full=swa_full) as llm:
        prompt = engine.prompt(llm, 300)
        for start, end in ((0, 280), (280, 290), (290, 300)):
            llm.eval(prompt[start:end])
        expected = logits(llm)
        for ends in ((290,), (280, 290)):
            engine.fresh(llm)
            session = LlamaSession(llm, store, Options(restore_min_tokens=1, reproducible=True))
            for start, end in zip((0, *ends), ends, strict=False):
                llm.eval(prompt[start:end])
                session.capture(checkpoint=True)
        engine.fresh(llm)
        session = LlamaSession(llm, store, Options(restore_min_tokens=1, reproducible=True))
        assert session._to is not None
        plan = session._to.plan(session._to.keys(as_tokens(prompt[:290])), 290)
        assert plan is not None
        assert [(part.start, part.end) for part in plan.window][-2:] == [(256, 280), (256, 290)]
        assert session.restore(prompt[:290]) == 290
        llm.eval(prompt[290:])
        np.testing.assert_array_equal(logits(llm), expected)
