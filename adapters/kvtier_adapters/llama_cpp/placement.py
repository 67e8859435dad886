"""Where in a prompt checkpoints are taken, and which of them are kept. Pure functions over positions.

A memory that cannot be cut off anywhere (:mod:`.memory`) is gone back to at checkpoints only. They are taken
where another prompt is likely to part from this one, after llama.cpp's server: where the last user message
begins (its answer is what comes back changed, or is asked for again), where earlier ones begin if they are
far enough apart, shortly before the prompt's end, and every so many tokens of a long document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kvtier_adapters.llama_cpp.options import Options

#: Tokens before the prompt's end of the last checkpoint, as in llama.cpp's server.
BEFORE_END = 4


def checkpoints_of(
    start: int, end: int, messages: Sequence[int], options: Options, *, n_ubatch: int, step: int, steps_back: bool
) -> list[int]:
    """The positions in ``(start, end)`` at which to take a checkpoint, ascending; ``end`` is one in any case.

    ``messages``: where user messages begin, ascending. ``step``: the distance between checkpoints of a long
    prompt. ``steps_back``: a checkpoint at ``end`` also serves the prompt itself, whose last token is to be
    evaluated again. Otherwise one is taken shortly before it.
    """
    found = set(_regular(start, end, step))
    if options.checkpoint_user_messages:
        found.update(_of_messages(messages, options.checkpoint_min_step))
    if options.checkpoint_before_end and not steps_back:
        near = 1 if options.reproducible else BEFORE_END
        found.update((end - near, end - near - n_ubatch))
    return sorted(position for position in found if start < position < end)


def _regular(start: int, end: int, step: int) -> Iterable[int]:
    """The multiples of ``step``, unless little is left behind: the same ones wherever a prompt goes on."""
    first = start - start % step + step
    return (position for position in range(first, end, step) if end - position > step // 2)


def _of_messages(messages: Sequence[int], min_step: int) -> Iterable[int]:
    """The last message, and earlier ones at least ``min_step`` apart."""
    kept: list[int] = []
    for position in messages[:-1]:
        if position - (kept[-1] if kept else 0) >= min_step:
            kept.append(position)
    return [*kept, *messages[-1:]]


def thin(positions: Sequence[int], cost: Callable[[Sequence[int]], int], most: int) -> list[int]:
    """The checkpoints to keep, ascending, so that they cost at most ``most``; always the last one.

    What goes first is the one that leaves the smallest hole for its distance from the end: what is kept
    thins out towards the beginning, each distance about doubling.
    """
    kept = sorted(positions)
    while len(kept) > 1 and cost(kept) > most:
        end = kept[-1]
        before = [0, *kept]
        holes = [(kept[i + 1] - before[i]) / (end - kept[i]) for i in range(len(kept) - 1)]
        del kept[holes.index(min(holes))]
    return kept
