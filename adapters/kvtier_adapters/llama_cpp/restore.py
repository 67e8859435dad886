"""From the store to the context: the longest stored prefix, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from kvtier import Hit
from kvtier_adapters.llama_cpp import checkpoints
from kvtier_adapters.llama_cpp.binding import Binding, Tokens, common_prefix
from kvtier_adapters.llama_cpp.checkpoints import Action, Live
from kvtier_adapters.llama_cpp.native import NativeError
from kvtier_adapters.llama_cpp.state import (
    StateLayoutError,
    blank_rows,
    check_rows,
    check_window,
    select_rows,
)
from kvtier_adapters.llama_cpp.window import Gap
from kvtier_adapters.prefix import Piece, PrefixKeys, stored_prefixes

if TYPE_CHECKING:
    from kvtier import Miss

_ATTEMPTS = 4  # restores tried for one prompt when blocks turn out to be missing
_GAP_BYTES_MAX = 64 << 20  # a bigger gap in a window's cells is not worth its copy: see Ring
_OTHERS_MAX = 8  # other fingerprints asked to explain a miss


@dataclass(frozen=True)
class Plan:
    """A stored prefix that can be restored: its pieces, and the rows of its sliding window where there is one."""

    pieces: Sequence[Piece]
    window: Sequence[Piece]

    @property
    def end(self) -> int:
        return self.pieces[-1].end


class Restorer:
    """Brings the context of its binding to a prefix of a prompt.

    A block that is missing, damaged or malformed ends one attempt; the next one goes for what is left. What
    was loaded before it stays: those rows were checked and complete.
    """

    def __init__(self, binding: Binding) -> None:
        self._to = binding

    def live(self, tokens: Tokens) -> Live:
        """What the context holds of ``tokens``."""
        llm, native = self._to.llm, self._to.native
        return Live(
            common=common_prefix(llm._input_ids, tokens),
            n_tokens=int(llm.n_tokens),
            pos_min=native.pos_min,
            pos_max=native.pos_max,
            logits_ready=not llm._requires_eval,
        )

    def reach(self, tokens: Tokens, *, whole: bool) -> tuple[Action, int]:
        """Do what helps most: the action, and how many of ``tokens`` then need no evaluation.

        The context may hold more than that, and the caller truncates it. ``whole``: all tokens may be
        restored; otherwise one is left, whose evaluation makes the logits. Raises :class:`NativeError` and
        what the store raises: the context is then not to be trusted.
        """
        to = self._to
        n_prompt = len(tokens) + whole
        least = to.options.restore_min_tokens
        keys = to.keys(tokens)
        missing: set[bytes] = set()
        before = None
        while True:
            live = checkpoints.live_resume(self.live(tokens), n_prompt, to.ring.n_swa)
            before = live if before is None else before
            worthwhile = n_prompt - 1 - live >= least and len(missing) < _ATTEMPTS
            plan = self.plan(keys, missing) if worthwhile else None
            stored = plan.end if plan else 0
            action = checkpoints.decide(live, stored, n_prompt, least)
            if plan is None or action is not Action.RESTORE:
                if action is Action.COLD and n_prompt > least and not missing:
                    self._explain(tokens, keys)
                return self._restored(before, live) if missing and live > before else (action, live)
            resume = min(stored, n_prompt - 1)
            failed = self._load(plan, tokens, resume)
            if failed is None:
                return self._restored(before, resume)
            missing.add(failed)

    def _restored(self, before: int, now: int) -> tuple[Action, int]:
        self._to.stats.restores += 1
        self._to.stats.tokens_restored += now - before
        return Action.RESTORE, now

    def plan(self, keys: PrefixKeys, missing: Collection[bytes] = ()) -> Plan | None:
        """The longest stored prefix that this context can be restored to. Reads no payload."""
        for pieces in self._to.prefixes(keys, missing):
            window = self._window_of(pieces, missing)
            if window is not None:
                return Plan(pieces, window)
        return None

    def _window_of(self, pieces: Sequence[Piece], missing: Collection[bytes]) -> list[Piece] | None:
        """The stored rows of the window as of the end of ``pieces``, or None where one that is needed is missing."""
        to, ring = self._to, self._to.ring
        window: list[Piece] = []
        if ring.n_swa == 0:
            return window
        end = pieces[-1].end
        needed, wanted = ring.needed_from(end), ring.wanted_from(end)
        for piece in reversed(pieces):
            if piece.end <= wanted:
                break
            part = to.window_part(piece, missing)
            if part is None or part.start > max(piece.start, needed):
                if piece.end > needed:
                    return None
                break
            window.append(part)
            if part.start > piece.start:
                break  # what is before it is not connected
        return window[::-1]

    def _load(self, plan: Plan, tokens: Tokens, resume: int) -> bytes | None:
        """Load the plan and go back to ``resume``; None, or the key of a block that was not to be had.

        The plan's rows that are live are kept. Not so with a window, whose rows cannot be dropped alone.
        """
        to, native = self._to, self._to.native
        common = 0 if to.ring.n_swa else common_prefix(to.llm._input_ids, tokens)
        kept = [piece for piece in plan.pieces if piece.end <= common]
        wanted = plan.pieces[len(kept) :]
        to.llm.n_tokens = 0  # until all is there: whatever happens, the next eval starts from zero
        if kept:
            native.truncate(kept[-1].end)
        else:
            native.clear()
        keys = [piece.key for piece in (*wanted, *plan.window)]
        found = to.store.get_many(keys, namespace=to.options.namespace, keep=False)
        for piece in wanted:
            check = partial(check_rows, sections=native.sections, start=piece.start, end=piece.end)
            blob = self._checked(next(found), check)
            if blob is None:
                to.holds(tokens, kept, kept[-1].end if kept else 0)
                return piece.key
            native.append_rows(blob)
            kept.append(piece)
        native.truncate(resume)
        if plan.window:
            blobs = []
            for part in plan.window:
                blob = self._checked(next(found), partial(check_window, start=part.start, end=part.end))
                if blob is None:
                    return part.key
                blobs.append(blob)
            self._load_window(plan, blobs, resume if to.ring.cells else plan.end)
            native.truncate(resume)
        self._check_complete(plan, resume)
        to.holds(tokens, kept, resume)
        return None

    def _load_window(self, plan: Plan, blobs: Sequence[memoryview], end: int) -> None:
        """Put the window's rows up to ``end`` into the cells that the ring has them in."""
        native, ring = self._to.native, self._to.ring
        layout = ring.layout(ring.needed_from(plan.end), plan.window[0].start, end)
        row_bytes = blobs[0].nbytes // (plan.window[0].end - plan.window[0].start)
        for cells in layout:
            if isinstance(cells, Gap):
                if cells.cells * row_bytes <= _GAP_BYTES_MAX:
                    native.hold_cells(blank_rows(blobs[0], cells.cells))
                continue
            for part, blob in zip(plan.window, blobs, strict=True):
                if part.start < cells.end and cells.start < part.end:
                    native.append_window(select_rows(blob, cells.start, cells.end))
        native.release_cells()

    def _checked(self, found: Hit | Miss, check: Callable[[memoryview], None]) -> memoryview | None:
        """The block's bytes, if it was found and passes the check."""
        blob = self._blob(found)
        if blob is None:
            return None
        try:
            check(blob)
        except StateLayoutError:
            self._to.stats.misses["block malformed"] += 1
            self._to.unusable.add(found.key)
            return None
        return blob

    def _blob(self, found: Hit | Miss) -> memoryview | None:
        stats = self._to.stats
        if not isinstance(found, Hit):
            stats.misses[f"block {found.reason.value}"] += 1
            return None
        stats.bytes_restored += found.nbytes
        return found.buffers[0] if len(found.buffers) == 1 else memoryview(b"".join(found.buffers))

    def _check_complete(self, plan: Plan, end: int) -> None:
        native = self._to.native
        first, last = native.pos_min, native.pos_max
        oldest = self._to.ring.needed_from(plan.end) if plan.window else 0
        if last != end - 1 or not 0 <= first <= oldest:
            raise NativeError(f"rows {first} to {last} restored, not up to {end - 1}")

    def _explain(self, tokens: Tokens, keys: PrefixKeys) -> None:
        """Count why nothing could be restored: under another fingerprint, without a window, never stored."""
        to = self._to
        reason = "no checkpoint" if next(to.prefixes(keys), None) else "not stored"
        for other in to.others[:_OTHERS_MAX] if reason == "not stored" else ():
            theirs = to.keys(tokens, other)
            if next(stored_prefixes(to.store, theirs, namespace=to.options.namespace), None):
                reason = f"fingerprint differs: {to.fingerprint.difference(other)}"
                break
        to.stats.misses[reason] += 1
