"""From the context to the store: rows as pieces, and behind them what a checkpoint needs besides."""

from __future__ import annotations

from kvtier import LimitError
from kvtier_adapters.llama_cpp.binding import Binding, common_prefix
from kvtier_adapters.llama_cpp.held import Tokens
from kvtier_adapters.llama_cpp.snapshots import Snapshot, chunk_key, content_hash, cut, snapshot_key
from kvtier_adapters.llama_cpp.state import check_recurrent
from kvtier_adapters.llama_cpp.thinning import Thinner
from kvtier_adapters.llama_cpp.window import first_needed
from kvtier_adapters.prefix import Piece, PrefixKeys, new_pieces


class Recorder:
    """Stores what the context of its binding holds and the store does not have yet.

    Every blob is checked before it is stored exactly as it will be before it is restored.
    """

    def __init__(self, binding: Binding) -> None:
        self._to = binding
        self._thinner = Thinner(binding)
        self._piece_tokens_max = binding.options.block_tokens
        self._measured = not binding.memory.n_swa

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
        if not self._record_rows(tokens, self._to.keys(tokens)) or not checkpoint:
            return
        complete = not memory.n_swa or self._record_window(len(tokens), at_end)
        last = next((piece for piece in self._to.pieces if piece.end == len(tokens)), None)
        if memory.snapshots and at_end and complete and last:  # none where more was stored before, in one piece
            self._record_snapshot(last)
        if memory.checkpoints and complete:
            self._thinner.thin()

    def _record_rows(self, tokens: Tokens, keys: PrefixKeys) -> bool:
        """Whether all rows of ``tokens`` are stored now."""
        to = self._to
        common = common_prefix(to.stored, tokens)
        if common == len(tokens):
            return True
        if common == 0 or common < len(to.stored):  # another conversation: how much of it is there already?
            to.pieces = next(to.prefixes(keys), [])
            to.looked_up += 1
        start = to.pieces[-1].end if to.pieces else 0
        to.stored = tokens[:start]
        self._measure_window()
        while start < len(tokens):
            piece = next(new_pieces(keys, start, len(tokens), self._piece_tokens_max))
            try:
                if to.has(piece):
                    to.looked_up += 1
                elif not self._record_piece(piece, keys.at(start) if start else None):
                    return False
            except LimitError:
                if piece.end - start == 1:
                    raise
                self._piece_tokens_max = (piece.end - start) // 2  # too big for one value of this store
                continue
            start = piece.end
            to.pieces = [*to.pieces, piece]
            to.stored = tokens[:start]
        return True

    def _measure_window(self) -> None:
        """Keep pieces so small that the window's rows of one, too, are a value of this store."""
        if not self._measured:
            last = self._to.native.pos_max
            row = self._to.native.capture_window(last, last + 1).nbytes
            most = self._to.store.config.store.value_bytes_max // row
            self._piece_tokens_max = max(1, min(self._piece_tokens_max, most))
            self._measured = True

    def _record_piece(self, piece: Piece, parent: bytes | None) -> bool:
        to = self._to
        blob: memoryview | bytes = b""
        if to.memory.layout:
            blob = to.native.capture_rows(piece.start, piece.end)
        if not to.put(piece.key, blob, piece.meta, parent, give=True):
            return False
        to.stats.pieces_captured += 1
        to.stats.bytes_captured += len(blob)
        return True

    def _record_window(self, end: int, at_end: bool) -> bool:
        """Store the rows of the window as of ``end``, piece by piece; those that an earlier one left are reused.

        False if a part of it could not be stored.
        """
        to = self._to
        assert to.memory.layout is not None
        needed, oldest = to.ring.needed_from(end), to.native.pos_min
        if to.memory.recurrent:  # its position is the last one: the window is there if the context is just here
            oldest = first_needed(end, to.ring.n_swa) if at_end else -1
        if not 0 <= oldest <= first_needed(end, to.ring.n_swa):
            return False  # a part of the window as of here is no longer in the context
        needed = max(needed, oldest)  # the row before may be gone: its cell is anyone's in a shared context
        for piece in to.pieces:
            if not needed < piece.end <= end:
                continue
            first = max(piece.start, needed)
            known = to.window_part(piece)
            if known is not None and known.start <= first:
                continue
            part = Piece(first, piece.end, to.window_key(piece))
            blob = to.native.capture_window(part.start, part.end)
            if not to.put(part.key, blob, part.meta, piece.key, give=True):
                return False
            to.stats.checkpoint_bytes += blob.nbytes
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
        key = snapshot_key(piece.key, to.secret)
        snapshot = Snapshot(key, piece.end, len(chunks), blob.nbytes, content_hash(blob))
        for number in reversed(range(len(chunks))):  # the first says that all are there
            chunk = chunk_key(key, number, to.secret)
            if not to.has_block(chunk, snapshot.meta(number)) and not to.put(
                chunk, chunks[number], snapshot.meta(number), piece.key
            ):
                return
        to.unusable.discard(snapshot.key)
        to.stats.checkpoint_bytes += blob.nbytes
