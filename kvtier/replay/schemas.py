"""The two schemas of trace lines, each a class that turns the JSON object of one line into a request. A line of either
may name a ``namespace``.

A line that is refused (:class:`BadLine`) leaves no trace in the object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from kvtier.blocks import NAMESPACE_BYTES_MAX
from kvtier.policy.base import NO_PARENT
from kvtier.replay.trace import Chains, Request

_TIME_MAX = 1e18
_TOKENS_MAX = (1 << 32) - 1
_SHOWN_MAX = 24  # characters of a value


class BadLine(ValueError):
    """The line is not one of this schema; the text says why."""


class Schema(Protocol):
    """How one kind of trace is read."""

    block_tokens: int
    chains: Chains

    def request(self, row: Mapping[str, Any]) -> Request:
        """The request of one line. Raises :class:`BadLine`."""


class BlockHashes:
    """Block hashes, as published with Mooncake: ``timestamp`` (ms), ``input_length`` and ``output_length`` (tokens) and
    ``hash_ids``, one for each 512 tokens of the input, the last block possibly cut short. An id names the whole prefix
    up to its block, so it always follows the same id."""

    FIELDS = frozenset({"timestamp", "input_length", "output_length", "hash_ids"})
    block_tokens = 512

    def __init__(self) -> None:
        self.chains = Chains()
        self._numbers: dict[int, int] = {}

    def request(self, row: Mapping[str, Any]) -> Request:
        time = _number(row, "timestamp") / 1e3
        tokens = _length(row, "input_length")
        _length(row, "output_length")
        namespace = _namespace(row)
        ids = row.get("hash_ids")
        if type(ids) is not list or not all(type(i) is int for i in ids):
            raise BadLine("hash_ids is not a list of integers")
        if len(ids) != -(-tokens // self.block_tokens):
            blocks = -(-tokens // self.block_tokens)
            raise BadLine(
                f"{len(ids)} hash_ids, and input_length {tokens} makes {blocks} blocks of {self.block_tokens}"
            )
        self._check_chain(ids)
        parent = NO_PARENT
        blocks_of = []
        for each in ids:
            if each not in self._numbers:
                self._numbers[each] = self.chains.extend(parent)
            parent = self._numbers[each]
            blocks_of.append(parent)
        return Request(time, tokens, blocks_of, None, namespace)

    def _check_chain(self, ids: list[int]) -> None:
        if len(set(ids)) < len(ids):
            raise BadLine("an id occurs twice in hash_ids")
        parent: int | None = NO_PARENT  # None: a block that is new here
        for each in ids:
            number = self._numbers.get(each)
            if number is not None and self.chains.parents[number] != parent:
                raise BadLine(f"id {each} follows another id than before: ids must stand for whole prefixes")
            parent = number


class AgentCalls:
    """Calls of agents as text: ``timestamp`` (microseconds), ``input``, ``output``, ``session_id``.

    The input's UTF-8 is cut into pieces of 64 bytes, which are 16 tokens at the usual 4 bytes a token; a piece and all
    before it make a block. What is left over at the end makes none, and neither does the output: it counts when it
    comes back as part of a later input.
    """

    FIELDS = frozenset({"timestamp", "input", "output", "session_id"})
    BLOCK_BYTES = 64
    block_tokens = 16
    _BYTES_A_TOKEN = BLOCK_BYTES // block_tokens

    def __init__(self) -> None:
        self.chains = Chains()
        self._numbers: dict[tuple[int, bytes], int] = {}

    def request(self, row: Mapping[str, Any]) -> Request:
        time = _number(row, "timestamp") / 1e6
        text = _text(row, "input").encode("utf-8", "surrogatepass")
        _text(row, "output")
        session = _text(row, "session_id")
        namespace = _namespace(row)
        parent = NO_PARENT
        blocks = []
        for at in range(0, len(text) - self.BLOCK_BYTES + 1, self.BLOCK_BYTES):
            piece = (parent, text[at : at + self.BLOCK_BYTES])
            if piece not in self._numbers:
                self._numbers[piece] = self.chains.extend(parent)
            parent = self._numbers[piece]
            blocks.append(parent)
        return Request(time, -(-len(text) // self._BYTES_A_TOKEN), blocks, session, namespace)


def schema_of(row: Mapping[str, Any]) -> Schema:
    """The schema that has the fields of this line. Raises :class:`BadLine` if none has."""
    for schema in (BlockHashes, AgentCalls):
        if row.keys() >= schema.FIELDS:
            return schema()
    kinds = " nor ".join(", ".join(sorted(s.FIELDS)) for s in (BlockHashes, AgentCalls))
    raise BadLine(f"it has the fields of no known schema: neither {kinds}")


def _number(row: Mapping[str, Any], field: str) -> float:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLine(f"{field} is not a number")
    if not 0 <= value <= _TIME_MAX:  # nor is it NaN
        raise BadLine(f"{field} {str(value)[:_SHOWN_MAX]} is not a time")
    return float(value)


def _length(row: Mapping[str, Any], field: str) -> int:
    value = row.get(field)
    if type(value) is not int:
        raise BadLine(f"{field} is not an integer")
    if not 0 <= value <= _TOKENS_MAX:
        raise BadLine(f"{field} {str(value)[:_SHOWN_MAX]} is not a length")
    return value


def _namespace(row: Mapping[str, Any]) -> str:
    name = _text(row, "namespace") if "namespace" in row else ""
    if len(name.encode("utf-8", "surrogatepass")) > NAMESPACE_BYTES_MAX or not name.isprintable():
        raise BadLine(f"namespace {name[:_SHOWN_MAX]!r} is not a name of up to {NAMESPACE_BYTES_MAX} bytes")
    return name


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if type(value) is not str:
        raise BadLine(f"{field} is not text")
    return value
