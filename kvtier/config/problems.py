"""From pydantic's errors to :class:`kvtier.ConfigProblem`: the path, what is wrong, what would be right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kvtier.errors import ConfigProblem

Loc = tuple[str | int, ...]


class Problems(ValueError):
    """Raised by a validator that found several things wrong, each with its full path."""

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, problems)))


def problems_of(model: type[BaseModel], error: ValidationError) -> list[ConfigProblem]:
    """Every problem in ``error``, which validating ``model`` raised, in the order of the fields."""
    return [p for e in error.errors() for p in _translate(model, e)]


def repaired(
    data: Mapping[str, Any], error: ValidationError, stand_in: Callable[[int], dict[str, Any]]
) -> dict[str, Any]:
    """``data`` without the keys that are wrong, so that the rest can be checked further.

    In a list of tables, ``stand_in(index)`` gives a harmless value for each key that is required.
    """
    result: dict[str, Any] = _copied(dict(data))
    for e in error.errors():
        parents, last = e["loc"][:-1], e["loc"][-1] if e["loc"] else ""
        at: Any = result
        for part in parents:
            at = _item(at, part)
        if isinstance(at, dict):
            at.pop(last, None)
            if parents and isinstance(parents[-1], int):
                at |= {k: v for k, v in stand_in(parents[-1]).items() if k == last}
        elif isinstance(at, list) and isinstance(last, int):
            at[last] = stand_in(last)
    return result


def _item(container: Any, key: Any) -> Any:
    return container[key] if isinstance(container, dict | list) else None


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list | tuple) else value


def path_of(loc: Loc) -> str:
    """``("tier", 1, "bytes_max")`` as ``"tier[1].bytes_max"``; odd keys in quotes, as TOML has them."""

    def part_of(part: str | int) -> str:
        if isinstance(part, int):
            return f"[{part}]"
        return f".{part}" if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f".{json.dumps(part)}"

    return "".join(map(part_of, loc)).removeprefix(".")


def is_within(path: str, others: Iterable[str]) -> bool:
    """Whether ``path`` is one of the others, or a key of one."""
    return any(path == other or path.startswith((f"{other}.", f"{other}[")) for other in others)


def _translate(model: type[BaseModel], e: ErrorDetails) -> Iterator[ConfigProblem]:
    loc, kind, path = e["loc"], e["type"], path_of(e["loc"])
    cause = e.get("ctx", {}).get("error")
    if kind == "default_factory_not_called":  # a consequence: the key it depends on is reported already
        return
    if isinstance(cause, Problems):
        yield from cause.problems
    elif kind == "value_error":
        yield ConfigProblem(path, str(cause), getattr(cause, "hint", ""))
    elif kind == "extra_forbidden":
        owner = _model_at(model, loc[:-1])
        yield ConfigProblem(path, "unknown key", one_of(str(loc[-1]), owner.model_fields if owner else ()))
    elif kind == "missing":
        yield ConfigProblem(path, "required key is missing", _example(model, loc))
    elif kind == "literal_error":
        names = [str(name) for name in get_args(_annotation(model, loc))]
        shown = json.dumps(e["input"], default=str)
        yield ConfigProblem(path, f"unknown {loc[-1]} {shown}", one_of(str(e["input"]), names))
    elif kind in ("model_type", "model_attributes_type"):
        yield ConfigProblem(path, "must be a table", f"write it as {_header(loc)}")
    elif kind in ("tuple_type", "list_type"):
        yield ConfigProblem(path, "must be a list of tables", f"head each with [[{loc[0]}]]")
    else:
        hint = _example(model, loc) if loc else ""  # a key that is no text is nowhere
        yield ConfigProblem(path or "configuration", e["msg"][:1].lower() + e["msg"][1:], hint)


def one_of(given: str, names: Iterable[str]) -> str:
    """A hint: the name that is meant, if one is like ``given``, and all there are."""
    names = list(names)
    close = get_close_matches(given.lower(), names, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + ", ".join(names)


def _example(model: type[BaseModel], loc: Loc) -> str:
    owner = _model_at(model, loc[:-1])
    field = owner.model_fields.get(str(loc[-1])) if owner else None
    return f"for example {loc[-1]} = {json.dumps(field.examples[0])}" if field and field.examples else ""


def _header(loc: Loc) -> str:
    return f"[{loc[0]}]" if len(loc) == 1 else f"[[{loc[0]}]]"


def _annotation(model: type[BaseModel], loc: Loc) -> Any:
    owner = _model_at(model, loc[:-1])
    field = owner.model_fields.get(str(loc[-1])) if owner else None
    return field.annotation if field else None


def _model_at(model: type[BaseModel], loc: Loc) -> type[BaseModel] | None:
    """The model that describes the table at ``loc``."""
    at: type[BaseModel] | None = model
    for part in loc:
        if isinstance(part, str) and at is not None:
            annotation = _annotation(at, (part,))
            candidates = (annotation, *get_args(annotation))
            at = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return at
