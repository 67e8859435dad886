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
        held: Tokens = self._llm.input_ids[: 0 if self.foreign else self.counted]
        return held

    @property
    def counted(self) -> int:
        """What the ``Llama`` says."""
        return int(self._llm.n_tokens)

    @property
    def foreign(self) -> bool:
        """The context holds something else besides tokens that were seen: none of it can be trusted."""
        return self._watching and self.counted > self._seen

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
        self._seen = self.counted

    def evaluated_from(self, start: int) -> None:
        """The tokens from ``start`` on were evaluated just now, behind those that were counted."""
        if start <= self._seen:
            self._seen = self.counted

    def forget(self) -> None:
        """The context was reset."""
        self._seen = 0

    def distrust(self) -> None:
        """What is in the context is in doubt, and so is all that is evaluated behind it, until it is reset."""
        self._seen = -1


class SequenceTokens:
    """Those of a sequence whose user decodes itself and says what: see :meth:`.SequenceSession.decoded`."""

    logits_ready = False  # those of the last decode may be another sequence's

    def __init__(self, capacity: int) -> None:
        self._tokens: Tokens = np.zeros(capacity, dtype=np.int32)
        self._length = 0

    @property
    def tokens(self) -> Tokens:
        return self._tokens[: self._length]

    @property
    def capacity(self) -> int:
        return len(self._tokens)

    def hold(self, tokens: Tokens, length: int) -> None:
        self._tokens[:length] = tokens[:length]
        self._length = length

    def append(self, tokens: Tokens) -> None:
        """``tokens`` were decoded behind the others. ``ValueError`` if the context cannot hold them."""
        end = self._length + len(tokens)
        if end > self.capacity:
            raise ValueError(f"{end} tokens in a context of {self.capacity}")
        self._tokens[self._length : end] = tokens
        self._length = end
