"""The server as users run it: a process of its own, spoken to over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from tests import models

COMMAND = [sys.executable, "-m", "kvtier_adapters.llama_cpp.server"]
SETTINGS: dict[str, Any] = {"n_ctx": 1024, "n_batch": 256, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
_LISTENING = re.compile(r"running on http://127\.0\.0\.1:(\d+)")
_DEADLINE_S = 120


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(models.ROOT), str(models.ROOT / "adapters")])
    return {**os.environ, "PYTHONPATH": path, **more}


class Served:
    """A running server. ``said`` is what it has written to stderr."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "--host", "127.0.0.1", "--port", "0", *arguments],
            env=environment(**env),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        assert self.process.stderr is not None
        self.said = ""
        for line in self.process.stderr:
            self.said += line
            if found := _LISTENING.search(line):
                break
        else:
            raise RuntimeError(f"the server ended early:\n{self.said}")
        self._port = int(found[1])
        self._drain = threading.Thread(target=self._listen, daemon=True)
        self._drain.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line

    @contextlib.contextmanager
    def ask(
        self, path: str, body: dict[str, Any] | None = None, *, api_key: str = ""
    ) -> Iterator[http.client.HTTPResponse]:
        """The response to a GET, or to a POST of ``body``; its status is not checked."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_DEADLINE_S)
        with contextlib.closing(connection):
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
            with connection.getresponse() as response:
                yield response

    def json(self, path: str, body: dict[str, Any] | None = None, *, api_key: str = "") -> dict[str, Any]:
        with self.ask(path, body, api_key=api_key) as response:
            answer = json.load(response)
        assert response.status == 200, answer
        assert isinstance(answer, dict)
        return answer

    def events(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The events of a streamed answer, as they come; closing the generator hangs up."""
        with self.ask(path, {**body, "stream": True}) as response:
            assert response.status == 200
            for line in response:
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))

    def stats(self, api_key: str = "") -> dict[str, Any]:
        return self.json("/kvtier/stats", api_key=api_key)

    def wait_until(self, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The statistics as soon as they are as wanted."""
        deadline = time.monotonic() + _DEADLINE_S
        while not reached(stats := self.stats()):
            assert time.monotonic() < deadline, stats
        return stats

    def kill(self) -> None:
        """SIGKILL: nothing is closed, nothing is written."""
        self.process.kill()
        self._ended()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self._ended()

    def _ended(self) -> int:
        code = self.process.wait(_DEADLINE_S)
        self._drain.join(_DEADLINE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@contextlib.contextmanager
def served(store: Path, *arguments: str) -> Iterator[Served]:
    """A server for the test model, reproducible to the bit; killed at the end if it still runs."""
    settings = [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]
    model = ["--model", str(models.smollm2()), *settings]
    with running(Served("--store", str(store), "--kvtier_reproducible", "true", *model, *arguments)) as server:
        yield server


@contextlib.contextmanager
def running(server: Served) -> Iterator[Served]:
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


def is_durable(stats: dict[str, Any], nbytes: int = 1) -> bool:
    """Whether at least ``nbytes`` were captured, and everything that was captured is on disk."""
    captured: int = stats["session"]["bytes_captured"]
    queued: int = stats["store"]["queue"]["blocks"]
    return captured >= nbytes and queued == 0
