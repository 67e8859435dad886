"""Long documents and long jobs: killed at any time, they go on at the last checkpoint and end up the same.

The programs of ``examples`` run as they are. To be killed at a definite point, they run in a process that sends itself
SIGKILL as it writes a certain line of progress; once also from outside, in the middle of a batch, and the line is one
that they do not get past.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import models, tiny_models
from tests.adapters import engine

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")
pytest.importorskip("rich")

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL"),
]
EXAMPLES = models.ROOT / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(models.ROOT), str(models.ROOT / "adapters")])}

#: Runs a program, and sends it a signal as the line of progress is written that begins with its second argument.
STOPPED = """
import os, runpy, signal, sys

class Stderr:
    def write(self, text, number=int(sys.argv[1]), line=sys.argv[2], to=sys.stderr):
        to.write(text)
        if text.startswith(line):
            to.flush()
            os.kill(os.getpid(), number)
    def flush(self, to=sys.stderr):
        to.flush()

sys.stderr = Stderr()
sys.argv = sys.argv[3:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Case:
    """A model, and how much of the text it reads: enough for a window to have moved on."""

    model: str
    characters: int
    checkpoint_tokens: int

    def __str__(self) -> str:
        return self.model

    @property
    def options(self) -> list[object]:
        kind, _, name = self.model.rpartition("-")
        path = tiny_models.path(name) if kind == "tiny" else engine.model_path(self.model)
        sizes = ["--n-ctx", 2048, "--max-tokens", 6, "--checkpoint-tokens", self.checkpoint_tokens]
        return ["--model", path, *sizes, "--progress", "json"]

    def text(self, skip: int = 0) -> str:
        return (models.ROOT / "LICENSE").read_text(encoding="utf-8")[skip : skip + self.characters]


SMOL, GEMMA, MAMBA = Case("smollm2", 2000, 80), Case("gemma3", 2800, 120), Case("tiny-mamba", 1000, 200)


class Ran(NamedTuple):
    """A process that ended: what it printed, and its lines of progress."""

    out: str
    progress: list[dict[str, Any]]

    @property
    def evaluated(self) -> int:
        return int(self.progress[-1]["evaluated"])

    def reading(self, what: str) -> list[tuple[int, int]]:
        """How far it was with a text, each time: tokens that were done, and how many of them it had restored."""
        return [(line["done"], line["restored"]) for line in self.progress if line.get("reading") == what]


def stopped(command: Sequence[object], number: signal.Signals, at: dict[str, Any]) -> list[object]:
    """The program, which gets a signal at the line of progress that begins with ``at``."""
    return ["-c", STOPPED, int(number), json.dumps(at)[:-1] + ",", *command]


def run(command: Sequence[object], kill_at: dict[str, Any] | None = None) -> Ran:
    """Run a program to its end, or to the line of progress that begins with ``kill_at``."""
    starts = stopped(command, signal.SIGKILL, kill_at) if kill_at else command
    done = subprocess.run(
        [sys.executable, *map(str, starts)],
        cwd=models.ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
    assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stderr
    ran = Ran(done.stdout, [json.loads(line) for line in done.stderr.splitlines()])
    assert all(line["errors"] == {} for line in ran.progress)
    return ran


class Document(NamedTuple):
    """A document to read, and how that goes if nothing comes in between."""

    case: Case
    file: Path
    uninterrupted: Ran

    def command(self, store: Path) -> list[object]:
        return document_command(self.case, self.file, store)

    @property
    def steps(self) -> list[int]:
        """How far it is after each segment."""
        return [done for done, _ in self.uninterrupted.reading(self.file.name)]


def document_command(case: Case, file: Path, store: Path) -> list[object]:
    questions = ["--question", "What is a Contribution?", "--question", "Who is the Licensor?"]
    return [EXAMPLES / "long_document.py", *case.options, "--store", store, file, *questions]


@pytest.fixture(scope="module", params=[SMOL, GEMMA, MAMBA], ids=str)
def document(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Document:
    folder = tmp_path_factory.mktemp("document")
    file = folder / "license.txt"
    file.write_text(request.param.text(), encoding="utf-8")
    return Document(request.param, file, run(document_command(request.param, file, folder / "store")))


def test_a_document_is_gone_on_with_after_every_kill(document: Document, tmp_path: Path) -> None:
    command, steps, name = document.command(tmp_path), document.steps, document.file.name
    at = {"reading": name, "tokens": steps[-1]}
    assert len(steps) > 5
    killed = run(command, {**at, "done": steps[2]})
    again = run(command, {**at, "done": steps[-2]})
    last = run(command)
    assert killed.reading(name) == [(done, 0) for done in steps[:3]]
    assert again.reading(name) == [(done, steps[2]) for done in steps[2:-1]]
    assert last.reading(name) == [(done, steps[-2]) for done in steps[-2:]]
    assert (killed.evaluated, again.evaluated) == (steps[2], steps[-2] - steps[2])
    assert last.evaluated == document.uninterrupted.evaluated - steps[-2]
    assert last.out == document.uninterrupted.out
    assert last.out.count("Question: ") == 2


@pytest.mark.parametrize("document", [SMOL], indirect=True, ids=str)  # slow enough to be hit
def test_a_kill_in_the_middle_of_a_batch_costs_that_segment(document: Document, tmp_path: Path) -> None:
    command, steps, name = document.command(tmp_path), document.steps, document.file.name
    here_at_last = {"reading": name, "tokens": steps[-1], "done": steps[-2]}
    starts = [sys.executable, *map(str, stopped(command, signal.SIGSTOP, here_at_last))]
    with subprocess.Popen(
        starts, cwd=models.ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stderr is not None
        seen = json.loads(process.stderr.readline())
        while seen["done"] == 0:
            seen = json.loads(process.stderr.readline())
        process.kill()
        seen = [seen, *map(json.loads, process.stderr)][-1]  # it may have come further meanwhile
    assert process.returncode == -signal.SIGKILL
    again = run(command)
    restored = again.reading(name)[0][1]
    assert restored in steps
    assert restored >= seen["done"]
    assert again.reading(name) == [(done, restored) for done in steps if done >= restored]
    assert again.evaluated == document.uninterrupted.evaluated - restored
    assert again.out == document.uninterrupted.out


PROMPTS = 3
BATCHES = [Case("smollm2", 400, 32), Case("tiny-gemma3", 600, 100), Case("tiny-mamba", 600, 200)]


def batch_command(case: Case, folder: Path, store: Path, answers: Path) -> list[object]:
    texts = ["--instructions", folder / "rules.txt", folder / "prompts.jsonl"]
    return [EXAMPLES / "batch_job.py", *case.options, "--store", store, *texts, answers]


def write_batch(case: Case, folder: Path) -> list[str]:
    prompts = [case.text(skip=number * 50) for number in range(1, PROMPTS + 1)]
    (folder / "rules.txt").write_text(case.text()[: case.characters // 2], encoding="utf-8")
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
    return prompts


@pytest.mark.parametrize("case", BATCHES, ids=str)
def test_a_batch_job_is_gone_on_with_and_does_each_prompt_once(case: Case, tmp_path: Path) -> None:
    prompts = write_batch(case, tmp_path)
    expected, answers = tmp_path / "expected.jsonl", tmp_path / "answers.jsonl"
    whole = run(batch_command(case, tmp_path, tmp_path / "store", expected))
    lines = expected.read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["prompt"] for line in lines] == prompts

    command, second = batch_command(case, tmp_path, tmp_path / "other", answers), "prompt 2 of 3"
    steps = [done for done, _ in whole.reading(second)]
    assert len(steps) > 3
    killed = run(command, {"reading": second, "tokens": steps[-1], "done": steps[2]})
    assert answers.read_bytes() == lines[0]
    answers.write_bytes(lines[0] + lines[1][:-9])  # as if the kill had come while the second was written

    again = run(command)
    instructions = whole.reading("instructions")[-1][0]
    assert again.reading("instructions") == [(instructions, instructions)]
    assert again.reading("prompt 1 of 3") == []
    assert again.reading(second) == [(done, steps[2]) for done in steps[2:]]
    assert again.reading("prompt 3 of 3") == whole.reading("prompt 3 of 3")
    assert killed.evaluated + again.evaluated == whole.evaluated, "nothing is evaluated twice"
    assert answers.read_bytes() == expected.read_bytes()

    assert run(command) == Ran("", [])  # all is done: it does not even load the model
    assert answers.read_bytes() == expected.read_bytes()


# -- what can go wrong ---------------------------------------------------------------------------------------


def fails(*command: object) -> str:
    """The one line that a program leaves on stderr when it refuses to start."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=ENVIRONMENT, capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_a_document_that_does_not_fit_is_refused_with_both_sizes(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("x" * 600, encoding="utf-8")
    command = document_command(MAMBA, file, tmp_path / "store")
    tokens = len("^ ") + 600  # one a byte; each text gets a space before it
    longest = tokens + len(" \n\nQuestion: What is a Contribution?\nAnswer:") + 6
    says = f"has {tokens} tokens, with question and answer {longest}; the context has 512 (--n-ctx)"
    assert fails(*command, "--n-ctx", 512).endswith(says)


def test_what_else_keeps_the_programs_from_starting(tmp_path: Path) -> None:
    write_batch(MAMBA, tmp_path)
    store, answers, prompts = tmp_path / "store", tmp_path / "answers.jsonl", tmp_path / "prompts.jsonl"
    batch = batch_command(MAMBA, tmp_path, store, answers)
    assert "none.gguf" in fails(*batch, "--model", "none.gguf")
    assert "No such file or directory" in fails(*document_command(MAMBA, tmp_path / "none.txt", store))
    other = b'{"prompt": "another", "answer": "1"}\n'
    answers.write_bytes(other)
    assert "answers to other prompts" in fails(*batch)
    assert answers.read_bytes() == other
    prompts.write_text('{"prompt": "one"}\n\n["two"]\n', encoding="utf-8")
    assert "prompts.jsonl, line 3: not" in fails(*batch)
