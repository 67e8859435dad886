"""A store behind a ``llama_cpp.Llama``: one line to attach, one to detach.

::

    attachment = attach(llm, store)
    ...                              # complete, chat, stream as before
    attachment.detach()

It replaces methods *on the instance*: ``generate`` decides, before llama-cpp-python's own prefix
matching, where the prompt goes on (live, from the store, or from zero) and captures behind the answer;
``eval`` and ``reset`` are told to the session; ``save_state`` and ``load_state`` deal in the tokens alone, the
state is in the store. ``Llama.set_cache``
gets an object that captures at the end of a completion. Detaching puts back what was there.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from llama_cpp.llama import LlamaState
from llama_cpp.llama_cache import BaseLlamaCache

from kvtier_adapters.llama_cpp.explain import PromptExplanation
from kvtier_adapters.llama_cpp.options import Options
from kvtier_adapters.llama_cpp.placement import checkpoints_of
from kvtier_adapters.llama_cpp.sessions import LlamaSession
from kvtier_adapters.llama_cpp.stats import SessionStats
from kvtier_adapters.llama_cpp.turns import Turns

if TYPE_CHECKING:
    from llama_cpp import Llama

    from kvtier import Hint, Store

_PATCHED = ("generate", "eval", "reset", "save_state", "load_state")
_ATTACHED = "_kvtier_attachment"


def attach(llm: Llama, store: Store, **options: Any) -> Attachment:
    """Back ``llm`` with ``store``; ``options`` are the fields of :class:`.options.Options`.

    From here on nothing that the store or the adapter does raises into inference. Here it may: ``OSError``
    if the model file cannot be read, a ``KvtierError`` if the store cannot be used, ``ValueError`` if ``llm`` is
    attached already. A model whose state is of another kind runs as if nothing were attached, and
    ``attachment.stats.refused`` says why.
    """
    if _ATTACHED in vars(llm):
        raise ValueError("this model is attached already; detach it first")
    proxy = cast("Llama", weakref.proxy(llm))
    return Attachment(llm, LlamaSession(proxy, store, Options(**options)))


@dataclass(frozen=True)
class Progress:
    """How far :meth:`Attachment.read` is, in tokens."""

    tokens: int
    done: int
    restored: int
    """Of those done, how many were in the store (or the context) already."""


class StoredState(LlamaState):
    """What ``save_state`` returns while attached: the tokens; their state is in the store."""

    def __init__(self, tokens: Any, seed: int) -> None:
        super().__init__(
            input_ids=tokens,
            scores=np.empty((0, 0), dtype=np.single),
            n_tokens=len(tokens),
            llama_state=b"",
            llama_state_size=0,
            seed=seed,
        )


class StoreCache(BaseLlamaCache):
    """The face that ``Llama.set_cache`` asks for. Prompts are looked up in ``generate``, so it never finds one."""

    def __init__(self, session: LlamaSession) -> None:
        super().__init__(capacity_bytes=0)
        self._session = session

    @property
    def cache_size(self) -> int:
        """Bytes of state that this attachment has put into the store."""
        stats = self._session.stats
        return stats.bytes_captured + stats.checkpoint_bytes

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        raise KeyError("restored when generation starts")

    def __contains__(self, key: Sequence[int]) -> bool:
        return self._session.stored_tokens(key) > 0

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        self._session.capture(checkpoint=True)


class Attachment:
    """A model with its session; a context manager that detaches.

    It holds the model weakly, so that ``del llm`` frees it at once, attached or not.
    """

    def __init__(self, llm: Llama, session: LlamaSession) -> None:
        self.session = session
        self._ref = weakref.ref(llm)
        self._turn = object()
        self._turns = Turns(llm)
        self._cache = llm.cache
        self._before = {name: vars(llm)[name] for name in _PATCHED if name in vars(llm)}
        self._signature = inspect.signature(llm.generate)
        self._attached = not session.stats.refused
        if not self._attached:
            return
        for name in _PATCHED:
            setattr(llm, name, getattr(self, "_" + name))
        setattr(llm, _ATTACHED, self)
        session.watch()
        llm.set_cache(StoreCache(session))

    @property
    def stats(self) -> SessionStats:
        return self.session.stats

    def detach(self) -> None:
        """Capture what is not stored yet and give the model its own methods and cache back."""
        llm = self._ref()
        if not self._attached or llm is None:
            return
        self._attached = False
        self._turn = object()
        self.session.capture(checkpoint=True)
        for name in (*_PATCHED, _ATTACHED):
            delattr(llm, name)
        for name, value in self._before.items():
            setattr(llm, name, value)
        if isinstance(llm.cache, StoreCache):
            llm.set_cache(self._cache)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    @property
    def _llm(self) -> Llama:
        llm = self._ref()
        if llm is None:
            raise ReferenceError("the model is gone")
        return llm

    def _original(self, name: str) -> Any:
        """The method that ``name`` was before attaching."""
        if name in self._before:
            return self._before[name]
        return functools.partial(getattr(type(self._llm), name), self._llm)

    # -- what takes the place of the model's methods -----------------------------------------------------

    def _eval(self, tokens: Sequence[int]) -> None:
        again = self.session.mend()
        if again:
            self._evaluate(again)
        if self._llm.draft_model is not None and len(tokens) > 1:
            self.session.before_drafts()
        self._evaluate(tokens)

    def _evaluate(self, tokens: Sequence[int]) -> None:
        self.session.evaluate(tokens, self._original("eval"))

    def _reset(self) -> None:
        self._original("reset")()
        self.session.reset()

    def _generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Any, None]:
        bound = self._signature.bind(tokens, *args, **kwargs)
        prompt = list(tokens)
        self._turn = turn = object()
        if not self._attached or self.stats.refused or self.session.foreign or not prompt:
            yield from self._original("generate")(*bound.args, **bound.kwargs)
            return
        if bound.arguments.get("reset", True):
            length = len(prompt)
            bound.arguments.update(tokens=self._enter(prompt), reset=False)
        else:
            length = self._llm.n_tokens + len(prompt)
        inner = self._original("generate")(*bound.args, **bound.kwargs)
        yield from _Turn(self, turn, length).follow(inner)

    def _enter(self, prompt: list[int]) -> list[int]:
        """Position the context for ``prompt``; the tokens that remain for ``generate`` to evaluate.

        What is before the last checkpoint inside the prompt is evaluated here: an interrupted long document goes
        on at the last capture.
        """
        session = self.session
        done = session.position(prompt)
        for position in self._segments(prompt, done):
            session.capture(tail=session.checkpoints, checkpoint=True)
            done = position
        done = self._all_but_last(prompt, done)
        return prompt[done:]

    def _segments(self, prompt: list[int], start: int) -> Iterator[int]:
        """Evaluate ``prompt`` from ``start`` up to its last checkpoint but the end: how far it is, each time.

        The segments are whole batches where nothing else decides, so that they are those that ``eval`` would
        have made of the whole.
        """
        done = start
        for position in self._checkpoints(prompt, start):
            self._llm.eval(prompt[done:position])
            done = position
            yield done

    def _all_but_last(self, prompt: list[int], done: int) -> int:
        """With ``reproducible``, evaluate what leaves the last token for a batch of its own; how far it is then."""
        if self.session.options.reproducible and len(prompt) - done > 1:
            self._llm.eval(prompt[done:-1])
            return len(prompt) - 1
        return done

    def _checkpoints(self, prompt: list[int], start: int) -> list[int]:
        """Where checkpoints are taken inside ``prompt``. Plain attention is only captured every so often."""
        options, n_batch = self.session.options, self._llm.n_batch
        memory = self.session.memory
        needed = memory is not None and memory.checkpoints
        return checkpoints_of(
            start,
            len(prompt),
            self._turns.starts(prompt) if needed and options.checkpoint_user_messages else [],
            options,
            n_ubatch=int(self._llm.context_params.n_ubatch),
            step=max(1, options.checkpoint_tokens // n_batch) * n_batch,
            steps_back=memory is None or not memory.snapshots,
        )

    def explain(self, tokens: Sequence[int]) -> PromptExplanation:
        """How much of a prompt would be restored, from which tier, and why not the rest. Reads no payload.

        Raises what the store raises when it cannot be used.
        """
        return self.session.explain(tokens)

    def prefetch(self, tokens: Sequence[int]) -> int:
        """A prompt waits for its turn: bring up into RAM, in the background, what its restore would read; returns how
        many blocks are on their way. Any thread, also while the model evaluates; a failing store is counted.

        One whose turn is next needs none: its restore reads ahead of itself.
        """
        return self.session.prefetch(tokens)

    def cancel_prefetch(self, tokens: Sequence[int]) -> int:
        """Undo one ``prefetch`` of a prompt, as its request was dropped; returns how many blocks are not read. Any
        thread; a failing store is counted."""
        return self.session.cancel_prefetch(tokens)

    def hint(self, tokens: Sequence[int], hint: Hint, *, start: int = 0) -> None:
        """Advise the eviction policies on all that is stored of a conversation: that it ended, when it will probably go
        on, how important it is. Any thread; a failing store is counted.

        The first ``start`` tokens are left out: a system prompt does not end with one conversation.
        """
        self.session.hint(tokens, hint, start=start)

    def pinned(self, tokens: Sequence[int]) -> AbstractContextManager[None]:
        """Inside, what is stored of ``tokens`` by now, and can be restored, is evicted from no tier. Any thread; a
        failing store is counted."""
        return self.session.pinned(tokens)

    def read(self, tokens: Sequence[int], progress: Callable[[Progress], None] | None = None) -> Progress:
        """Evaluate a long document in segments, each stored before the next one: to be gone on from after a kill.

        ``progress`` is called before the first segment and after each. What it reports as done is durable, unless
        ``stats.errors`` counts a failure of the store: the same call in a new process evaluates the rest only. A
        prompt that begins with ``tokens`` then goes on behind them. Raises ``ValueError`` if the context cannot
        hold ``tokens``, and what ``Llama.eval`` and ``progress`` raise.
        """
        prompt, session = list(tokens), self.session
        if len(prompt) > self._llm.n_ctx():
            raise ValueError(f"{len(prompt)} tokens in a context of {self._llm.n_ctx()}")
        self._turn = object()
        restored = session.restore(prompt)
        for done in self._to_end(prompt, restored):
            session.persist()
            if progress:
                progress(Progress(len(prompt), done, restored))
        return Progress(len(prompt), len(prompt), restored)

    def _to_end(self, prompt: list[int], start: int) -> Iterator[int]:
        """Evaluate ``prompt`` from ``start`` to its end: how far it is, from the beginning on."""
        yield start
        done = start
        for done in self._segments(prompt, start):
            yield done
        if done < len(prompt):
            done = self._all_but_last(prompt, done)
            self._llm.eval(prompt[done:])
            yield len(prompt)

    def _save_state(self) -> LlamaState:
        if self.session.foreign:
            state: LlamaState = self._original("save_state")()
            return state
        self.session.capture(checkpoint=True)
        return StoredState(self._llm._input_ids.copy(), self._llm._seed)

    def _load_state(self, state: LlamaState) -> None:
        if not isinstance(state, StoredState):
            self._original("load_state")(state)
            return
        self.session.capture(checkpoint=True)
        held = self.session.restore(state.input_ids)
        if held < state.n_tokens:
            self._llm.eval(state.input_ids[held:].tolist())
            self._llm._requires_eval = True
        self._llm._seed = state.seed


class _Turn:
    """Follows one generator and captures behind it; ``length``: tokens evaluated before the first answer."""

    def __init__(self, attachment: Attachment, turn: object, length: int) -> None:
        self._attachment = attachment
        self._session = attachment.session
        self._id = turn
        self._length = length  # tokens that are certain: drafts of a draft model may be evaluated beyond
        self._first = True

    def follow(self, inner: Generator[int, Any, None]) -> Generator[int, Any, None]:
        sent: Any = None
        started = False
        try:
            while True:
                try:
                    token = inner.send(sent)
                except StopIteration:
                    return
                if started:
                    self._length += 1
                started = True
                sent = yield token
                if self._current:
                    self._capture_behind()
        finally:
            inner.close()
            if started and self._current:
                self._session.capture(self._length, checkpoint=True)
                self._session.answered()

    @property
    def _current(self) -> bool:
        """False once another prompt has taken the context over, or the attachment is gone."""
        return self._attachment._turn is self._id

    def _capture_behind(self) -> None:
        options = self._session.options
        if self._first:
            self._first = False  # the first token is out: storing the prompt delays nobody
            self._session.capture(self._length, checkpoint=True)
        elif self._length % options.block_tokens == 0:
            self._session.capture(self._length, tail=False, checkpoint=self._length % options.checkpoint_tokens == 0)
