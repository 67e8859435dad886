"""The demo's story: one process answers and is killed, another restores, goes on, and gives the same answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from kvtier_adapters.llama_cpp.demo import page_cache
from kvtier_adapters.llama_cpp.demo.errors import DemoError
from kvtier_adapters.llama_cpp.demo.prompt import ANSWER_TOKENS, Prompt
from kvtier_adapters.llama_cpp.demo.worker import Job, Turn

#: Called with what is going on, how much of it is done, and how much there is; 0 of 0 where that is not known.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Report:
    """What the demo found. ``first`` was evaluated from zero, ``again`` restored, ``second`` went on from there."""

    model: str
    first: Turn
    again: Turn
    second: Turn
    first_exit_code: int
    """Of the process that was killed: ``-SIGKILL`` where there are signals."""
    page_cache: str
    """How the files of the store were dropped from memory before the restore."""

    @property
    def identical_output(self) -> bool:
        return self.first.output == self.again.output

    @property
    def ok(self) -> bool:
        """The prompt came back from the disk and gave the same answer."""
        return self.identical_output and self.again.tokens_restored > 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values. Without a prefix: the prompt; ``second_turn``: what the next request added."""
        first, again, second = self.first, self.again, self.second
        return {
            "model": self.model,
            "tokens": first.tokens,
            "cold_ttft_s": first.ttft_s,
            "warm_ttft_s": again.ttft_s,
            "tokens_restored": again.tokens_restored,
            "tokens_evaluated_warm": again.tokens_evaluated,
            "bytes_new_kv": first.bytes_new_kv,
            "bytes_written": first.bytes_written,
            "checkpoint_bytes": first.checkpoint_bytes,
            "bytes_on_disk": first.bytes_on_disk,
            "identical_output": self.identical_output,
            "output_tokens": len(again.output),
            "answer": again.text,
            "first_process_exit_code": self.first_exit_code,
            "page_cache": self.page_cache,
            "second_turn": {k: v for k, v in asdict(second).items() if k not in ("output", "text", "trouble")}
            | {"answer": second.text},
            "trouble": first.trouble or again.trouble or second.trouble,
        }


def run(model: Path, prompt: Prompt, store: Path | None, progress: Progress) -> Report:
    """Run the demo; ``store`` is a folder or TOML file to use and keep, None a folder for this run only.

    Raises :class:`DemoError` if a process fails. No process that it started is left when it returns.
    """
    with ExitStack() as stack:
        folder = store or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="kvtier-demo-", ignore_cleanup_errors=True)
        )
        job = Job(
            model=str(model),
            store=str(folder),
            is_new_folder=store is None,
            namespace=(b"demo" + os.urandom(8)).hex(),
            n_ctx=prompt.n_ctx,
            answer_tokens=ANSWER_TOKENS,
            prompt=prompt.first,
            follow_up=[],
        )
        with _started(job, "process 1: ", progress) as cold:
            cold.go_on()
            (first,) = cold.turns()
            progress("process 1: killed with SIGKILL", 0, 0)
            exit_code = cold.kill()
        with _started(replace(job, follow_up=prompt.follow_up), "process 2: ", progress) as warm:
            dropped = page_cache.drop(map(Path, warm.folders))
            warm.go_on()
            again, second = warm.turns()
            warm.end()
    return Report(model.name, first, again, second, exit_code, dropped)


@contextmanager
def _started(job: Job, label: str, progress: Progress) -> Iterator[_Worker]:
    """A worker that has loaded its model; killed at the end if it still runs."""
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-m", "kvtier_adapters.llama_cpp.demo.worker"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8"
        ) as process:
            try:
                yield _Worker(process, errors, job, label, progress)
            finally:
                process.kill()


class _Worker:
    """The other end of :mod:`.worker`."""

    def __init__(
        self, process: subprocess.Popen[str], errors: IO[bytes], job: Job, label: str, progress: Progress
    ) -> None:
        self._process = process
        self._errors = errors
        self._label = label
        self._progress = progress
        self._say(json.dumps(asdict(job)))
        self.folders: list[str] = self._next("loaded")["folders"]

    def go_on(self) -> None:
        self._say("")

    def turns(self) -> list[Turn]:
        """Everything that the job asked for, once it is durable."""
        found = []
        while (event := self._next("turn", "ready"))["event"] == "turn":
            del event["event"]
            found.append(Turn(**event))
        return found

    def kill(self) -> int:
        """End the process without notice (SIGKILL where there are signals); its exit code."""
        self._process.kill()
        return self._process.wait()

    def end(self) -> None:
        """Let the process close its store and exit."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _next(self, *wanted: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.startswith("{"):
                continue  # what a library prints
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "progress":
                self._progress(self._label + event["phase"], event.get("done", 0), event.get("total", 0))
            elif event["event"] == "error":
                raise DemoError(event["message"])
            elif event["event"] in wanted:
                return event
        raise self._died()

    def _died(self) -> DemoError:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "without a word")
        return DemoError(f"{self._label}ended early, with code {code}: {said}")
