"""How much of a prompt would be restored, from where, and why not the rest. Reads no payload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvtier import BlockState, Explanation
from kvtier_adapters.llama_cpp.fingerprint import Fingerprint
from kvtier_adapters.llama_cpp.held import Tokens
from kvtier_adapters.llama_cpp.lookup import Lookup, Plan
from kvtier_adapters.llama_cpp.snapshots import chunk_key, snapshot_key
from kvtier_adapters.prefix import Piece, PrefixKeys

_IN_MEMORY = {BlockState.RAM: "ram", BlockState.QUEUED: "write queue"}


@dataclass(frozen=True)
class PromptExplanation:
    """What the store has of a prompt; counts are in tokens. ``str()`` says it in plain sentences."""

    tokens: int
    restorable: int
    """How many need no evaluation after a restore; the last one always does, it makes the logits."""
    stored: int
    """How many of the first tokens have their rows stored; more than ``restorable`` where a checkpoint is missing."""
    tiers: dict[str, int]
    """The tokens to be restored, by the tier that their blocks are in."""
    bytes_to_read: int
    live: int
    """How many of the first tokens the context holds; 0 without a context."""
    rest: str
    """Why no more can be restored; empty if all is there."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        where = ", ".join(f"{count:,} from {tier}" for tier, count in self.tiers.items())
        lines = [f"{self.restorable:,} of {self.tokens:,} tokens can be restored" + (f": {where}." if where else ".")]
        if self.live:
            lines.append(f"The context holds {self.live:,} of them already.")
        if self.rest:
            lines.append(f"From token {self.restorable:,} on: {self.rest}")
        return " ".join(lines)


def explain(lookup: Lookup, tokens: Tokens, others: Sequence[Fingerprint], *, live: int = 0) -> PromptExplanation:
    """``others``: fingerprints that the prompt may be stored under instead; ``live``: tokens in the context.

    Any thread. Raises what the store raises when it cannot be used.
    """
    keys = lookup.keys(tokens)
    most = max(0, len(tokens) - 1)
    plan = lookup.plan(keys, most)
    restorable = min(plan.end, most) if plan else 0
    longest = next(lookup.prefixes(keys), [])
    return PromptExplanation(
        tokens=len(tokens),
        restorable=restorable,
        stored=longest[-1].end if longest else 0,
        tiers=_tiers(lookup, plan, restorable) if plan else {},
        bytes_to_read=_bytes(lookup, plan) if plan else 0,
        live=live,
        rest=_rest(lookup, tokens, keys, longest, restorable, others) if restorable < most else "",
    )


def _tiers(lookup: Lookup, plan: Plan, restorable: int) -> dict[str, int]:
    """Tokens by tier: of the rows, or of the snapshot where there are no rows."""
    found: Counter[str] = Counter()
    if plan.snapshot and not lookup.rows:
        first = chunk_key(plan.snapshot.key, 0, lookup.secret)
        return {_place(lookup.store.explain(first, namespace=lookup.namespace)): restorable}
    for piece in plan.pieces:
        place = _place(lookup.store.explain(piece.key, namespace=lookup.namespace))
        found[place] += min(piece.end, restorable) - min(piece.start, restorable)
    return dict(found)


def _place(block: Explanation) -> str:
    return _IN_MEMORY.get(block.state) or block.tier or block.state.value


def _bytes(lookup: Lookup, plan: Plan) -> int:
    infos = lookup.store.info_many([p.key for p in (*plan.pieces, *plan.window)], namespace=lookup.namespace)
    return sum(info.nbytes for info in infos if info) + (plan.snapshot.nbytes if plan.snapshot else 0)


def _rest(
    lookup: Lookup,
    tokens: Tokens,
    keys: PrefixKeys,
    longest: Sequence[Piece],
    restorable: int,
    others: Sequence[Fingerprint],
) -> str:
    """Why a restore ends where it does."""
    stored = longest[-1].end if longest else 0
    if stored > restorable:
        return f"No checkpoint, though {stored:,} tokens are stored. {_at(lookup, longest[-1])}"
    end = min(len(tokens), (stored // keys.block_tokens + 1) * keys.block_tokens)
    block = lookup.store.explain(keys.at(end), namespace=lookup.namespace)
    if block.state is BlockState.UNKNOWN and stored == 0:
        why = lookup.why_not(tokens, keys, others)
        if why != "not stored":
            return f"{why[0].upper()}{why[1:]}."
    return str(block)


def _at(lookup: Lookup, piece: Piece) -> str:
    """What became of the checkpoint as of the end of a piece."""
    key = lookup.window_key(piece)
    if lookup.snapshots:
        key = chunk_key(snapshot_key(piece.key, lookup.secret), 0, lookup.secret)
    return str(lookup.store.explain(key, namespace=lookup.namespace)).replace("The block", "The checkpoint there", 1)
