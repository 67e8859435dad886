"""When the live context serves a prompt, when the store does, and when neither. Pure functions.

Background: a context with a sliding window holds, besides the rows of its full-attention layers, only the
last rows of the others. Positions ``[pos_min, pos_max]`` are complete. To go on at position ``resume``, a
model with a window of ``n_swa`` looks back to ``resume - n_swa + 1``. llama.cpp truncates such a context
further back than that without an error and then computes with missing rows; so does ``Llama.generate``'s
own prefix matching. Rule B of llama.cpp's release b9509 (upstream change 24110) is the same question asked
by its server, with a margin of its own; :func:`upstream_searches` is that rule, for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kvtier_adapters.llama_cpp.window import first_needed


@dataclass(frozen=True, slots=True)
class Live:
    """What the context holds of a prompt: ``common`` of its ``n_tokens`` tokens are the prompt's first."""

    common: int
    n_tokens: int
    pos_min: int
    pos_max: int
    logits_ready: bool
    """The last decode was of these tokens, so that sampling can go on without evaluating any."""
    truncatable: bool = True
    """The last tokens can be dropped; not so where recurrent layers have taken them in."""


class Action(Enum):
    LIVE = "live"
    RESTORE = "restore"
    COLD = "cold"


def live_resume(live: Live, n_prompt: int, n_swa: int) -> int:
    """How many tokens of the prompt the live context saves evaluating; 0 if it is of no use.

    A prompt that is there to its last token is one token short of that (its logits are gone), unless they
    are ready.
    """
    if live.logits_ready and live.n_tokens == live.common == n_prompt:
        return n_prompt
    resume = min(live.common, n_prompt - 1)
    if not live.truncatable:
        return resume if resume == live.n_tokens == live.pos_max + 1 else 0
    complete = 0 <= live.pos_min <= first_needed(resume, n_swa) and live.pos_max >= resume - 1
    return resume if complete else 0


def decide(live: int, stored: int, n_prompt: int, min_gain: int) -> Action:
    """Where a prompt goes on: in the live context (at ``live``), from the store (at ``stored``), or at zero.

    The store must save at least ``min_gain`` tokens of evaluation, or restoring is not worth its while; a
    live context that covers the prompt is therefore never restored.
    """
    gain = min(stored, n_prompt - 1) - live
    if gain >= max(1, min_gain):
        return Action.RESTORE
    return Action.LIVE if live > 0 else Action.COLD


def upstream_searches(
    pos_min: int, pos_next: int, n_swa: int, n_past: int, n_tokens: int, *, before_b9509: bool = False
) -> bool:
    """Whether llama.cpp's server looks for a checkpoint; before b9509 the margin of 1 was unconditional."""
    margin = 1 if before_b9509 or n_past >= n_tokens else 0
    return pos_min >= max(0, pos_next - n_swa - margin)
