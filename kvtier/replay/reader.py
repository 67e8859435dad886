"""Traces from files: a file of JSON lines, or a folder of them, merged by time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from kvtier.errors import TraceError
from kvtier.replay.schemas import BadLine, Schema, schema_of
from kvtier.replay.trace import Request, Trace, make_trace

LINE_BYTES_MAX = 64 << 20
_SHOWN_MAX = 5
_SUFFIXES = {".jsonl", ".json"}

#: Called with bytes read and bytes in all.
Progress = Callable[[int, int], None]


def read_trace(source: Path, *, lenient: bool = False, progress: Progress | None = None) -> Trace:
    """Read a file, or all ``.jsonl`` and ``.json`` files of a folder; the first line tells the schema of all.

    Requests are put in order of time, whatever the order of lines. :class:`kvtier.errors.TraceError` names the lines
    that are malformed; with ``lenient`` they are left out and counted. Also raises it if no block is left.
    """
    reading = _Reading(lenient, progress)
    files = _files(source)
    sizes = [f.stat().st_size for f in files]
    for file in files:
        reading.read(file, sum(sizes), in_folder=len(files) > 1)
    return reading.trace(source)


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    files = sorted(f for f in source.iterdir() if f.suffix in _SUFFIXES and f.is_file())
    if not files:
        raise TraceError(f"{source}: no .jsonl or .json file in this folder")
    return files


class _Reading:
    def __init__(self, lenient: bool, progress: Progress | None) -> None:
        self._lenient = lenient
        self._progress = progress
        self._schema: Schema | None = None
        self._requests: list[Request] = []
        self._bad: list[str] = []
        self._bad_count = 0
        self._bytes_done = 0

    def read(self, file: Path, bytes_total: int, *, in_folder: bool) -> None:
        with file.open("rb") as opened:
            for number, line in enumerate(_lines(opened), 1):
                if line is None or line.strip():
                    self._take(line, f"{file.name} line {number}" if in_folder else f"line {number}")
                self._bytes_done += len(line or b"")
                if self._progress:
                    self._progress(self._bytes_done, bytes_total)

    def _take(self, line: bytes | None, where: str) -> None:
        try:
            row = _parse(line)
            schema = self._schema or schema_of(row)
            self._requests.append(schema.request(row))
            self._schema = schema
        except BadLine as e:
            self._bad_count += 1
            if len(self._bad) < _SHOWN_MAX:
                self._bad.append(f"{where}: {e}")

    def trace(self, source: Path) -> Trace:
        if self._bad_count and not self._lenient:
            more = self._bad_count - len(self._bad)
            lines = "; ".join(self._bad) + (f"; and {more} more" if more else "")
            noun = "line" if self._bad_count == 1 else "lines"
            raise TraceError(f"{source}: {self._bad_count} malformed {noun} (lenient leaves them out): {lines}")
        if self._schema is None or len(self._schema.chains.parents) == 1:
            left_out = f" ({self._bad_count} malformed lines were left out)" if self._bad_count else ""
            raise TraceError(f"{source}: the trace has no block{left_out}")
        chains, block_tokens = self._schema.chains, self._schema.block_tokens
        return make_trace(str(source), block_tokens, self._requests, chains.parents, skipped=self._bad_count)


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file; None for one that is too long to be looked at."""
    while line := file.readline(LINE_BYTES_MAX):
        if line.endswith(b"\n") or len(line) < LINE_BYTES_MAX:
            yield line
        else:
            while line and not line.endswith(b"\n"):
                line = file.readline(LINE_BYTES_MAX)
            yield None


def _parse(line: bytes | None) -> dict[str, object]:
    if line is None:
        raise BadLine(f"longer than {LINE_BYTES_MAX >> 20} MiB")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise BadLine(f"not JSON: {str(e)[:100]}") from None
    if type(row) is not dict:
        raise BadLine("not a JSON object")
    return row
