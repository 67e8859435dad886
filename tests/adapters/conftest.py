"""Models are loaded once a session: what a test needs is an empty context, not a new model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from kvtier import Store
from tests.adapters import engine

if TYPE_CHECKING:
    from llama_cpp import Llama


@pytest.fixture(scope="session")
def model() -> Iterator[Callable[[engine.Setup], Llama]]:
    """``model(setup)``: a loaded model with an empty context and nothing attached."""
    pytest.importorskip("llama_cpp")
    kept: dict[engine.Setup, Llama] = {}

    def get(setup: engine.Setup) -> Llama:
        if setup not in kept:
            kept[setup] = engine.load(setup)
        llm = engine.fresh(kept[setup])
        assert "_kvtier_attachment" not in vars(llm), "the test before this one did not detach"
        return llm

    yield get
    for llm in kept.values():
        llm.close()


@pytest.fixture
def store() -> Iterator[Store]:
    """A store in RAM only."""
    with engine.in_ram() as opened:
        yield opened
