"""The process that is given damaged state. ``python -m tests.fuzz.victim MODEL --seed S``: a line of JSON at the end.

It restores one prompt again and again from a store that hands out one damaged block, and evaluates on. Before each
case it writes its number, so that whoever started it knows which one it died of.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal, cast

from kvtier import Hit, Store
from kvtier_adapters.llama_cpp import LlamaSession, Options
from kvtier_adapters.llama_cpp.binding import as_tokens
from kvtier_adapters.llama_cpp.memory import Memory
from kvtier_adapters.llama_cpp.state import (
    HEADROOM_PER_CELL,
    Layout,
    StateLayoutError,
    blank_rows,
    canonical,
    check_recurrent,
    check_rows,
    check_window,
    is_recurrent_tail,
    parse,
    recurrent_only,
    select_rows,
)
from kvtier_adapters.prefix import Piece
from tests.adapters import engine, tiny_llama
from tests.adapters.meddling import Meddling
from tests.fuzz.bounds import in_bounds
from tests.fuzz.mutations import mutate
from tests.fuzz.parsers.target import Failed

if TYPE_CHECKING:
    from llama_cpp import Llama

Part = Literal["rows", "window", "recurrent"]

OPTIONS = Options(block_tokens=48, restore_min_tokens=1)
END = 88
"""Tokens that are stored: two pieces, and with a window of 64 two parts of it."""
PEAK_MAX = 16
"""Bytes that a parser may allocate for each byte of the blob, and for each of :data:`_SPARE`."""
_SPARE = 4096


@dataclass(frozen=True)
class Subject:
    """A block of a restore: which one, its bytes and what it must hold."""

    number: int
    part: Part
    blob: bytes
    layout: Layout
    start: int
    end: int

    def check(self, blob: memoryview) -> None:
        """As a restore does before llama.cpp sees the blob. Raises ``StateLayoutError``."""
        if self.part == "rows":
            check_rows(blob, self.layout, self.start, self.end)
        elif self.part == "window":
            check_window(blob, self.layout, self.start, self.end)
        else:
            check_recurrent(blob, self.layout, self.end)

    def uses(self, blob: memoryview) -> list[Callable[[], object]]:
        """Every other function that takes such a blob apart."""
        if self.part == "recurrent":
            return [lambda: recurrent_only(blob, self.layout), lambda: is_recurrent_tail(bytes(blob))]
        headroom = HEADROOM_PER_CELL * (self.end - self.start)
        captured = memoryview(bytearray(headroom) + bytes(blob))
        one = Layout(1, self.layout.extra, self.layout.values, self.layout.tail)
        return [
            lambda: in_bounds(blob, self.layout),
            lambda: canonical(captured, headroom, self.layout, self.start, self.end),
            lambda: select_rows(blob, one, self.start + 1, self.end),
            lambda: blank_rows(blob, one, 0, 1),
        ]

    def fields(self) -> list[int]:
        """Where the counts and lengths are."""
        if self.part == "recurrent":
            headers = [self.layout.tail[at : at + 12] for at in range(12, len(self.layout.tail), 12)]
            tensors = {self.blob.find(header) for header in headers}
            return [*range(0, 36, 4), *(at + step for at in tensors for step in (0, 4, 8))]
        found: list[int] = []
        for section in parse(memoryview(self.blob), self.layout):
            cell = (section.data - section.start - 8) // section.cells if section.cells else 0
            found += range(section.start, section.start + 8 + cell, 4)  # with the first cell
            found += range(section.data - cell, section.data + 8 if cell else section.data, 4)  # with the last one
            found += [tensor.data - step for tensor in section.tensors for step in (4, 8, 12)]
        return [*range(0, 8, 4), *found]


class Victim:
    """A model that has a prompt stored, and the blocks of it."""

    def __init__(self, model: str, store: Store) -> None:
        self._llm = tiny_llama.load(model, n_ctx=256)
        self._store = store
        self.prompt = engine.prompt(self._llm, END + 8)
        session = LlamaSession(self._llm, store, OPTIONS)
        self._llm.eval(self.prompt[:END])
        session.capture(checkpoint=True)
        engine.fresh(self._llm)
        assert not session.stats.errors, session.stats.last_error
        self.subjects = list(_subjects(session, self.prompt))

    @property
    def llm(self) -> Llama:
        return self._llm

    def case(self, random: Random) -> tuple[Part, str]:
        """One damaged block: which part, and what became of it. Raises :class:`Failed`, or any other bug."""
        subject = random.choice(self.subjects)
        others = [other.blob for other in self.subjects]
        damaged = mutate(random, subject.blob, others, subject.fields())
        return subject.part, self.restore(subject, damaged)

    def restore(self, subject: Subject, damaged: bytes) -> str:
        sound = inspect(subject, damaged)
        store = Meddling(self._store, lambda number, blob: damaged if number == subject.number else blob)
        session = LlamaSession(self._llm, cast(Store, store), OPTIONS)
        held = session.position(self.prompt)
        last = session._to.native.pos_max if session._to else -1
        if not held == self._llm.n_tokens == last + 1:
            raise Failed(f"{held} tokens reported, {self._llm.n_tokens} noted, position {last} in the context")
        self._llm.eval(self.prompt[held:])
        engine.fresh(self._llm)
        stats = session.stats
        if set(stats.errors) - {"NativeError"} or bool(stats.misses["block malformed"]) == sound:
            raise Failed(f"{'sound' if sound else 'malformed'}: {stats.last_error} {dict(stats.misses)}")
        if not sound:
            return "refused"
        return "refused by llama.cpp" if stats.errors else "loaded"


def inspect(subject: Subject, damaged: bytes) -> bool:
    """Whether the check lets the blob through. Every function may refuse it; none may do anything else."""
    blob = memoryview(damaged)
    for use in subject.uses(blob):
        _refused(use, len(damaged))
    return not _refused(lambda: subject.check(blob), len(damaged))


def _refused(use: Callable[[], object], size: int) -> bool:
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    try:
        use()
    except StateLayoutError:
        return True
    finally:
        peak = tracemalloc.get_traced_memory()[1] - before
        if tracemalloc.is_tracing() and peak > PEAK_MAX * (size + _SPARE):
            raise Failed(f"{peak} bytes allocated for a blob of {size}")
    return False


def _subjects(session: LlamaSession, prompt: list[int]) -> Iterator[Subject]:
    """The blocks that a restore reads, in their order."""
    to = session._to
    assert to is not None
    plan = to.plan(to.keys(as_tokens(prompt)), len(prompt))
    assert plan is not None
    assert plan.end == END
    memory: Memory = to.memory
    wanted: list[tuple[Part, Piece, Layout]] = []
    if memory.layout:
        wanted += [("rows", piece, memory.layout) for piece in plan.pieces]
        wanted += [("window", piece, memory.layout.window) for piece in plan.window]
    if memory.recurrent and plan.snapshot:
        (key,) = plan.snapshot.keys(to.secret)  # tiny models have snapshots of one chunk
        wanted.append(("recurrent", Piece(0, plan.end, key), memory.recurrent))
    for number, (part, piece, layout) in enumerate(wanted):
        found = to.store.get(piece.key, namespace=to.namespace)
        assert isinstance(found, Hit)
        yield Subject(number, part, b"".join(found.buffers), layout, piece.start, piece.end)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1 << 62)
    parser.add_argument("--until", type=float, default=float("inf"), help="as time.time counts")
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    with engine.in_ram() as store:
        victim = Victim(options.model, store)
        tracemalloc.start()
        for number in range(options.first, options.first + options.cases):
            if time.time() >= options.until:
                break
            print(number, flush=True)
            try:
                part, outcome = victim.case(Random(f"{options.seed}/{options.model}/{number}"))
                outcomes[f"{part} {outcome}"] += 1
            except Exception as error:
                failures.append(f"case {number}: {type(error).__name__}: {error}")
                engine.fresh(victim.llm)
    print(json.dumps({"outcomes": outcomes, "failures": failures}), flush=True)


if __name__ == "__main__":
    main()
