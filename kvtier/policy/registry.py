"""Policies by the names that a configuration uses. A new policy is a class and a line here, or a class of another
package, named ``package.module:Class``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from kvtier.errors import ConfigError, ConfigProblem
from kvtier.policy.admission import AlwaysAdmit, MinChain, SecondTouch
from kvtier.policy.base import AdmissionPolicy, CompactionPolicy, EvictionPolicy, PrefetchPolicy, PromotionPolicy
from kvtier.policy.compaction import Copy, Reclaim
from kvtier.policy.eviction.gdsf import Gdsf
from kvtier.policy.eviction.hit_density import HitDensity
from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.policy.eviction.s3_fifo import S3Fifo
from kvtier.policy.eviction.sieve import Sieve
from kvtier.policy.eviction.slru import Slru
from kvtier.policy.eviction.w_tinylfu import WTinyLfu
from kvtier.policy.prefetch import ChainOnly, NextTurn
from kvtier.policy.promotion import AlwaysPromote, NeverPromote, SecondHit

EVICTION: Mapping[str, Callable[[], EvictionPolicy]] = MappingProxyType(
    {
        "leaf-lru": LeafLru,
        "slru": Slru,
        "s3-fifo": S3Fifo,
        "sieve": Sieve,
        "w-tinylfu": WTinyLfu,
        "gdsf": Gdsf,
        "hit-density": HitDensity,
    }
)
PROMOTION: Mapping[str, Callable[[], PromotionPolicy]] = MappingProxyType(
    {"always": AlwaysPromote, "never": NeverPromote, "second-hit": SecondHit}
)
#: ``write-budget`` is a tier's limit that goes with any policy; by this name it goes with the one that refuses nothing.
ADMISSION: Mapping[str, Callable[[], AdmissionPolicy]] = MappingProxyType(
    {"always": AlwaysAdmit, "second-touch": SecondTouch, "min-chain": MinChain, "write-budget": AlwaysAdmit}
)
PREFETCH: Mapping[str, Callable[[], PrefetchPolicy]] = MappingProxyType({"chain": ChainOnly, "next-turn": NextTurn})
#: Made with the share of a segment that has to be dead.
COMPACTION: Mapping[str, Callable[[float], CompactionPolicy]] = MappingProxyType({"reclaim": Reclaim, "copy": Copy})


def eviction(name: str, path: str = "eviction") -> Callable[[], EvictionPolicy]:
    """What makes the eviction policy of this name; ``package.module:Class`` is imported.

    Raises :class:`kvtier.ConfigError`, about the key at ``path``, if there is none, or what there is cannot be one.
    """
    if name in EVICTION:
        return EVICTION[name]
    return _loaded(name, path, EVICTION, _METHODS)  # type: ignore[no-any-return]


def compaction(name: str, path: str = "compaction") -> Callable[[float], CompactionPolicy]:
    """The same for a compaction policy, which is made with the share of a segment that has to be dead."""
    if name in COMPACTION:
        return COMPACTION[name]
    return _loaded(name, path, COMPACTION, ("is_due", "pick"), 0.5)  # type: ignore[no-any-return]


def promotion(name: str, path: str = "promotion") -> Callable[[], PromotionPolicy]:
    """The same for a promotion policy."""
    if name in PROMOTION:
        return PROMOTION[name]
    return _loaded(name, path, PROMOTION, ("promote",))  # type: ignore[no-any-return]


def prefetch(name: str, path: str = "policy") -> Callable[[], PrefetchPolicy]:
    """The same for a prefetch policy."""
    if name in PREFETCH:
        return PREFETCH[name]
    return _loaded(name, path, PREFETCH, ("asked", "answered"))  # type: ignore[no-any-return]


def admission(name: str, path: str = "admission", blocks_min: int = 2) -> Callable[[], AdmissionPolicy]:
    """The same for an admission policy. ``blocks_min``: what ``min-chain`` asks for."""
    if name == "min-chain":
        return partial(MinChain, blocks_min)
    if name in ADMISSION:
        return ADMISSION[name]
    return _loaded(name, path, ADMISSION, ("admit", "used"))  # type: ignore[no-any-return]


def _loaded(name: str, path: str, known: Iterable[str], methods: Sequence[str], *arguments: object) -> Any:
    try:
        return _load(name, methods, *arguments)
    except _NoPolicy as e:
        hint = f'one of {", ".join(known)}, or a class: "package.module:Class"'
        raise ConfigError([ConfigProblem(path, f"{name!r}: {e}", hint)]) from e


class _NoPolicy(Exception):
    """What a name means cannot be used as a policy, and why."""


def _load(name: str, methods: Sequence[str], *arguments: object) -> Any:
    """The class of this name, of which one object was made with the ``arguments``, to see that it can be."""
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise _NoPolicy("there is no such policy")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as e:  # the module is not ours: it may raise anything
        raise _NoPolicy(f"cannot be imported: {type(e).__name__}: {e}") from e
    if not isinstance(found, type):
        raise _NoPolicy("is not a class")
    try:
        made = found(*arguments)
    except Exception as e:
        how = f"with {', '.join(map(repr, arguments))}" if arguments else "without arguments"
        raise _NoPolicy(f"cannot be made {how}: {type(e).__name__}: {e}") from e
    missing = [method for method in methods if not callable(getattr(made, method, None))]
    if missing:
        raise _NoPolicy(f"has no method {', '.join(missing)}")
    return found


_METHODS = ("add", "touch", "remove", "pop", "hold", "release", "hint", "__len__")
