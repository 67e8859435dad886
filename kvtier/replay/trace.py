"""A trace as a compact stream: requests in order of time, each a chain of blocks from the start of its prompt.

Blocks are numbered from 1 in order of appearance, 0 is "no block". Every block has one parent, for good: its number
stands for the whole prefix that ends with it. No block is in two namespaces.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from kvtier.policy.base import NO_PARENT

#: Session of a request of which no session is known.
NO_SESSION = -1

_MASK = (1 << 64) - 1


class Request(NamedTuple):
    """One request, as a schema or a generator gives it."""

    time: float  #: seconds, from any start
    tokens: int  #: length of its prompt; its last block may be longer than what is left of it
    blocks: Sequence[int]
    session: str | int | None  #: None: not known
    namespace: str = ""


@dataclass(frozen=True)
class Trace:
    """See the module. ``blocks[starts[r]:starts[r + 1]]`` is the chain of request ``r``."""

    name: str
    block_tokens: int
    times: array[float]  #: seconds since the first request; never falls
    starts: array[int]
    blocks: array[int]
    tokens: array[int]
    sessions: array[int]
    session_names: tuple[str, ...]  #: by session, of those that the trace names
    namespaces: array[int]  #: by request: its place in ``namespace_names``
    namespace_names: tuple[str, ...]
    parents: array[int]  #: by block
    skipped: int = 0  #: malformed lines left out

    def __len__(self) -> int:
        """Requests."""
        return len(self.times)

    @property
    def references(self) -> int:
        """Blocks of all requests together."""
        return len(self.blocks)

    @property
    def unique(self) -> int:
        """Different blocks: a cache of as many never evicts."""
        return len(self.parents) - 1

    @property
    def reuse(self) -> float:
        """Share of the references that are to blocks seen before: the hit ratio of an unlimited cache."""
        return 1 - self.unique / self.references if self.references else 0.0

    def chain(self, request: int) -> array[int]:
        """The blocks of one request, from the start of its prompt."""
        return self.blocks[self.starts[request] : self.starts[request + 1]]

    def ids(self) -> list[int]:
        """By block: a 64-bit id that looks like the store's, which are hashes. Different blocks have different ids."""
        return [scrambled(number) for number in range(len(self.parents))]


def scrambled(number: int) -> int:
    """A number of 64 bits without a pattern; one to one, and 0 stays 0 (the finalizer of SplitMix64)."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31


def make_trace(
    name: str, block_tokens: int, requests: Iterable[Request], parents: array[int], *, skipped: int = 0
) -> Trace:
    """Put requests in order of time: those of one time stay in the order given. ``parents``: of the blocks as the
    requests number them; those that no request names are left out."""
    ordered = sorted(requests, key=lambda request: request.time)
    start = ordered[0].time if ordered else 0.0
    sessions: dict[str | int, int] = {}
    namespaces: dict[str, int] = {"": 0}
    trace = Trace(
        name,
        block_tokens,
        array("d", [r.time - start for r in ordered]),
        array("Q", [0]),
        array("I"),
        array("Q", [r.tokens for r in ordered]),
        array(
            "q", [NO_SESSION if r.session is None else sessions.setdefault(r.session, len(sessions)) for r in ordered]
        ),
        tuple(map(str, sessions)),
        array("I", [namespaces.setdefault(r.namespace, len(namespaces)) for r in ordered]),
        tuple(namespaces),
        parents,
        skipped,
    )
    for request in ordered:
        trace.blocks.extend(request.blocks)
        trace.starts.append(len(trace.blocks))
    return apart(trace, trace.namespaces, trace.namespace_names)


def apart(trace: Trace, namespaces: array[int], names: tuple[str, ...]) -> Trace:
    """The trace with its requests in these namespaces: what several of them use becomes a block of each."""
    # By namespace, the new numbers by the old ones: 0, which is also that of "no block", if there is none yet.
    numbers: list[array[int] | defaultdict[int, int]] = [array("I", bytes(4 * len(trace.parents)))]
    if len(names) > 1:  # each may use little of it
        numbers = [defaultdict(int) for _ in names]
    parents = array("I", [NO_PARENT])
    blocks = array("I")
    for request in range(len(trace)):
        mine = numbers[namespaces[request]]
        for block in trace.chain(request):
            number = mine[block]
            if not number:
                number = mine[block] = len(parents)
                parents.append(mine[trace.parents[block]])
            blocks.append(number)
    return replace(trace, blocks=blocks, parents=parents, namespaces=namespaces, namespace_names=names)


class Chains:
    """Gives blocks their numbers and keeps their parents; what readers and generators share."""

    def __init__(self) -> None:
        self.parents = array("I", [NO_PARENT])

    def extend(self, parent: int) -> int:
        """A new block behind ``parent``."""
        self.parents.append(parent)
        return len(self.parents) - 1
