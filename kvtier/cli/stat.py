"""``kvtier stat``: what a store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kvtier.cli.output import JsonFlag, print_facts, print_json
from kvtier.store import Store

Source = Annotated[Path, typer.Argument(help="A store's folder, or its TOML file.", metavar="FOLDER|CONFIG")]


#: Parts that live in one process: here they would be those of this command, not of a server that runs.
_IN_MEMORY = {"ram", "queue", "prefetch"}


def stat(source: Source, json: JsonFlag = False) -> None:
    """Show what a store holds on disk. It is opened for reading only, and a server may be using it.

    Counters (hits, evictions, ...) belong to the process that counts them: see Store.stats() there.
    """
    with Store.open(source, read_only=True) as store:
        stats = store.stats().as_dict()
    if json:
        print_json(stats)
    else:
        _print_tree(str(source), {k: v for k, v in stats.items() if k not in _IN_MEMORY})


def _print_tree(title: str, stats: dict[str, Any]) -> None:
    """Plain values first, then each part below its own title, whatever the parts are."""
    if plain := {k: v for k, v in stats.items() if not isinstance(v, dict | list | tuple)}:
        print_facts(title, plain)
    for name, part in stats.items():
        if isinstance(part, dict):
            _print_tree(name, part)
        elif isinstance(part, list | tuple):
            for number, item in enumerate(part):
                facts = item if isinstance(item, dict) else {name: item}
                label = facts.get("name", number)
                _print_tree(f"{name} (no name)" if label == "" else f"{name} {label}", facts)
