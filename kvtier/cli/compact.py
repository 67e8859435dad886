"""``kvtier compact``: dead space is given back at once."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from kvtier.cli.check import KeysOption, or_unusable, progress_bar, provider
from kvtier.cli.output import JsonFlag, print_facts, print_json
from kvtier.cli.stat import Source
from kvtier.compacting import compact

_LEFT = 1

TierOption = Annotated[str | None, typer.Option("--tier", help="Only this tier.", metavar="NAME")]


def compact_command(source: Source, tier: TierOption = None, json: JsonFlag = False, keys: KeysOption = None) -> None:
    """Copy what lives in segments that are mostly dead, and remove them. Nothing else may have the store open for
    writing.

    Exit code 0 if all of them are gone, 1 if some could not be emptied, 2 if the store cannot be used.
    """
    with or_unusable(), progress_bar("compacting") as progress:
        done = compact(source, tier=tier, keys=provider(keys), progress=progress)
    if json:
        print_json(done.as_dict())
    else:
        print_facts(str(source), {k: v for k, v in done.as_dict().items() if k != "tiers"})
        for each in done.tiers:
            print_facts(f"tier {each.name}", {k: v for k, v in asdict(each).items() if k != "name"})
    raise typer.Exit(0 if done.is_done else _LEFT)
