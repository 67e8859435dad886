"""One process a peer. What goes wrong in one (an error, a crash, no answer) is why it is left out from there on."""

from __future__ import annotations

import json
import select
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from bench.peers.peer import Load

_ANSWER_S_MAX = 300.0
_FREE_BYTES_MIN = 1 << 30


class Left(Exception):
    """The peer is out; the text says why."""


class Child:
    """The process of one peer, begun at once. ``missing`` is why it is out, None as long as it is in."""

    def __init__(self, command: list[str], stderr: Path) -> None:
        self.missing: str | None = None
        self.facts: dict[str, Any] = {}
        self._log = stderr
        with stderr.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
            )

    def meet(self) -> None:
        """Wait until it has started, and learn its facts."""
        with suppress(Left):
            self.facts = self._hear()

    def ask(self, **command: Any) -> dict[str, Any]:
        """The answer. Raises :class:`Left` if there is none, now or before."""
        if self.missing is not None:
            raise Left(self.missing)
        try:
            self._pipe(self._process.stdin).write(json.dumps(command) + "\n")
        except OSError as e:
            raise self._leave(self._end()) from e
        return self._hear()

    def stop(self) -> None:
        with suppress(OSError):  # there may be a command in it that nobody will read
            self._pipe(self._process.stdin).close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe(self._process.stdout).close()

    def _hear(self) -> dict[str, Any]:
        stdout = self._pipe(self._process.stdout)
        if not select.select([stdout], [], [], _ANSWER_S_MAX)[0]:
            self._process.kill()
            raise self._leave(f"no answer within {_ANSWER_S_MAX:.0f} s")
        line = stdout.readline()
        if not line:
            raise self._leave(self._end())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._leave(answer["error"])
        return answer

    def _leave(self, why: str) -> Left:
        self.missing = why
        return Left(why)

    def _end(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"crashed ({signal.Signals(-code).name})"
        words = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"ended with code {code}" + (f": {words[-1]}" if words else "")

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


class Fleet:
    """Several children by name, each with a folder of its own in ``scratch``. Use as a context."""

    def __init__(self, names: list[str], scratch: Path, count: int, nbytes: int) -> None:
        self.children: dict[str, Child] = {}
        self._scratch, self._batch_bytes = scratch, count * nbytes
        for number, name in enumerate(names):
            folder = scratch / str(number)
            folder.mkdir()
            command = [sys.executable, "-m", "bench.peers.worker", name, str(folder), str(count), str(nbytes)]
            self.children[name] = Child(command, scratch / f"{number}.log")
        for child in self.children.values():
            child.meet()

    def store(self, name: str, batch: int) -> dict[str, float]:
        """Seconds. Raises :class:`Left`, also where the disk is too full to go on."""
        free = shutil.disk_usage(self._scratch).free
        if free < 2 * self._batch_bytes + _FREE_BYTES_MIN:
            raise self.children[name]._leave(f"too little disk: {free / 1e9:.1f} GB are free")
        return self.children[name].ask(do="store", batch=batch)

    def load(self, name: str, batch: int, how: Load) -> dict[str, Any]:
        """Seconds, and the means. Raises :class:`Left`."""
        return self.children[name].ask(do="load", batch=batch, how=how)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for child in self.children.values():
            child.stop()
