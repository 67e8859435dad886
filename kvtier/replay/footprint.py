"""How much memory a policy takes."""

from __future__ import annotations

import gc
import sys
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

from kvtier.policy.base import EvictionPolicy

_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


def policy_bytes(policy: EvictionPolicy) -> int:
    """What the policy says (its ``nbytes``), else the sizes of all objects that it reaches, code left out."""
    said = getattr(policy, "nbytes", None)
    return said if isinstance(said, int) else _reached_bytes(policy)


def _reached_bytes(root: object) -> int:
    seen, total = {id(root)}, 0
    waiting = [root]
    while waiting:
        each = waiting.pop()
        total += sys.getsizeof(each)
        for other in gc.get_referents(each):
            if id(other) not in seen and not isinstance(other, _SHARED):
                seen.add(id(other))
                waiting.append(other)
    return total
