"""``kvtier verify``, ``kvtier repair`` and ``kvtier rebuild-index``."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from kvtier.check import Report, rebuild_index, repair, verify
from kvtier.cli.output import JsonFlag, fail, print_facts, print_json
from kvtier.cli.stat import Source
from kvtier.errors import KvtierError, WrongKeys
from kvtier.events import Event, RebuildProgress
from kvtier.keys import KeyProvider

_SHOWN_MAX = 20
_DAMAGED, _UNUSABLE = 1, 2

KeysOption = Annotated[
    str | None,
    typer.Option("--keys", help="Of an encrypted store: the key provider, in Python.", metavar="MODULE:NAME"),
]
NoPayloads = Annotated[bool, typer.Option("--no-payloads", help="Read only the heads of records.")]


def verify_command(source: Source, json: JsonFlag = False, no_payloads: NoPayloads = False) -> None:
    """Look for damage in a store, and change nothing. A server may be using it; no keys are needed.

    Exit code 0 if it is sound, 1 if something is damaged, 2 if it cannot be looked at.
    """
    with or_unusable(), progress_bar("reading segments") as progress:
        report = verify(source, payloads=not no_payloads, progress=progress)
    if json:
        print_json(report.as_dict())
    else:
        _print_report(str(source), report)
    _end(report)


def repair_command(source: Source, json: JsonFlag = False, keys: KeysOption = None) -> None:
    """Take what is damaged out of a store, so that it can be stored again. Nothing else may have it open for writing.

    Exit code 0 if it is sound now, 1 if damage is left, 2 if it cannot be repaired.
    """
    with or_unusable(), progress_bar("reading segments") as progress, _rebuilding() as listener:
        done = repair(source, keys=provider(keys), progress=progress, listeners=[listener])
    if json:
        print_json(done.as_dict())
    else:
        _print_report("found", done.found)
        done_facts = {k: v for k, v in done.as_dict().items() if isinstance(v, int)}
        print_facts("done", done_facts | {f"recovered_{k}": v for k, v in asdict(done.recovered).items()})
        _print_report("left", done.left)
    _end(done.left)


def rebuild_command(source: Source, json: JsonFlag = False, keys: KeysOption = None) -> None:
    """Make the index of a store anew from its segments. Nothing else may have it open for writing.

    Exit code 0 if it was made, 1 if there were segments or records that could not be read, 2 if it was not made.
    """
    with or_unusable(), _rebuilding() as listener:
        report = rebuild_index(source, keys=provider(keys), listeners=[listener])
    if json:
        print_json(asdict(report))
    else:
        print_facts(str(source), asdict(report))
    raise typer.Exit(_DAMAGED if report.damaged else 0)


def _end(report: Report) -> None:
    raise typer.Exit(0 if report.is_sound else _DAMAGED)


def _print_report(title: str, report: Report) -> None:
    counted = {k: v for k, v in report.as_dict().items() if not isinstance(v, dict | list)}
    print_facts(title, counted)
    for name, counts in (("damage", report.damage), ("no damage, but", report.notes)):
        if counts:
            print_facts(name, counts)
    for finding in report.findings[:_SHOWN_MAX]:
        sys.stdout.write(f"  {finding}\n")
    if (more := sum(report.damage.values()) - _SHOWN_MAX) > 0:
        sys.stdout.write(f"  and {more} more (--json shows up to 1000)\n")


def provider(name: str | None) -> KeyProvider | None:
    if name is None:
        return None
    module, _, attribute = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found: KeyProvider = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
        raise WrongKeys(f"--keys {name}: {e}") from e
    return found


@contextmanager
def or_unusable() -> Iterator[None]:
    """An error is one line on stderr and another exit code than damage has."""
    logging.getLogger("kvtier").addHandler(logging.NullHandler())  # events are in the result
    try:
        yield
    except (KvtierError, OSError) as e:
        hint = " (--keys MODULE:NAME says where they come from)" if isinstance(e, WrongKeys) else ""
        fail(*f"{e}{hint}".splitlines())
        raise typer.Exit(_UNUSABLE) from None


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _rebuilding() -> Iterator[Callable[[Event], None]]:
    """Shows on the terminal how far a new index is."""
    with progress_bar("making the index anew") as progress:

        def listener(event: Event) -> None:
            if progress and isinstance(event, RebuildProgress):
                progress(event.segments_done, event.segments_total)

        yield listener
