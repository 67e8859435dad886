"""The tiny models are what the tests that use them believe: their memory, and logits that show what is in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

import llama_cpp

from tests import tiny_models
from tests.adapters import engine

if TYPE_CHECKING:
    from llama_cpp import Llama

FULL, PARTIAL = 0, 1
PROMPT = 200
#: Logits have a deviation of about 3.
VISIBLE = 0.01


def load(name: str, **changes: Any) -> Llama:
    options = {"n_ctx": 1024, "n_batch": 128, "n_ubatch": 128, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    return llama_cpp.Llama(str(tiny_models.path(name)), **{**options, **changes})


@pytest.fixture(params=tiny_models.NAMES, scope="module")
def loaded(request: pytest.FixtureRequest) -> Iterator[tuple[tiny_models.Tiny, Llama]]:
    llm = load(request.param)
    yield tiny_models.MODELS[request.param], llm
    llm.close()


@pytest.fixture
def tiny(loaded: tuple[tiny_models.Tiny, Llama]) -> tiny_models.Tiny:
    return loaded[0]


@pytest.fixture
def llm(loaded: tuple[tiny_models.Tiny, Llama]) -> Llama:
    return engine.fresh(loaded[1])


def logits(llm: Llama, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """What follows ``tokens`` in an empty context."""
    engine.fresh(llm).eval(list(tokens))
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), (llm.n_vocab(),)).copy()


def state_sizes(llm: Llama, tokens: Sequence[int]) -> tuple[int, int]:
    """Bytes of the state after ``tokens``: all of it, and the windows and recurrent state alone if there are any."""
    engine.fresh(llm).eval(list(tokens))
    full, partial = (llama_cpp.llama_state_seq_get_size_ext(llm.ctx, 0, flags) for flags in (FULL, PARTIAL))
    return int(full), int(partial)


def test_llama_cpp_says_what_is_declared(tiny: tiny_models.Tiny, llm: Llama) -> None:
    assert llama_cpp.llama_model_is_recurrent(llm.model) == tiny.is_recurrent
    assert llama_cpp.llama_model_is_hybrid(llm.model) == tiny.is_hybrid
    assert llama_cpp.llama_model_n_swa(llm.model) == tiny.n_swa


def test_text_goes_through_the_tokenizer(llm: Llama) -> None:
    tokens = llm.tokenize("Grüße, two  lines\n".encode())
    assert tokens[0] == llm.token_bos() == 1
    assert llm.token_eos() == 2
    assert llm.detokenize(tokens) == "Grüße, two  lines\n".encode()


def test_logits_depend_on_the_first_tokens(llm: Llama) -> None:
    tokens = engine.prompt(llm, PROMPT)
    expected = logits(llm, tokens)
    assert np.isfinite(expected).all()
    for place in range(4):
        changed = [*tokens[:place], tokens[place] ^ 1, *tokens[place + 1 :]]
        assert np.abs(logits(llm, changed) - expected).max() > VISIBLE, f"token {place} is not seen"


def test_answers_are_the_same_in_another_context_and_not_one_token(tiny: tiny_models.Tiny, llm: Llama) -> None:
    tokens = engine.prompt(llm, PROMPT)
    answer = engine.greedy(llm, tokens, 16)
    with_another = load(tiny.name)
    assert engine.greedy(with_another, tokens, 16) == answer
    with_another.close()
    assert len(set(answer)) >= 4


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_the_state_has_the_parts_of_its_kind(name: str) -> None:
    llm, tiny = load(name, swa_full=False), tiny_models.MODELS[name]
    tokens = engine.prompt(llm, PROMPT)
    (full_before, _), (full, partial) = state_sizes(llm, tokens[: PROMPT // 2]), state_sizes(llm, tokens)
    llm.close()
    assert (full > full_before) == (tiny.kind != "recurrent")
    assert (partial < full) == bool(tiny.n_swa or tiny.is_hybrid)


@pytest.mark.parametrize("quantised", ["GGML_TYPE_Q8_0", "GGML_TYPE_Q4_0"])
@pytest.mark.parametrize("name", [n for n in tiny_models.NAMES if not tiny_models.MODELS[n].is_recurrent])
def test_k_and_v_may_be_quantised(name: str, quantised: str) -> None:
    kv_type = getattr(llama_cpp, quantised)
    llm = load(name, type_k=kv_type, type_v=kv_type, flash_attn=True)
    assert np.isfinite(logits(llm, engine.prompt(llm, PROMPT))).all()
    llm.close()


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_the_bytes_are_the_same_every_time(name: str, tmp_path: Path) -> None:
    again = tiny_models.write(name, tmp_path / "again.gguf")
    assert again.read_bytes() == tiny_models.path(name).read_bytes()


def test_a_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, target: Path) -> Path:
        target.write_bytes(b"GGUF")
        raise OSError("no space left")

    monkeypatch.setenv("KVTIER_MODEL_CACHE", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(tiny_models, "write", fails)
        with pytest.raises(OSError, match="no space left"):
            tiny_models.path("mha")
    assert list(tmp_path.iterdir()) == []
    file = tiny_models.path("mha")
    assert list(tmp_path.iterdir()) == [file]
    assert file.stat().st_size > 100_000
