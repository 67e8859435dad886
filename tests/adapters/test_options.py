"""Options are refused when a store is attached, not in the middle of an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

pytest.importorskip("llama_cpp")

from kvtier_adapters.llama_cpp import attach, session
from kvtier_adapters.llama_cpp.fingerprint import NAMESPACE
from kvtier_adapters.llama_cpp.options import Options

Start = Callable[..., object]
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"namespace": "tenant"}, TypeError, "namespace must be bytes, got str"),
    ({"namespace": None}, TypeError, "namespace must be bytes, got NoneType"),
    ({"namespace": bytearray(b"x")}, TypeError, "namespace must be bytes, got bytearray"),
    ({"namespace": b"x" * 65}, ValueError, "namespace must be at most 64 bytes, got 65"),
    ({"namespace": NAMESPACE}, ValueError, "is reserved"),
    ({"identity": b"lora"}, TypeError, "identity must be str, got bytes"),
    ({"identity": "x" * 1025}, ValueError, "identity must be at most 1024 characters, got 1025"),
    ({"block_tokens": "256"}, TypeError, "block_tokens must be int, got str"),
    ({"block_tokens": True}, TypeError, "block_tokens must be int, got bool"),
    ({"block_tokens": 0}, ValueError, "block_tokens must be at least 1, got 0"),
    ({"checkpoint_tokens": 2048.0}, TypeError, "checkpoint_tokens must be int, got float"),
    ({"reproducible": 1}, TypeError, "reproducible must be bool, got int"),
    ({"name_space": b""}, TypeError, "name_space"),
]


@pytest.mark.parametrize(("given", "error", "message"), WRONG, ids=str)
def test_a_wrong_option(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Options(**given)


@pytest.mark.parametrize("given", [{"namespace": b"x" * 65}, {"identity": 7}], ids=str)
@pytest.mark.parametrize("start", [attach, lambda llm, store, **o: session(llm, 0, store, **o)], ids=["attach", "own"])
def test_it_is_refused_before_the_model_is_touched(start: Start, given: dict[str, Any]) -> None:
    class Untouched:
        """Neither a model nor a store: whatever is done with it fails otherwise."""

    with pytest.raises((TypeError, ValueError), match=r"^(namespace|identity) must be"):
        start(cast(Any, Untouched()), cast(Any, Untouched()), **given)


def test_the_longest_will_do() -> None:
    longest = Options(namespace=b"x" * 64, identity="ä" * 1024)
    assert len(longest.namespace) == 64
