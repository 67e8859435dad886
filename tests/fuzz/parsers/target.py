"""What is fuzzed: a parser, the exceptions that it documents, and how to make a damaged input pass its checksum."""

from __future__ import annotations

import importlib
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: A module of this folder each, with its ``TARGET``. Only :func:`load` imports them: imports can be instrumented.
NAMES = [
    "record_heads",
    "segment_scan",
    "index_entries",
    "index_meta",
    "index_audit",
    "identity_files",
    "codecs",
    "encrypted",
    "toml_config",
    "saved_config",
    "llama_state",
    "adapter_meta",
]
_PEAK_MAX = 16  # bytes allocated for each byte of input, and for each of `Target.spare`


class Failed(AssertionError):
    """A parser broke its contract."""


def expect(is_so: bool, message: str) -> None:
    if not is_so:
        raise Failed(message)


def expect_same(read: Callable[[], object], value: object) -> None:
    """What was accepted, written and read again is accepted again, and the same."""
    try:
        again = read()
    except Exception as error:
        raise Failed(f"refused after a round trip: {error}") from error
    if again != value:
        raise Failed(f"{again!r} after a round trip of {value!r}")


def as_it_is(data: bytes) -> bytes:
    return data


@dataclass(frozen=True)
class Target:
    """``parse`` raises one of ``refusals``, or :class:`Failed` if what it accepts does not come back the same."""

    parse: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    reseal: Callable[[bytes], bytes] = as_it_is
    """The input with the checksums that fit its contents: what is behind them gets tested too."""
    words: Sequence[bytes] = ()
    """Of the language, for inputs that are text."""
    spare: int = 4096
    """Input bytes that memory is allowed for besides those there are."""

    def accepts(self, data: bytes) -> bool:
        """Whether the input was parsed. Any other exception than a refusal is a bug; while tracemalloc is on, so is
        memory that the input's length does not account for."""
        if not tracemalloc.is_tracing():
            return self._accepts(data)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        accepted = self._accepts(data)
        peak = tracemalloc.get_traced_memory()[1] - before
        expect(peak <= _PEAK_MAX * (len(data) + self.spare), f"{peak} bytes allocated for an input of {len(data)}")
        return accepted

    def _accepts(self, data: bytes) -> bool:
        try:
            self.parse(data)
        except self.refusals:
            return False
        return True


def load(name: str) -> Target:
    found: Target = importlib.import_module(f"tests.fuzz.parsers.{name}").TARGET
    return found
