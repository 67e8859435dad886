"""Other processes that use a store: the test tells each what to do, line by line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Process:
    """A Python process that runs ``script`` with ``arguments``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def line(self) -> str:
        """What it says next, without the end of the line; empty if it ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.line()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(60)

    def end(self) -> int:
        """Its exit status, once it has nothing more to read."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(120)


@contextmanager
def running(script: str, *arguments: object) -> Iterator[Process]:
    """The process, which does not outlive the block."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield Process(process)
        finally:
            process.kill()
