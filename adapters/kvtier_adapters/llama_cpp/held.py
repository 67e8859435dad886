"""The tokens whose state a sequence holds, kept where its user keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from llama_cpp import Llama

Tokens = npt.NDArray[np.int32]


class Held(Protocol):
    """What a session reads and changes of the tokens of its sequence."""

    @property
    def tokens(self) -> Tokens:
        """The tokens in the context, oldest first: a view."""

    @property
    def capacity(self) -> int:
        """How many tokens the context can hold."""

    @property
    def logits_ready(self) -> bool:
        """The last decode was of these tokens, so that sampling can go on without evaluating any."""

    def hold(self, tokens: Tokens, length: int) -> None:
        """Note that the context holds the first ``length`` of ``tokens``, and no logits."""


class LlamaTokens:
    """Those of a ``Llama``, which keeps them itself.

    Once :meth:`watch` was called, only tokens count that were seen to be evaluated (or restored). What else is put
    into the context, the embeddings of an image for one, goes by without token ids that could be trusted.
    """

    def __init__(self, llm: Llama) -> None:
        self._llm = llm
        self._watching = False
        self._seen = 0

    @property
    def tokens(self) -> Tokens:
        n_tokens = int(self._llm.n_tokens)
        held: Tokens = self._llm.input_ids[: min(n_tokens, self._seen) if self._watching else n_tokens]
        return held

    @property
    def foreign(self) -> bool:
        """The context holds something else behind the tokens."""
        return self._watching and int(self._llm.n_tokens) > self._seen

    @property
    def capacity(self) -> int:
        return len(self._llm.input_ids)

    @property
    def logits_ready(self) -> bool:
        return not self._llm._requires_eval

    def hold(self, tokens: Tokens, length: int) -> None:
        self._llm.input_ids[:length] = tokens[:length]
        self._llm.n_tokens = length
        self._llm._requires_eval = True
        self._seen = length

    def watch(self) -> None:
        """From here on each evaluation is told of; what is there now is trusted."""
        self._watching = True
        self._seen = int(self._llm.n_tokens)

    def evaluated(self, count: int) -> None:
        """The last ``count`` tokens were evaluated just now, behind those that are counted."""
        if int(self._llm.n_tokens) - count <= self._seen:
            self._seen = int(self._llm.n_tokens)

    def forget(self) -> None:
        """The context was reset."""
        self._seen = 0


class SequenceTokens:
    """Those of a sequence whose user decodes itself and says what: see :meth:`.SequenceSession.decoded`."""

    def __init__(self, capacity: int) -> None:
        self._tokens: Tokens = np.zeros(capacity, dtype=np.int32)
        self._length = 0
        self.logits_ready = False

    @property
    def tokens(self) -> Tokens:
        return self._tokens[: self._length]

    @property
    def capacity(self) -> int:
        return len(self._tokens)

    def hold(self, tokens: Tokens, length: int) -> None:
        self._tokens[:length] = tokens[:length]
        self._length = length
        self.logits_ready = False

    def append(self, tokens: Tokens) -> None:
        """``tokens`` were decoded behind the others. ``ValueError`` if the context cannot hold them."""
        end = self._length + len(tokens)
        if end > self.capacity:
            raise ValueError(f"{end} tokens in a context of {self.capacity}")
        self._tokens[self._length : end] = tokens
        self._length = end
        self.logits_ready = len(tokens) > 0
