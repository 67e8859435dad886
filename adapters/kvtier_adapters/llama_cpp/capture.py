"""From the context to the store: rows as pieces, and the sliding window's rows behind them."""

from __future__ import annotations

from kvtier import LimitError
from kvtier_adapters.llama_cpp.binding import Binding, Tokens, common_prefix
from kvtier_adapters.llama_cpp.state import check_rows, check_window
from kvtier_adapters.prefix import Piece, PrefixKeys, new_pieces


class Recorder:
    """Stores what the context of its binding holds and the store does not have yet.

    Every blob is checked before it is stored exactly as it will be before it is restored.
    """

    def __init__(self, binding: Binding) -> None:
        self._to = binding
        self._piece_tokens_max = binding.options.block_tokens

    def record(self, tokens: Tokens, *, checkpoint: bool) -> None:
        """Store the rows of ``tokens``, the first in the context, and with ``checkpoint`` the window after them.

        Raises ``StateLayoutError``, ``NativeError`` and what the store raises.
        """
        if len(tokens) == 0 or bool((tokens < 0).any()):  # negative ids stand for something else: images
            return
        keys = self._to.keys(tokens)
        if self._record_rows(tokens, keys) and checkpoint and self._to.ring.n_swa:
            self._record_window(len(tokens))

    def _record_rows(self, tokens: Tokens, keys: PrefixKeys) -> bool:
        """Whether all rows of ``tokens`` are stored now."""
        to = self._to
        common = common_prefix(to.stored, tokens)
        if common == len(tokens):
            return True
        if common == 0 or common < len(to.stored):  # another conversation: how much of it is there already?
            to.pieces = next(to.prefixes(keys), [])
        start = to.pieces[-1].end if to.pieces else 0
        to.stored = tokens[:start]
        while start < len(tokens):
            piece = next(new_pieces(keys, start, len(tokens), self._piece_tokens_max))
            try:
                if not to.has(piece) and not self._record_piece(piece, keys.at(start) if start else None):
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

    def _record_piece(self, piece: Piece, parent: bytes | None) -> bool:
        to = self._to
        blob = to.native.capture_rows(piece.start, piece.end)
        check_rows(blob, to.native.sections, piece.start, piece.end)
        if not self._put(piece, blob, parent):
            return False
        to.stats.pieces_captured += 1
        to.stats.bytes_captured += blob.nbytes
        return True

    def _record_window(self, end: int) -> None:
        """Store the rows of the window as of ``end``, piece by piece; those that an earlier one left are reused."""
        to = self._to
        ring, oldest = to.ring, to.native.pos_min
        if not 0 <= oldest <= ring.needed_from(end):
            return  # a part of the window as of here is no longer in the context
        wanted = max(oldest, ring.wanted_from(end))
        for piece in to.pieces:
            if not wanted < piece.end <= end:
                continue
            first = max(piece.start, wanted, ring.needed_from(piece.end))
            known = to.window_part(piece)
            if known is not None and known.start <= first:
                continue
            part = Piece(first, piece.end, to.window_key(piece))
            blob = to.native.capture_window(part.start, part.end)
            check_window(blob, part.start, part.end)
            if not self._put(part, blob, piece.key):
                return
            to.stats.checkpoint_bytes += blob.nbytes

    def _put(self, piece: Piece, blob: memoryview, parent: bytes | None) -> bool:
        to = self._to
        if not to.store.put(piece.key, blob, meta=piece.meta, parent=parent, namespace=to.options.namespace):
            to.stats.captures_skipped += 1
            return False
        to.unusable.discard(piece.key)
        return True
