"""One model and one store: capture what the context holds, restore what a prompt needs.

Capture writes what is new since the last one as pieces (:mod:`kvtier_adapters.prefix`); restore loads the
longest stored prefix piece by piece, the store reading ahead while llama.cpp takes the last piece over.
For a sliding window the pieces hold the rows of the full-attention layers, and *checkpoints* hold the window
as of one position; a restore then goes to the deepest position that has both.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtier import ReadOnlyStore
from kvtier_adapters.llama_cpp.binding import Binding, Tokens, as_tokens
from kvtier_adapters.llama_cpp.capture import Recorder
from kvtier_adapters.llama_cpp.checkpoints import Action
from kvtier_adapters.llama_cpp.fingerprint import Fingerprint
from kvtier_adapters.llama_cpp.native import refusal
from kvtier_adapters.llama_cpp.options import Options
from kvtier_adapters.llama_cpp.restore import Restorer
from kvtier_adapters.llama_cpp.state import StateLayoutError
from kvtier_adapters.llama_cpp.stats import SessionStats

if TYPE_CHECKING:
    from llama_cpp import Llama

    from kvtier import Store


class Session:
    """Captures and restores the state of ``llm`` in ``store``.

    No method raises because of the store, the engine's state or a block in it: that is counted in
    ``stats``, the context is emptied where it may be in doubt, and the prompt is evaluated from zero. The
    constructor does raise: ``OSError`` if the model file cannot be read, and what the store raises when it
    cannot be used. A model whose state is of another kind is refused: ``stats.refused`` says why, and
    every method then does nothing.

    Thread rules: those of ``Llama``, one thread at a time. A capture that is asked for during another (by a
    generator that the garbage collector closes) does nothing.
    """

    def __init__(self, llm: Llama, store: Store, options: Options | None = None) -> None:
        self.options = options or Options()
        self.stats = SessionStats(refused=refusal(llm) or "")
        self._llm = llm
        self._capturing = threading.Lock()
        self._read_only = False
        self._to: Binding | None = None
        if not self.stats.refused:
            self._to = Binding(llm, store, self.options, self.stats)
            self._recorder = Recorder(self._to)
            self._restorer = Restorer(self._to)

    @property
    def fingerprint(self) -> Fingerprint | None:
        """What the model's state is stored under; None where it is refused."""
        return self._to.fingerprint if self._to else None

    @property
    def windowed(self) -> bool:
        """Whether the model has a sliding window, so that only checkpoints can be gone back to."""
        return self._to is not None and self._to.ring.n_swa > 0

    def position(self, prompt: Sequence[int] | Tokens) -> int:
        """Bring the context to the longest prefix of ``prompt`` that is live or stored, whichever helps.

        Returns how many tokens need no evaluation; ``Llama.n_tokens`` is then the same. It is less than
        ``len(prompt)``, unless the logits after the prompt are ready to sample from.
        """
        self.stats.prompts += 1
        action, resume = self._reach(prompt, whole=False)
        self.stats.restores_avoided += action is Action.LIVE
        self.stats.cold_starts += action is Action.COLD
        return resume

    def restore(self, prompt: Sequence[int] | Tokens) -> int:
        """Like :meth:`position`, but the context may then hold the whole prompt, with no logits."""
        _, held = self._reach(prompt, whole=True)
        return held

    def stored_tokens(self, prompt: Sequence[int] | Tokens) -> int:
        """How many tokens of ``prompt`` could be restored. Reads no payload."""
        if self._to is None or self.stats.refused:
            return 0
        try:
            plan = self._restorer.plan(self._to.keys(as_tokens(prompt)))
        except Exception as error:
            self._count(error)
            return 0
        return plan.end if plan else 0

    def capture(self, end: int | None = None, *, tail: bool = True, checkpoint: bool = False) -> None:
        """Store what the context holds up to token ``end`` and the store does not have yet.

        ``tail``: with the rows after the last whole block. ``checkpoint``: with the window as of there.
        """
        if self._to is None or self.stats.refused or self._read_only:
            return
        if not self._capturing.acquire(blocking=False):
            return
        try:
            length = self._llm.n_tokens if end is None else min(end, self._llm.n_tokens)
            if not tail:
                length -= length % self.options.block_tokens
            tokens = as_tokens(self._llm.input_ids[:length]).copy()
            self._recorder.record(tokens, checkpoint=checkpoint)
        except ReadOnlyStore:
            self._read_only = True
        except StateLayoutError as error:
            self.stats.refused = f"unknown state layout: {error}"
        except Exception as error:
            self._count(error)
        finally:
            self._capturing.release()

    def _reach(self, prompt: Sequence[int] | Tokens, *, whole: bool) -> tuple[Action, int]:
        if self._to is None or self.stats.refused:
            self._llm.reset()
            return Action.COLD, 0
        action, resume = Action.COLD, 0
        try:
            tokens = as_tokens(prompt)
            live = self._restorer.live(tokens)
            if live.common < live.n_tokens:
                self.capture(checkpoint=True)  # about to be overwritten
            action, resume = self._restorer.reach(tokens, whole=whole)
        except Exception as error:
            self._count(error)
            action = Action.COLD
        if action is Action.COLD or resume == 0:
            self._to.empty()
            return Action.COLD, 0
        if resume < self._llm.n_tokens:
            self._llm.n_tokens = resume  # eval drops the rows from here on
            self._llm._requires_eval = True
        return action, resume

    def _count(self, error: Exception) -> None:
        self.stats.errors[type(error).__name__] += 1
        self.stats.last_error = f"{type(error).__name__}: {error}"
