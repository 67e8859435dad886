"""From the context to the store: rows as pieces, and behind them what a checkpoint needs besides.

A capture first takes the bytes out of the context, block after block, and only then gives them to the store: its
worker, once it has something to write, competes with this thread for the interpreter, which each call of llama.cpp
lets go of and has to get back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kvtier import LimitError
from kvtier_adapters.llama_cpp.binding import Binding, common_prefix
from kvtier_adapters.llama_cpp.held import Tokens
from kvtier_adapters.llama_cpp.lookup import window_part
from kvtier_adapters.llama_cpp.snapshots import Snapshot, content_hash, cut, snapshot_key
from kvtier_adapters.llama_cpp.state import check_recurrent
from kvtier_adapters.llama_cpp.thinning import Thinner
from kvtier_adapters.llama_cpp.window import first_needed
from kvtier_adapters.prefix import Piece, PrefixKeys, new_pieces

_AT_ONCE_BYTES = 32 << 20  # taken out of the context before they are given to the store


class _Wanted(NamedTuple):
    """What of a piece is to be stored: its rows or not, and which of its rows of the window, if any."""

    piece: Piece
    rows: bool
    window: Piece | None


class _Taken(NamedTuple):
    """The same, out of the context."""

    wanted: _Wanted
    rows: memoryview | bytes
    window: memoryview | bytes

    @property
    def nbytes(self) -> int:
        return len(self.rows) + len(self.window)


class Recorder:
    """Stores what the context of its binding holds and the store does not have yet.

    Every blob is checked before it is stored as strictly as it will be before it is restored.
    """

    def __init__(self, binding: Binding) -> None:
        self._to = binding
        self._thinner = Thinner(binding)
        self._piece_tokens_max = binding.options.block_tokens
        self._measured = not binding.memory.n_swa
        self._at_once_bytes = _AT_ONCE_BYTES

    def record(self, tokens: Tokens, *, checkpoint: bool) -> None:
        """Store the rows of ``tokens``, the first in the context, and with ``checkpoint`` what going back to the
        end of them needs besides: the window after them, a snapshot if the context is just there.

        Raises ``StateLayoutError``, ``NativeError`` and what the store raises.
        """
        if len(tokens) == 0 or bool((tokens < 0).any()):  # negative ids stand for something else: images
            return
        memory = self._to.memory
        at_end = self._to.native.pos_max == len(tokens) - 1
        if not memory.rows and not (checkpoint and at_end):
            return  # pieces without rows are of use below a snapshot only
        window_from = self._window_from(len(tokens), at_end) if checkpoint and memory.n_swa else None
        if not self._record_blocks(tokens, window_from) or not checkpoint:
            return
        complete = not memory.n_swa or window_from is not None
        last = next((piece for piece in self._to.pieces if piece.end == len(tokens)), None)
        if memory.snapshots and at_end and complete and last:  # none where more was stored before, in one piece
            self._record_snapshot(last)
        if memory.checkpoints and complete:
            self._thinner.thin()

    def _window_from(self, end: int, at_end: bool) -> int | None:
        """The first row to store of the window as of ``end``; None if a part of it is no longer in the context."""
        to = self._to
        oldest = to.native.pos_min
        if to.memory.recurrent:  # its position is the last one: the window is there if the context is just here
            oldest = first_needed(end, to.ring.n_swa) if at_end else -1
        if not 0 <= oldest <= first_needed(end, to.ring.n_swa):
            return None
        return max(to.ring.needed_from(end), oldest)  # the row before may be gone: in a shared context others have it

    def _record_blocks(self, tokens: Tokens, window_from: int | None) -> bool:
        """Whether all rows of ``tokens`` are stored now, and those of the window from ``window_from`` on."""
        to = self._to
        keys = self._keys(tokens)
        while True:
            start = to.pieces[-1].end if to.pieces else 0
            if start < len(tokens):
                self._measure_window()
            new = list(new_pieces(keys, start, len(tokens), self._piece_tokens_max))
            wanted = self._wanted(new, len(tokens), window_from)
            try:
                stored = all(self._store(taken, tokens) for taken in self._taken(wanted))
                self._at_once_bytes = _AT_ONCE_BYTES if stored else 0  # a queue that is full: nothing in vain next time
                return stored
            except LimitError:
                longest = max((piece.end - piece.start for piece in new), default=1)
                if longest == 1:
                    raise
                self._piece_tokens_max = longest // 2  # too big for one value of this store

    def _keys(self, tokens: Tokens) -> PrefixKeys:
        """The keys of ``tokens``; with them it is known which pieces are stored, if they go on as those before did."""
        to = self._to
        common = common_prefix(to.stored, tokens)
        if common and common in (len(tokens), len(to.stored)):
            return to.keys(tokens, known=to.pieces)
        keys = to.keys(tokens)  # another conversation: how much of it is there already?
        to.pieces = next(to.prefixes(keys), [])
        to.looked_up += 1
        to.stored = tokens[: to.pieces[-1].end if to.pieces else 0]
        return keys

    def _wanted(self, new: Sequence[Piece], end: int, window_from: int | None) -> list[_Wanted]:
        """What is not stored yet of the new pieces, and of the window as of ``end``: looked up at once."""
        to = self._to
        first = end if window_from is None else window_from
        pieces = [*(piece for piece in to.pieces if first < piece.end <= end), *new]
        windows = [piece for piece in pieces if piece.end > first]
        window_keys = [to.window_key(piece) for piece in windows]
        metas = to.metas([*(piece.key for piece in new), *window_keys])
        missing = {piece.end for piece, meta in zip(new, metas, strict=False) if meta != piece.meta}
        parts: dict[int, Piece] = {}
        for piece, key, meta in zip(windows, window_keys, metas[len(new) :], strict=True):
            part, known = Piece(max(piece.start, first), piece.end, key), window_part(piece, key, meta)
            if known is None or known.start > part.start:  # else an earlier checkpoint left it
                parts[piece.end] = part
        return [_Wanted(piece, piece.end in missing, parts.get(piece.end)) for piece in pieces]

    def _measure_window(self) -> None:
        """Keep pieces so small that the window's rows of one, too, are a value of this store."""
        if not self._measured:
            last = self._to.native.pos_max
            row = self._to.native.capture_window(last, last + 1).nbytes
            most = self._to.store.config.store.value_bytes_max // row
            self._piece_tokens_max = max(1, min(self._piece_tokens_max, most))
            self._measured = True

    def _taken(self, wanted: Sequence[_Wanted]) -> Iterator[list[_Taken]]:
        """All of it out of the context, so much at once as is to be given to the store then."""
        some: list[_Taken] = []
        for blocks in wanted:
            some.append(_Taken(blocks, *self._take(blocks)))
            if sum(taken.nbytes for taken in some) >= self._at_once_bytes:
                yield some
                some = []
        yield some

    def _take(self, wanted: _Wanted) -> tuple[memoryview | bytes, memoryview | bytes]:
        """The rows, and those of the window; empty if they are not wanted, or there are none."""
        native, (piece, rows, part) = self._to.native, wanted
        if not self._to.memory.layout:
            return b"", b""
        if rows and part and part.start == piece.start:
            return native.capture_both(piece.start, piece.end)
        return (
            native.capture_rows(piece.start, piece.end) if rows else b"",
            native.capture_window(part.start, part.end) if part else b"",
        )

    def _store(self, taken: Sequence[_Taken], tokens: Tokens) -> bool:
        """Whether the store took all of it. Rows first: they lie side by side on disk, as they are read."""
        return all(self._store_rows(some, tokens) for some in taken) and all(map(self._store_window, taken))

    def _store_rows(self, taken: _Taken, tokens: Tokens) -> bool:
        to, piece = self._to, taken.wanted.piece
        if taken.wanted.rows:
            parent = to.pieces[-1].key if to.pieces else None
            if not to.put(piece.key, taken.rows, piece.meta, parent, give=True):
                return False
            to.stats.pieces_captured += 1
            to.stats.bytes_captured += len(taken.rows)
        if piece.end > len(to.stored):
            to.looked_up += not taken.wanted.rows
            to.pieces = [*to.pieces, piece]
            to.stored = tokens[: piece.end]
        return True

    def _store_window(self, taken: _Taken) -> bool:
        to, part = self._to, taken.wanted.window
        if part is None:
            return True
        if not to.put(part.key, taken.window, part.meta, taken.wanted.piece.key, give=True):
            return False
        to.stats.checkpoint_bytes += len(taken.window)
        return True

    def _record_snapshot(self, piece: Piece) -> None:
        """Store what the context remembers as of the end of ``piece``, in chunks."""
        to = self._to
        if to.snapshot(piece) is not None:
            return
        blob = to.native.capture_snapshot()
        if to.memory.recurrent:
            check_recurrent(blob, to.memory.recurrent, piece.end)
        chunks = cut(blob, to.store.config.store.value_bytes_max)
        snapshot = Snapshot(snapshot_key(piece.key, to.secret), piece.end, len(chunks), blob.nbytes, content_hash(blob))
        keys = snapshot.keys(to.secret)
        known = to.metas(keys)
        for number in reversed(range(len(chunks))):  # the first says that all are there
            meta = snapshot.meta(number)
            if known[number] != meta and not to.put(keys[number], chunks[number], meta, piece.key):
                return
        to.unusable.discard(snapshot.key)
        to.stats.checkpoint_bytes += blob.nbytes
