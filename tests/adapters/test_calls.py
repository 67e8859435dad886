"""What a capture and a restore ask of llama.cpp and of the store, counted: the thread that generates waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from kvtier import PutOutcome, Store
from tests.adapters import engine
from tests.adapters.engine import GEMMA, GEMMA_FULL, SMOL, Setup

if TYPE_CHECKING:
    from llama_cpp import Llama

pytest.importorskip("llama_cpp")

import llama_cpp

from kvtier_adapters.llama_cpp import LlamaSession, state

pytestmark = pytest.mark.model

Models = Callable[[Setup], "Llama"]
BLOCK, LENGTH = 256, 1024
CP, RM = "llama_memory_seq_cp", "llama_memory_seq_rm"
SIZE, GET, SET = (f"llama_state_seq_{name}_ext" for name in ("get_size", "get_data", "set_data"))
OF_ENGINE = (CP, RM, SIZE, GET, SET)
OF_STORE = ("info", "info_many", "match", "contains", "put", "get", "get_many")


class Calls:
    """The calls since :meth:`begin`, in order, and the bytes that llama.cpp gave out."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.bytes_read = 0

    def begin(self) -> None:
        self.names.clear()
        self.bytes_read = 0

    def counts(self, *names: str) -> list[int]:
        return [self.names.count(name) for name in names]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    counted = Calls()

    def count(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            counted.names.append(name)
            outcome = inner(*args, **options)
            counted.bytes_read += outcome if name == GET else 0
            return outcome

        monkeypatch.setattr(owner, name, call)

    for name in OF_ENGINE:
        count(llama_cpp, name)
    for name in OF_STORE:
        count(Store, name)
    count(state, "parse")
    return counted


def turn(llm: Llama, store: Store, calls: Calls) -> LlamaSession:
    """Capture a first block, then three more in one turn, of which the calls are counted."""
    prompt = engine.prompt(llm, LENGTH)
    session = LlamaSession(llm, store)
    llm.eval(prompt[:BLOCK])
    session.capture(checkpoint=True)
    llm.eval(prompt[BLOCK:])
    stored = session.stats.bytes_captured + session.stats.checkpoint_bytes
    calls.begin()
    session.capture(checkpoint=True)
    stored = session.stats.bytes_captured + session.stats.checkpoint_bytes - stored
    assert (session.stats.errors, session.stats.captures_skipped) == ({}, 0)
    assert calls.bytes_read <= 1.01 * stored, "hardly more than what is stored"
    return session


def test_a_capture_asks_llama_cpp_once_a_block_and_the_store_once(model: Models, store: Store, calls: Calls) -> None:
    turn(model(SMOL), store, calls)
    assert calls.counts(CP, SIZE, GET, RM, SET) == [3, 3, 3, 3, 0]
    assert calls.counts("info_many", "put", "parse") == [1, 3, 3]
    assert len(calls.names) == 4 * 3 + 1 + 2 * 3


@pytest.mark.parametrize("setup", [GEMMA, GEMMA_FULL], ids=str)
def test_rows_and_window_of_a_block_are_read_at_once(setup: Setup, model: Models, store: Store, calls: Calls) -> None:
    """The last two of the three blocks are in the window of 512 tokens."""
    turn(model(setup), store, calls)
    assert calls.counts(CP, SIZE, GET, RM) == [3, 3, 3, 3]
    assert calls.counts(SET) == [1], "the window's cells of the first one are untagged"
    assert calls.counts("info_many", "put", "parse") == [1, 3 + 2, 3]


@pytest.mark.parametrize("setup", [SMOL, GEMMA], ids=str)
def test_all_is_taken_before_the_stores_worker_has_anything_to_do(
    setup: Setup, model: Models, store: Store, calls: Calls
) -> None:
    turn(model(setup), store, calls)
    first = calls.names.index("put")
    assert set(calls.names[first:]) == {"put"}


def test_a_store_that_takes_no_more_costs_one_block_at_a_time(
    model: Models, store: Store, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = model(SMOL)
    session = LlamaSession(llm, store)
    engine.evaluate(llm, engine.prompt(llm, LENGTH))
    with monkeypatch.context() as full:
        full.setattr(Store, "put", lambda *_, **__: PutOutcome.SKIPPED)
        taken = []
        for _ in range(2):
            calls.begin()
            session.capture(checkpoint=True)
            taken += calls.counts(GET)
    assert taken == [4, 1]
    session.capture(checkpoint=True)
    assert session.stored_tokens(llm.input_ids[:LENGTH]) == LENGTH
    assert session.stats.captures_skipped == 2


@pytest.mark.parametrize("setup", [SMOL, GEMMA], ids=str)
def test_a_capture_of_what_is_stored_asks_for_nothing(setup: Setup, model: Models, store: Store, calls: Calls) -> None:
    session = turn(model(setup), store, calls)
    calls.begin()
    session.capture(checkpoint=True)
    windows = int(setup is GEMMA)
    assert calls.names == ["info_many"] * windows


def test_a_restore_looks_up_many_keys_at_once_and_parses_each_block_once(
    model: Models, store: Store, calls: Calls
) -> None:
    llm = model(SMOL)
    session = turn(llm, store, calls)
    prompt = [*llm.input_ids[:LENGTH].tolist(), 5, 6, 7]
    engine.fresh(llm)
    llm.n_tokens = 0
    calls.begin()
    assert session.position(prompt) == LENGTH
    assert calls.counts("info", "info_many", "get_many") == [0, 2, 1]  # whole blocks, ends behind them
    assert calls.counts(SET, CP, "parse") == [4, 4, 4]
    assert calls.counts(RM) == [1 + 1], "scratch is given back once; what is behind the prompt is dropped"
