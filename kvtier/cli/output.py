"""What the commands share to write on the terminal. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from kvtier.units import format_size

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


def fail(*lines: str) -> int:
    """Write each line, after the program's name, on stderr; returns the exit code of a failure."""
    for line in lines:
        sys.stderr.write(f"kvtier: {' '.join(line.splitlines())}\n")
    return 1


def print_json(value: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_facts(title: str, facts: Mapping[str, object]) -> None:
    """A title and, below it, name and value; where the name speaks of bytes, with a unit."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(title, style="bold"))
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        console.print(Text(f"  {name:<{width}}  {shown(name, value)}"))


def shown(name: str, value: object) -> str:
    """A value as text: sizes with a unit, other numbers with thousands apart, paths and names as they are."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_size(value) if "bytes" in name else f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
