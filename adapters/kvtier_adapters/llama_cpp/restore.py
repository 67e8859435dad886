"""From the store to the context: the longest stored prefix, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from kvtier import Hit
from kvtier_adapters.llama_cpp import checkpoints
from kvtier_adapters.llama_cpp.binding import Binding, common_prefix
from kvtier_adapters.llama_cpp.checkpoints import Action, Live
from kvtier_adapters.llama_cpp.held import Tokens
from kvtier_adapters.llama_cpp.lookup import Plan
from kvtier_adapters.llama_cpp.native import NativeError
from kvtier_adapters.llama_cpp.snapshots import Snapshot
from kvtier_adapters.llama_cpp.state import (
    Layout,
    StateLayoutError,
    blank_rows,
    check_rows,
    check_window,
    select_rows,
)
from kvtier_adapters.llama_cpp.window import LANES, Blank, Gap
from kvtier_adapters.prefix import Piece

if TYPE_CHECKING:
    from kvtier import Miss

_ATTEMPTS = 4  # restores tried for one prompt when blocks turn out to be missing

Check = Callable[[memoryview], None]


class Restorer:
    """Brings the context of its binding to a prefix of a prompt.

    A block that is missing, damaged or malformed ends one attempt; the next one goes for what is left. What
    was loaded before it stays where that is of use: those rows were checked and complete.
    """

    def __init__(self, binding: Binding) -> None:
        self._to = binding

    def live(self, tokens: Tokens) -> Live:
        """What the context holds of ``tokens``."""
        held, native = self._to.held, self._to.native
        return Live(
            common=common_prefix(held.tokens, tokens),
            n_tokens=len(held.tokens),
            pos_min=native.pos_min,
            pos_max=native.pos_max,
            logits_ready=held.logits_ready,
            truncatable=not self._to.memory.snapshots,
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
            plan = to.plan(keys, n_prompt - 1, missing) if worthwhile else None
            stored = plan.end if plan else 0
            action = checkpoints.decide(live, stored, n_prompt, least)
            if plan is None or action is not Action.RESTORE:
                if action is Action.COLD and n_prompt > least and not missing:
                    to.stats.misses[to.why_not(tokens, keys, to.others)] += 1
                return self._restored(before, live) if missing and live > before else (action, live)
            resume = min(stored, n_prompt - 1)
            failed = self._try_load(plan, tokens, resume)
            if failed is None:
                return self._restored(before, resume)
            missing.add(failed)

    def _restored(self, before: int, now: int) -> tuple[Action, int]:
        self._to.stats.restores += 1
        self._to.stats.tokens_restored += now - before
        return Action.RESTORE, now

    def _try_load(self, plan: Plan, tokens: Tokens, resume: int) -> bytes | None:
        """:meth:`_load`; blocks that llama.cpp refused are captured anew, though the store has them intact.

        Among several sequences there may only have been no room for them.
        """
        try:
            return self._load(plan, tokens, resume)
        except NativeError:
            if self._to.native.context.n_seq_max == 1:
                self._to.unusable.update(piece.key for piece in (*plan.pieces, *plan.window))
                self._to.unusable.update([plan.snapshot.key] if plan.snapshot else [])
            raise

    def _load(self, plan: Plan, tokens: Tokens, resume: int) -> bytes | None:
        """Load the plan and go back to ``resume``; None, or the key of a block that was not to be had."""
        to, native = self._to, self._to.native
        kept = self._keep_live(plan, tokens)
        wanted = plan.pieces[len(kept) :] if to.memory.layout else []
        found = to.store.get_many(to.blocks(plan, len(kept)), namespace=to.namespace, keep=False)
        failed = self._load_rows(wanted, found, kept)
        if failed is not None:
            if not to.memory.checkpoints:
                to.holds(tokens, kept, kept[-1].end if kept else 0)
            return failed
        if to.memory.rows:
            native.truncate(resume)
        if plan.window:
            blobs = []
            for part in plan.window:
                blob = self._checked(next(found), self._check(check_window, part))
                if blob is None:
                    return part.key
                blobs.append(blob)
            self._load_window(plan, blobs, resume if to.ring.cells else plan.end)
            native.truncate(resume)
        if plan.snapshot and not self._load_snapshot(plan.snapshot, found):
            return plan.snapshot.key
        self._check_complete(plan, resume)
        to.holds(tokens, plan.pieces, resume)
        return None

    def _load_rows(self, wanted: Sequence[Piece], found: Iterator[Hit | Miss], kept: list[Piece]) -> bytes | None:
        """Load pieces, and note those that are there in ``kept``; None, or the key of one that was not to be had."""
        if not wanted:
            return None
        with self._to.native.appending() as append:
            for piece in wanted:
                blob = self._checked(next(found), self._check(check_rows, piece))
                if blob is None:
                    return piece.key
                append(blob)
                kept.append(piece)
        return None

    def _keep_live(self, plan: Plan, tokens: Tokens) -> list[Piece]:
        """The plan's pieces whose rows are live and stay; all else in the context is dropped.

        Behind recurrent layers nothing stays: no row can be dropped alone.
        """
        to, native = self._to, self._to.native
        common = 0 if to.memory.snapshots else common_prefix(to.held.tokens, tokens)
        kept = [piece for piece in plan.pieces if piece.end <= common]
        to.held.hold(tokens, 0)  # until all is there: whatever happens, the next evaluation starts from zero
        if kept:
            native.truncate(kept[-1].end)
            if to.memory.n_swa:
                native.drop_window()
        else:
            native.clear()
        return kept

    def _load_window(self, plan: Plan, blobs: Sequence[memoryview], end: int) -> None:
        """Put the window's rows up to ``end`` into the cells that the ring has them in."""
        to, native, ring = self._to, self._to.native, self._to.ring
        assert to.memory.layout is not None
        layout = to.memory.layout.window
        needed = plan.window_from(ring.n_swa)
        for cells in ring.layout(needed, end):
            if isinstance(cells, Gap):
                for _, count in _steps(0, cells.cells, ring.n_swa - 1):  # a row outside of a window may be overwritten
                    native.hold_cells(blank_rows(blobs[0], layout, 0, count))
            elif isinstance(cells, Blank):
                native.valid_from = needed
                for first, count in _steps(cells.start, cells.end, LANES):
                    native.append_window(blank_rows(blobs[0], layout, first, count))
            else:
                first = max(cells.start, needed)  # each row once: a part may begin before the one ahead of it ends
                for part, blob in zip(plan.window, blobs, strict=True):
                    if first < min(part.end, cells.end):
                        native.append_window(select_rows(blob, layout, first, cells.end))
                        first = part.end
        native.release_cells()

    def _load_snapshot(self, snapshot: Snapshot, chunks: Iterator[Hit | Miss]) -> bool:
        """False if it could not be had whole."""
        to = self._to
        blob = bytearray()
        intact = True
        for number, found in enumerate(chunks):
            chunk = self._blob(found)
            if chunk is None:
                to.unusable.add(snapshot.key)  # until it is captured again
                return False
            blob += chunk
            intact = intact and isinstance(found, Hit) and found.meta == snapshot.meta(number)
        try:
            if not intact or len(blob) != snapshot.nbytes:
                raise StateLayoutError("chunks that are not those of the snapshot")
            to.native.restore_snapshot(memoryview(blob), snapshot.end)
        except StateLayoutError:
            to.stats.misses["block malformed"] += 1
            to.unusable.update([snapshot.key, *snapshot.keys(to.secret)])
            return False
        return True

    def _check(self, check: Callable[[memoryview, Layout, int, int], None], piece: Piece) -> Check:
        layout = self._to.memory.layout
        assert layout is not None
        of_piece = layout if check is check_rows else layout.window
        return lambda blob: check(blob, of_piece, piece.start, piece.end)

    def _checked(self, found: Hit | Miss, check: Check) -> memoryview | None:
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
        oldest = plan.window_from(self._to.ring.n_swa) if plan.window else 0
        if self._to.memory.snapshots:
            oldest = end - 1  # a recurrent state has its last position only
        if last != end - 1 or not 0 <= first <= oldest:
            raise NativeError(f"rows {first} to {last} restored, not up to {end - 1}")


def _steps(start: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    """``[start, end)`` in ranges of at most ``most`` (at least 1), as first and count."""
    step = max(1, min(most, LANES))
    for first in range(start, end, step):
        yield first, min(step, end - first)
