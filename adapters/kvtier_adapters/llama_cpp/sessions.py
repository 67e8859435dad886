"""One sequence and one store: capture what the context holds, restore what a prompt needs.

Capture writes what is new since the last one as pieces (:mod:`kvtier_adapters.prefix`); restore loads the
longest stored prefix piece by piece, the store reading ahead while llama.cpp takes the last piece over.
Memories that cannot be cut off anywhere have *checkpoints* besides (:mod:`.memory`): a restore then goes to the
deepest position that has one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import llama_cpp

from kvtier import ReadOnlyStore
from kvtier_adapters.llama_cpp.advice import Advising
from kvtier_adapters.llama_cpp.binding import Binding, as_tokens, common_prefix
from kvtier_adapters.llama_cpp.capture import Recorder
from kvtier_adapters.llama_cpp.checkpoints import Action
from kvtier_adapters.llama_cpp.context import Context
from kvtier_adapters.llama_cpp.explain import PromptExplanation, explain
from kvtier_adapters.llama_cpp.fingerprint import Fingerprint
from kvtier_adapters.llama_cpp.held import Held, LlamaTokens, SequenceTokens, Tokens
from kvtier_adapters.llama_cpp.memory import Memory, detect, opaque, refusal
from kvtier_adapters.llama_cpp.native import NativeError
from kvtier_adapters.llama_cpp.options import Options
from kvtier_adapters.llama_cpp.restore import Restorer
from kvtier_adapters.llama_cpp.state import StateLayoutError, StateMismatch
from kvtier_adapters.llama_cpp.stats import SessionStats
from kvtier_adapters.llama_cpp.window import first_needed

if TYPE_CHECKING:
    from llama_cpp import Llama

    from kvtier import Store


class Session(Advising):
    """Captures and restores the state of one sequence of a context in ``store``.

    No method raises because of the store, the engine's state or a block in it: that is counted in
    ``stats``, the sequence is emptied where it may be in doubt, and the prompt is evaluated from zero. The
    constructor does raise: ``OSError`` if the model file cannot be read, and what the store raises when it
    cannot be used. A context that has no state to store is refused: ``stats.refused`` says why, and
    every method then does nothing.

    Thread rules: those of the context, one thread at a time; the advice of :class:`.Advising` may come from any. A
    capture that is asked for while the context is in use (by a generator that is closed late, in another thread or by
    the garbage collector) does nothing.
    """

    def __init__(
        self, context: Context, sequence: int, held: Held, store: Store, options: Options, *, refused: str = ""
    ) -> None:
        self.options = options
        self.stats = SessionStats(refused=refused or refusal(context) or "")
        self._busy = threading.Lock()
        self._read_only = False
        self._held = held
        self._to: Binding | None = None
        if not self.stats.refused:
            self._bind(context, sequence, store, detect(context))
            if self._to and self._to.memory.checkpoints and len(held.tokens):
                self._to.empty()  # how it came about is not known: rows may be missing that nothing tells of

    def _bind(self, context: Context, sequence: int, store: Store, memory: Memory) -> None:
        self._to = Binding(context, sequence, memory, self._held, store, self.options, self.stats)
        self._recorder = Recorder(self._to)
        self._restorer = Restorer(self._to)
        self.stats.memory = str(memory)

    @property
    def fingerprint(self) -> Fingerprint | None:
        """What the state is stored under; None where it is refused."""
        return self._to.fingerprint if self._to else None

    @property
    def memory(self) -> Memory | None:
        """How the state is taken apart; None where it is refused."""
        return self._to.memory if self._to else None

    @property
    def checkpoints(self) -> bool:
        """Whether only checkpoints can be gone back to."""
        return self._to is not None and self._to.memory.checkpoints

    @property
    def held(self) -> int:
        """How many tokens the sequence holds."""
        return len(self._held.tokens)

    def flush(self) -> None:
        """Wait until what was captured is durable; what the store could not write is counted."""
        if self._to is None or self._read_only:
            return
        try:
            self._to.store.flush()
        except ReadOnlyStore:
            self._read_only = True
        except Exception as error:
            self.stats.count(error)

    def persist(self) -> None:
        """Capture all that the sequence holds and wait until it is durable: again, where the write queue was full."""
        if self._to is None:
            return
        self.flush()
        taken = skipped = -1
        while skipped != self.stats.captures_skipped and taken != self._to.taken:  # else the store takes no more
            taken, skipped = self._to.taken, self.stats.captures_skipped
            self.capture(checkpoint=True)
            self.flush()

    def position(self, prompt: Sequence[int] | Tokens) -> int:
        """Bring the sequence to the longest prefix of ``prompt`` that is live or stored, whichever helps.

        Returns how many tokens need no evaluation; the sequence then holds just these. It is less than
        ``len(prompt)``, unless the logits after the prompt are ready to sample from.
        """
        self.stats.prompts += 1
        self._capture_what_goes(prompt)
        action, resume = self._reach(prompt, whole=False)
        self.stats.restores_avoided += action is Action.LIVE
        self.stats.cold_starts += action is Action.COLD
        return resume

    def restore(self, prompt: Sequence[int] | Tokens) -> int:
        """Like :meth:`position`, but the sequence may then hold the whole prompt, with no logits."""
        self._capture_what_goes(prompt)
        _, held = self._reach(prompt, whole=True)
        return held

    def stored_tokens(self, prompt: Sequence[int] | Tokens) -> int:
        """How many tokens of ``prompt`` could be restored. Reads no payload."""
        if self._to is None or self.stats.refused:
            return 0
        try:
            plan = self._to.plan(self._to.keys(as_tokens(prompt)), len(prompt))
        except Exception as error:
            self.stats.count(error)
            return 0
        return plan.end if plan else 0

    def explain(self, prompt: Sequence[int] | Tokens) -> PromptExplanation:
        """How much of ``prompt`` would be restored, from which tier, and why not the rest. Reads no payload.

        Raises what the store raises when it cannot be used.
        """
        tokens = as_tokens(prompt)
        if self._to is None or self.stats.refused:
            return PromptExplanation(len(tokens), 0, 0, {}, 0, 0, f"Nothing is stored: {self.stats.refused}.")
        live = common_prefix(self._held.tokens, tokens)
        return explain(self._to, tokens, self._to.others, live=live)

    def capture(self, end: int | None = None, *, tail: bool = True, checkpoint: bool = False) -> None:
        """Store what the sequence holds up to token ``end`` and the store does not have yet.

        ``tail``: with the rows after the last whole block. ``checkpoint``: so that ``end`` can be gone back to
        (of a recurrent memory only if the sequence ends there).
        """
        if self._to is None or self.stats.refused or self._read_only:
            return
        if not self._busy.acquire(blocking=False):
            return
        try:
            held = self._held.tokens
            length = len(held) if end is None else min(end, len(held))
            if not tail:
                length -= length % self.options.block_tokens
            self._record(held[:length].copy(), checkpoint)
        except ReadOnlyStore:
            self._read_only = True
        except Exception as error:
            self.stats.count(error)
        finally:
            self._busy.release()

    def _record(self, tokens: Tokens, checkpoint: bool) -> None:
        assert self._to is not None
        try:
            self._recorder.record(tokens, checkpoint=checkpoint)
        except StateMismatch:
            raise
        except StateLayoutError as error:
            if self._to.memory.why_opaque:
                raise
            native = self._to.native
            self._bind(native.context, native.sequence, self._to.store, opaque(f"unknown layout: {error}"))

    def _capture_what_goes(self, prompt: Sequence[int] | Tokens) -> None:
        """Store what the next prompt is about to overwrite."""
        held = self._held.tokens
        if common_prefix(held, as_tokens(prompt)) < len(held):
            self.capture(checkpoint=True)

    def _reach(self, prompt: Sequence[int] | Tokens, *, whole: bool) -> tuple[Action, int]:
        if self._to is None or self.stats.refused:
            self._held.hold(self._held.tokens, 0)
            return Action.COLD, 0
        with self._busy:
            return self._reach_with(self._to, as_tokens(prompt), whole)

    def _reach_with(self, to: Binding, prompt: Tokens, whole: bool) -> tuple[Action, int]:
        action, resume = Action.COLD, 0
        try:
            action, resume = self._restorer.reach(prompt, whole=whole)
            if resume < len(self._held.tokens):
                to.native.truncate(resume)
                self._held.hold(self._held.tokens, resume)
        except Exception as error:
            self.stats.count(error)
            action = Action.COLD
        if action is not Action.COLD and resume > 0:
            return action, resume
        try:
            to.empty()
        except Exception as error:
            self.stats.count(error)
        return Action.COLD, 0


class LlamaSession(Session):
    """Of the one sequence that a ``Llama`` uses. :func:`.attach` makes it, and calls it at the right moments."""

    def __init__(self, llm: Llama, store: Store, options: Options | None = None) -> None:
        chosen = options or Options()
        self._tokens = LlamaTokens(llm)
        self._before_drafts: tuple[Tokens, bytes] | None = None
        context = Context.of(llm, chosen.identity)
        super().__init__(context, 0, self._tokens, store, chosen, refused=_refusal_of_llama(llm))

    @property
    def foreign(self) -> bool:
        """Whether the context holds something that this session did not see evaluated: it is left alone."""
        return self._tokens.foreign

    def watch(self) -> None:
        """From here on every evaluation goes through :meth:`evaluate`, and every reset is told to :meth:`reset`."""
        self._tokens.watch()

    def evaluate(self, tokens: Sequence[int], evaluate: Callable[[Sequence[int]], object]) -> None:
        """Call ``evaluate``, which decodes ``tokens`` behind those in the context, and count those that were."""
        before = self._tokens.counted
        try:
            with self._busy:
                evaluate(tokens)
        finally:
            self._tokens.evaluated_from(before)
            self.stats.tokens_evaluated += self._tokens.counted - before

    def reset(self) -> None:
        """The ``Llama`` was reset."""
        self._tokens.forget()

    def mend(self) -> list[int]:
        """Make the context fit to evaluate behind its tokens; those to evaluate again first.

        ``Llama`` drops its last tokens by counting fewer (drafts that were refused, a prompt that begins alike).
        Where the memory cannot follow, its evaluation would go on from rows or a state that are not there, and
        say nothing. If this cannot be told or cannot be mended, nothing of the context is stored until it is reset.
        """
        try:
            return self._mend()
        except Exception as error:
            self.stats.count(error)
            self._tokens.distrust()
            return []

    def _mend(self) -> list[int]:
        if self._to is None or self.stats.refused or self.foreign:
            return []
        native, memory = self._to.native, self._to.memory
        tokens: Tokens = self._held.tokens.copy()
        end, n_tokens = native.pos_max + 1, len(tokens)
        if n_tokens == 0:
            native.clear()
            return []
        intact = end == n_tokens if memory.snapshots else end >= n_tokens
        if intact and (not memory.n_swa or memory.snapshots or native.pos_min <= first_needed(n_tokens, memory.n_swa)):
            return []
        self.stats.mended += 1
        resume = self._to_before_drafts(tokens) or self._reach(tokens, whole=True)[1]
        return [int(token) for token in tokens[resume:]]

    def before_drafts(self) -> None:
        """Remember the state that drafts are evaluated from, where refused ones cannot be cut off."""
        self._before_drafts = None
        if self._to is None or not self._to.memory.snapshots or len(self._held.tokens) == 0:
            return
        try:
            self._before_drafts = self._held.tokens.copy(), bytes(self._to.native.capture_snapshot())
        except Exception as error:
            self.stats.count(error)

    def _to_before_drafts(self, tokens: Tokens) -> int:
        """Go back to what :meth:`before_drafts` remembers, if ``tokens`` go on from there: how many then; else 0."""
        remembered, self._before_drafts = self._before_drafts, None
        if self._to is None or remembered is None:
            return 0
        before, snapshot = remembered
        position = len(before)
        if common_prefix(before, tokens) < position:
            return 0
        try:
            with self._busy:
                self._to.native.restore_snapshot(memoryview(snapshot), position)
                self._to.native.truncate(position)
                self._held.hold(self._held.tokens, position)
        except (NativeError, StateLayoutError) as error:
            self.stats.count(error)
            return 0
        return position


def _refusal_of_llama(llm: Llama) -> str:
    """Why the way that this ``Llama`` is used leaves nothing to restore; empty if it does not."""
    if any(callable(handler) and hasattr(handler, "clip_model_path") for handler in _handlers(llm.chat_handler)):
        return "multimodal chat handler"
    if llm._logits_all and llm.draft_model is None:
        return "logits_all: a restored prefix has no logits"
    return ""


def _handlers(handler: object) -> Iterator[object]:
    """A chat handler, and what it wraps: ``functools.partial``, or a function within one as ``llama_cpp.server``'s."""
    yield handler
    yield getattr(handler, "func", None)
    for cell in getattr(handler, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty one
            yield cell.cell_contents


class SequenceSession(Session):
    """Of a sequence whose user decodes by itself; made by :func:`session`.

    For each prompt: :meth:`position`, decode the rest, :meth:`decoded` with it, sample; then each generated token is
    decoded and noted the same way; :meth:`capture` when there is time, at the latest before the sequence is
    given up. Everything in ``position`` and ``capture`` must happen between two decodes of the context.
    """

    def __init__(self, context: Context, sequence: int, store: Store, options: Options) -> None:
        tokens = SequenceTokens(context.n_ctx)
        super().__init__(context, sequence, tokens, store, options)
        self._tokens = tokens
        self._context, self._sequence = context, sequence
        if self._to is not None:
            self._to.empty()  # whatever was in it, its tokens are not known

    @property
    def tokens(self) -> list[int]:
        """The tokens that the sequence holds."""
        return [int(token) for token in self._tokens.tokens]

    def _reach(self, prompt: Sequence[int] | Tokens, *, whole: bool) -> tuple[Action, int]:
        if self.stats.refused and self._context.memory is not None:
            llama_cpp.llama_memory_seq_rm(self._context.memory, self._sequence, -1, -1)
        return super()._reach(prompt, whole=whole)

    def decoded(self, tokens: Sequence[int] | Tokens) -> None:
        """``tokens`` were decoded at the end of the sequence. ``ValueError`` if the context cannot hold them."""
        self._tokens.append(as_tokens(tokens))
        self.stats.tokens_evaluated += len(tokens)

    def truncate(self, length: int) -> int:
        """Take back all tokens from ``length`` on (drafts that were refused); how many the sequence then holds.

        Fewer than ``length`` where the memory can only be gone back to checkpoints: decode the rest again.
        """
        if length < len(self._tokens.tokens):
            self._reach(self._tokens.tokens[:length].copy(), whole=True)
        return len(self._tokens.tokens)

    def close(self) -> None:
        """Store what is not stored yet and empty the sequence. It may be opened again."""
        self.capture(checkpoint=True)
        if self._to is not None:
            self._to.empty()


def session(context: Context | Llama, sequence: int, store: Store, **options: object) -> SequenceSession:
    """A session for one sequence of a context that its user decodes by itself; ``options``: those of ``Options``.

    The sequence is emptied. Raises ``ValueError`` for an id that the context does not have, ``OSError`` if the
    model file cannot be read, and what the store raises when it cannot be used.
    """
    chosen = Options(**options)  # type: ignore[arg-type]
    made = context if isinstance(context, Context) else Context.of(context, chosen.identity)
    if not 0 <= sequence < made.n_seq_max:
        raise ValueError(f"sequence {sequence} of a context with {made.n_seq_max}")
    return SequenceSession(made, sequence, store, chosen)
