"""What a session does without: blocks that are gone, damaged or another model's, and models it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from kvtier import Config, Store
from tests.adapters import engine
from tests.adapters.engine import GEMMA, SMOL, Setup
from tests.adapters.meddling import Meddling

if TYPE_CHECKING:
    from llama_cpp import Llama

pytest.importorskip("llama_cpp")

from kvtier_adapters.llama_cpp import LlamaSession, Options
from kvtier_adapters.llama_cpp.binding import Binding
from kvtier_adapters.llama_cpp.memory import Memory
from kvtier_adapters.llama_cpp.state import Layout

pytestmark = pytest.mark.model

Models = Callable[[Setup], "Llama"]


def test_another_fingerprint_is_a_miss_that_says_what_differs(model: Models, store: Store) -> None:
    from llama_cpp import GGML_TYPE_Q8_0

    llm = model(SMOL)
    prompt = engine.prompt(llm, 300)
    engine.stored(llm, store, prompt)
    with engine.loaded(SMOL, type_k=GGML_TYPE_Q8_0) as other:
        session = LlamaSession(other, store)
        assert session.position(prompt) == 0
        assert session.stats.misses == {"fingerprint differs: type_k 1 -> 8": 1}
        assert session.position(engine.prompt(other, 300, skip=999)) == 0
        assert session.stats.misses["not stored"] == 1


def test_another_namespace_finds_nothing(model: Models, store: Store) -> None:
    llm = model(SMOL)
    prompt = engine.prompt(llm, 300)
    engine.stored(llm, store, prompt, namespace=b"tenant-a")
    assert LlamaSession(llm, store, Options(namespace=b"tenant-b")).position(prompt) == 0
    assert LlamaSession(llm, store, Options(namespace=b"tenant-a")).position(prompt) == 299


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"\0",
    "noise": lambda data: bytes(len(data)),
    "other positions": lambda data: data[:16] + b"\x07" + data[17:],
    "more cells": lambda data: data[:12] + b"\xff\xff\xff\x7f" + data[16:],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize("setup", [SMOL, GEMMA], ids=str)
def test_garbage_never_reaches_the_model(
    setup: Setup, change: Callable[[bytes], bytes], model: Models, store: Store
) -> None:
    llm = model(setup)
    prompt = engine.prompt(llm, 600)
    engine.stored(llm, store, prompt)
    bad = Meddling(store, lambda number, data: change(data) if number == 0 else data)
    session = LlamaSession(llm, cast(Store, bad))
    assert session.position(prompt) == 0
    assert session.stats.misses["block malformed"] == 1
    assert (llm.n_tokens, engine.pos_max(llm)) == (0, -1)
    good = LlamaSession(llm, store)
    engine.evaluate(llm, prompt)
    good.capture(checkpoint=True)
    engine.fresh(llm)
    assert good.position(prompt) == 599


def test_what_was_read_before_the_garbage_is_kept(model: Models, store: Store) -> None:
    llm = model(SMOL)
    prompt = engine.prompt(llm, 600)
    engine.evaluate(llm, prompt[:256])
    expected = engine.next_token(llm, prompt[256:])
    engine.fresh(llm)
    engine.stored(llm, store, prompt)
    session = LlamaSession(llm, cast(Store, Meddling(store, lambda number, data: data[number:])))
    assert session.position(prompt) == 256
    assert (session.stats.restores, session.stats.tokens_restored) == (1, 256)
    assert engine.next_token(llm, prompt[256:]) == expected


@pytest.mark.parametrize(("setup", "held"), [(SMOL, 256), (GEMMA, 0)], ids=str)
def test_a_block_that_cannot_be_read_now_is_done_without(setup: Setup, held: int, model: Models, store: Store) -> None:
    llm = model(setup)
    prompt = engine.prompt(llm, 600)
    engine.stored(llm, store, prompt)
    bad = Meddling(store, lambda number, data: data if number == 0 else None)
    session = LlamaSession(llm, cast(Store, bad))
    assert session.position(prompt) == held
    assert session.stats.misses["block unavailable"] >= 1
    assert session.stats.errors == {}
    assert (llm.n_tokens, engine.pos_max(llm)) == (held, held - 1)


def test_a_block_that_llama_cpp_refuses_is_a_cold_start(model: Models, store: Store) -> None:
    """Well-formed, but of another type: the one kind of damage that only the engine can see."""
    llm = model(SMOL)
    prompt = engine.prompt(llm, 300)
    engine.stored(llm, store, prompt)

    def other_type(number: int, data: bytes) -> bytes:
        at = 16 + 12 * 256 + 8  # the type of the first K tensor
        return data[:at] + b"\x07" + data[at + 1 :]

    session = LlamaSession(llm, cast(Store, Meddling(store, other_type)))
    assert session.position(prompt) == 0
    assert session.stats.errors == {"NativeError": 1}
    assert (llm.n_tokens, engine.pos_max(llm)) == (0, -1)


def test_flipped_bytes_on_disk_are_a_miss_and_are_written_anew(model: Models, tmp_path: Path) -> None:
    llm = model(SMOL)
    prompt = engine.prompt(llm, 600)
    config = Config.from_dict(
        {
            "store": {"path": tmp_path / "store"},
            "ram": {"bytes_max": 0},
            "tier": [{"name": "disk", "kind": "ssd", "bytes_max": "1GiB"}],
        }
    )
    with Store.open(config) as store:
        engine.stored(llm, store, prompt)
    (segment,) = (tmp_path / "store").rglob("*.seg")
    size = segment.stat().st_size
    with segment.open("r+b") as file:
        for number in range(1, 16):
            file.seek(size * number // 16)
            file.write(b"\xa5" * 64)
    with Store.open(config) as store:
        session = LlamaSession(llm, store)
        assert session.position(prompt) == 0
        assert sum(session.stats.misses.values()) >= 1
        assert session.stats.errors == {}
        for _ in range(3):  # damage behind a damaged block is noticed once it is read itself
            engine.evaluate(llm, prompt)
            session.capture()
            engine.fresh(llm)
            reached = session.position(prompt)
            engine.fresh(llm)
        assert reached == 599


def test_a_store_that_fails_is_counted_not_raised(model: Models) -> None:
    llm = model(SMOL)
    prompt = engine.prompt(llm, 300)
    store = engine.in_ram()
    session = engine.stored(llm, store, prompt)
    store.close()
    assert session.position(prompt) == 0
    llm.eval([5, 6, 7])
    session.capture()
    assert session.stats.errors == {"StoreClosed": 2}
    assert session.stats.last_error.startswith("StoreClosed: ")


def test_a_read_only_store_is_restored_from(model: Models, tmp_path: Path) -> None:
    llm = model(SMOL)
    prompt = engine.prompt(llm, 300)
    with Store.open(tmp_path / "store") as store:
        engine.stored(llm, store, prompt)
    with Store.open(tmp_path / "store", read_only=True) as store:
        session = LlamaSession(llm, store)
        assert session.position(prompt) == 299
        llm.eval([*prompt[299:], 5, 6, 7])
        session.capture()
        assert (session.stats.errors, session.stats.bytes_captured) == ({}, 0)


def test_blocks_too_big_for_the_store_become_smaller_pieces(model: Models, tmp_path: Path) -> None:
    llm = model(SMOL)
    prompt = engine.prompt(llm, 300)
    limits = {"store": {"value_bytes_max": "2MiB"}, "ram": {"bytes_max": "256MiB"}}
    with Store.open(Config.from_dict(limits)) as store:
        session = engine.stored(llm, store, prompt)
        assert session.stats.pieces_captured == 4 + 1
        assert session.position(prompt) == 299


def test_image_tokens_are_not_captured(model: Models, store: Store) -> None:
    llm = model(SMOL)
    session = LlamaSession(llm, store)
    llm.eval(engine.prompt(llm, 20))
    llm.input_ids[5] = -100
    session.capture()
    assert session.stats.pieces_captured == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"embedding": True}, "embedding context"),
        ({"logits_all": True}, "logits_all: a restored prefix has no logits"),
    ],
)
def test_a_context_whose_state_cannot_be_restored_is_refused(
    changes: dict[str, Any], reason: str, store: Store
) -> None:
    with engine.loaded(SMOL, n_ctx=256, n_batch=64, **changes) as llm:
        session = LlamaSession(llm, store)
        assert session.stats.refused == reason
        llm.n_tokens = 0
        assert session.position([1, 2, 3]) == 0
        session.capture()
        assert session.stored_tokens([1, 2, 3]) == 0
        assert store.stats().blocks == 0


def test_a_layout_that_is_not_understood_is_stored_whole(
    model: Models, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = model(SMOL)
    session = LlamaSession(llm, store)
    assert isinstance(session._to, Binding)
    monkeypatch.setattr(session._to.native, "memory", Memory(Layout(2)))  # as if llama.cpp wrote something else
    prompt = engine.prompt(llm, 60)
    llm.eval(prompt[:40])
    session.capture(checkpoint=True)
    session.capture(checkpoint=True)
    assert session.stats.memory.startswith("opaque: unknown layout: ")
    assert session.stats.errors == {}
    expected = engine.next_token(llm, prompt[40:])
    engine.fresh(llm)
    assert session.position(prompt) == 40
    assert engine.next_token(llm, prompt[40:]) == expected
