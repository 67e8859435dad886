"""The point of it all: a prompt stored by one model object, or one process, goes on in another to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvtier import Store
from tests import models
from tests.adapters import engine
from tests.adapters.engine import ANSWER, Setup

if TYPE_CHECKING:
    from llama_cpp import Llama

pytest.importorskip("llama_cpp")

from kvtier_adapters.llama_cpp import attach

pytestmark = pytest.mark.model
PROMPT, SECOND = 700, "\n\nIn short, the license says that you may"


@pytest.mark.parametrize("setup", engine.SETUPS, ids=str)
def test_two_turns_continue_as_if_never_interrupted(
    setup: Setup, model: Callable[[Setup], Llama], store: Store
) -> None:
    llm = model(setup)
    prompt, more = engine.prompt(llm, PROMPT), engine.words(llm, SECOND)
    expected, expected_second = engine.uninterrupted(llm, prompt, more)

    engine.fresh(llm)
    with attach(llm, store, reproducible=True) as attached:
        assert engine.greedy(llm, prompt) == expected
        assert attached.stats.tokens_evaluated == PROMPT + ANSWER - 1
        assert attached.stats.cold_starts == 1
        first = attached.stats

    engine.fresh(llm)
    with attach(llm, store, reproducible=True) as attached:
        stats = attached.stats
        assert engine.greedy(llm, prompt) == expected
        assert stats.tokens_restored == PROMPT - 1
        assert stats.tokens_evaluated == 1 + ANSWER - 1
        # all but the last token of the answer is in the context; the second turn evaluates that and its own
        second = [*prompt, *expected, *more]
        assert engine.greedy(llm, second) == expected_second
        assert stats.tokens_evaluated == ANSWER + 1 + len(more) + ANSWER - 1
        assert stats.restores_avoided == 1

    engine.fresh(llm)
    with attach(llm, store, reproducible=True) as attached:
        assert engine.greedy(llm, second) == expected_second
        assert attached.stats.tokens_evaluated == ANSWER
        assert attached.stats.errors == {}
        assert attached.stats.bytes_captured == 0, "all of it was stored by the one before"

    new = 1 + len(more) + ANSWER - 1
    row, window_row = engine.ROW_BYTES[setup.model], engine.WINDOW_ROW_BYTES[setup.model]
    assert (PROMPT + ANSWER - 1) * row < first.bytes_captured <= 1.01 * (PROMPT + ANSWER - 1) * row
    assert new * row < stats.bytes_captured <= 1.10 * new * row
    assert new * window_row <= stats.checkpoint_bytes <= 1.10 * new * window_row


KILLED = """
import json, os, signal, sys
from pathlib import Path
from kvtier import Store
from kvtier_adapters.llama_cpp import attach
from tests.adapters import engine

setup = engine.Setup(**json.loads(sys.argv[1]))
llm = engine.load(setup)
store = Store.open(Path(sys.argv[2]))
attach(llm, store, reproducible=True)
answer = engine.greedy(llm, engine.prompt(llm, int(sys.argv[3])))
store.flush()
print(json.dumps(answer), flush=True)
os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("setup", [engine.SMOL, engine.GEMMA], ids=str)
def test_a_killed_process_goes_on_in_a_new_one(setup: Setup, model: Callable[[Setup], Llama], tmp_path: Path) -> None:
    arguments = json.dumps(vars(setup)), str(tmp_path / "store"), str(PROMPT)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        cwd=models.ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(models.ROOT), str(models.ROOT / "adapters")])},
        stdout=subprocess.PIPE,
        check=False,
        timeout=240,
    )
    assert killed.returncode == -signal.SIGKILL
    answer = json.loads(killed.stdout)

    llm = model(setup)
    prompt = engine.prompt(llm, PROMPT)
    with Store.open(tmp_path / "store") as store, attach(llm, store, reproducible=True) as attached:
        assert engine.greedy(llm, prompt) == answer
        assert attached.stats.tokens_evaluated == ANSWER
        assert attached.stats.tokens_restored == PROMPT - 1
