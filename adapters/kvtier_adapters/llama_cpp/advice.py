"""What a session tells its store ahead, by tokens: which prompt comes next, and what becomes of a conversation."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from kvtier_adapters.llama_cpp.binding import Binding, as_tokens, common_prefix
from kvtier_adapters.llama_cpp.checkpoints import Action, decide
from kvtier_adapters.llama_cpp.held import Held, Tokens
from kvtier_adapters.llama_cpp.stats import SessionStats

if TYPE_CHECKING:
    from kvtier import Hint

_T = TypeVar("_T")


class Advising:
    """The part of :class:`.Session` that gives advice.

    Threads: any, also while the model evaluates, but for :meth:`answered`. The caller's thread looks blocks up in the
    index and reads no payload. What the store raises is counted in ``stats``.
    """

    stats: SessionStats
    _busy: threading.Lock
    _held: Held
    _to: Binding | None

    def prefetch(self, prompt: Sequence[int] | Tokens) -> int:
        """Bring up into RAM, in the background, what a restore of ``prompt`` would read; returns how many blocks are on
        their way.

        For a prompt that waits while others are evaluated: what the context holds now is taken for gone by then. One
        that is next needs none, as a restore reads ahead of itself.
        """
        tokens = as_tokens(prompt)
        return self._advise(lambda to: to.store.prefetch(_restored(to, tokens), namespace=to.namespace), 0)

    def cancel_prefetch(self, prompt: Sequence[int] | Tokens) -> int:
        """Undo one :meth:`prefetch` of ``prompt``, as its request was dropped; returns how many blocks are not read."""
        tokens = as_tokens(prompt)
        return self._advise(lambda to: to.store.cancel_prefetch(_restored(to, tokens), namespace=to.namespace), 0)

    def hint(self, prompt: Sequence[int] | Tokens, hint: Hint, *, start: int = 0) -> None:
        """Advise the eviction policies on all that is stored of ``prompt`` behind its first ``start`` tokens.

        Say with ``start`` how much other conversations have in common with this one, such as a system prompt: that does
        not end with it.
        """
        tokens = as_tokens(prompt)

        def tell(to: Binding) -> None:
            pieces = next(to.prefixes(to.keys(tokens)), [])
            blocks = to.all_blocks(piece for piece in pieces if piece.start >= start)
            to.store.hint(blocks, hint, namespace=to.namespace)

        self._advise(tell, None)

    @contextlib.contextmanager
    def pinned(self, prompt: Sequence[int] | Tokens) -> Iterator[None]:
        """Inside, what a restore of a prompt that begins with this one reads is not evicted from any tier, as far as it
        is stored by now."""
        tokens = as_tokens(prompt)

        def pin(to: Binding) -> list[bytes]:
            plan = to.plan(to.keys(tokens), len(tokens))
            blocks = to.blocks(plan) if plan else []
            to.store.pin(blocks, namespace=to.namespace)
            return blocks

        nothing: list[bytes] = []
        blocks = self._advise(pin, nothing)
        try:
            yield
        finally:
            self._advise(lambda to: to.store.unpin(blocks, namespace=to.namespace), None)

    def answered(self) -> int:
        """The request whose tokens the sequence holds has its answer, and was captured: what a restore of them would
        read comes up into RAM, if the store's ``prefetch.policy`` expects the next turn; returns how many blocks do.

        On the thread that uses the context. The policy is asked there, and if it wants them, the blocks are looked up.
        """
        if not self._busy.acquire(blocking=False):
            return 0
        try:
            return self._advise(lambda to: to.store.answered(self._captured(to), namespace=to.namespace), 0)
        finally:
            self._busy.release()

    def _captured(self, to: Binding) -> list[bytes]:
        """The blocks that a restore of what the sequence holds would read. The rows come last: a policy knows a
        conversation by the last block of its chain, and behind its rows the next turn goes on, with another window."""
        common = common_prefix(to.stored, self._held.tokens)
        pieces = [piece for piece in to.pieces if piece.end <= common]
        plan = to.first_plan((pieces[:count] for count in range(len(pieces), 0, -1)), common)
        if plan is None:
            return []
        return [*to.blocks(plan, len(plan.pieces)), *(piece.key for piece in plan.pieces if to.rows)]

    def _advise(self, tell: Callable[[Binding], _T], otherwise: _T) -> _T:
        to = self._to
        if to is None or self.stats.refused:
            return otherwise
        try:
            return tell(to)
        except Exception as error:
            self.stats.count(error)
            return otherwise


def _restored(to: Binding, prompt: Tokens) -> list[bytes]:
    """The blocks that a restore of a prompt into an empty context would read."""
    plan = to.plan(to.keys(prompt), len(prompt) - 1)
    if plan is None or decide(0, plan.end, len(prompt), to.options.restore_min_tokens) is not Action.RESTORE:
        return []
    return to.blocks(plan)
