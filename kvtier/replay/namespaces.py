"""Which namespace each request is in: as the trace says, else by the rules of a tier model."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from kvtier.config.tier_model import ModeledNamespace
from kvtier.errors import ConfigProblem
from kvtier.replay.sessions import sessions_of
from kvtier.replay.trace import Trace, apart, scrambled
from kvtier.units import Percent


def assigned(trace: Trace, rules: Sequence[ModeledNamespace]) -> Trace:
    """The trace, in which requests without a namespace are in that of the first rule that names their session.

    Sessions that are given by share are chosen by their numbers, the same in every run.
    """
    if not any(rule.sessions for rule in rules):
        return trace
    names = list(dict.fromkeys([*trace.namespace_names, *(rule.name for rule in rules)]))
    found: dict[int, int] = {}
    namespaces = array("I")
    for session, said in zip(sessions_of(trace), trace.namespaces, strict=True):
        if session not in found:
            found[session] = names.index(_named(trace, rules, session))
        namespaces.append(said or found[session])
    return apart(trace, namespaces, tuple(names))


def unused(trace: Trace, rules: Sequence[ModeledNamespace]) -> Iterator[ConfigProblem]:
    """Rules that no request of an assigned trace is under."""
    used = {trace.namespace_names[number] for number in set(trace.namespaces)}
    for i, rule in enumerate(rules):
        if rule.name not in used:
            hint = f"the trace names {len(trace.session_names)} sessions; a share takes any"
            yield ConfigProblem(f"namespace[{i}]", f"no request is in namespace {rule.name!r}", hint)


def _named(trace: Trace, rules: Sequence[ModeledNamespace], session: int) -> str:
    name = trace.session_names[session] if session < len(trace.session_names) else None
    place = scrambled(session + 1) / (1 << 64) * 100
    for rule in rules:
        if isinstance(rule.sessions, Percent):
            if 0 <= place < rule.sessions.value:
                return rule.name
            place -= rule.sessions.value
        elif rule.sessions and name is not None and fnmatchcase(name, rule.sessions):
            return rule.name
    return ""
