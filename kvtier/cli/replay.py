"""``kvtier replay``: what policies would have done with a trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress as Bar

from kvtier.cli.output import JsonFlag, fail, print_json
from kvtier.errors import ConfigError, ConfigProblem
from kvtier.policy.registry import EVICTION, eviction
from kvtier.replay import generator, plots
from kvtier.replay.capacity import Capacity, parse_capacities
from kvtier.replay.cell import Factory
from kvtier.replay.hints import HintKind, make_hints, with_priorities
from kvtier.replay.measure import Replay, Row
from kvtier.replay.namespaces import assigned
from kvtier.replay.reader import Progress, read_trace
from kvtier.replay.report import as_json, as_text
from kvtier.replay.tier_model import TierModel, read_tier_model
from kvtier.replay.trace import Trace

_ALL = "all"
_FAILED = 1

TraceName = Annotated[
    str,
    typer.Argument(
        help="A file, a folder, or generate:conversation?seed=1&requests=5000 (agents, documents).", metavar="TRACE"
    ),
]
CapacityOption = Annotated[
    str,
    typer.Option(
        "--capacity", help="Shares of the trace's different blocks, or numbers of blocks.", metavar="1%,5%,..."
    ),
]
PolicyOption = Annotated[str, typer.Option("--policy", help="Eviction policies by name, or all.", metavar="NAME,...")]
TierModelOption = Annotated[
    Path | None,
    typer.Option("--tier-model", help="TOML file with tiers, speeds and the cost of computing.", metavar="FILE"),
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Whose sizes give the cost of computing.")]
HintsOption = Annotated[HintKind, typer.Option("--hints", help="What a server tells the policies.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the noise in hints.")]
LenientFlag = Annotated[bool, typer.Option("--lenient", help="Leave malformed lines out, and count them.")]
PlotsOption = Annotated[Path | None, typer.Option("--plots", help="Draw plots into this folder.", metavar="FOLDER")]


def replay(
    trace: TraceName,
    capacity: CapacityOption = "1%,5%,10%,20%",
    policy: PolicyOption = "leaf-lru",
    tier_model: TierModelOption = None,
    model: ModelOption = None,
    hints: HintsOption = HintKind.NONE,
    seed: SeedOption = 1,
    lenient: LenientFlag = False,
    plots_folder: PlotsOption = None,
    json: JsonFlag = False,
) -> None:
    """Replay a trace against eviction policies, and the bound that none can beat (leaf-belady).

    Exit code 0, or 1 if a policy failed.
    """
    names = list(EVICTION) if policy == _ALL else list(dict.fromkeys(name.strip() for name in policy.split(",")))
    tiers = read_tier_model(tier_model, model)
    factories = _factories(names, tiers)
    if plots_folder:
        plots.check()
    stream = assigned(_trace(trace, lenient), tiers.said.namespace)
    capacities = parse_capacities(capacity, stream.unique)
    tiers.check(stream, {c.text: c.blocks for c in capacities})
    told = with_priorities(stream, make_hints(stream, hints, seed), tiers.priorities)
    rows = _rows(stream, capacities, Replay(stream, tiers, factories, told), names)
    if json:
        print_json(as_json(stream, tiers, hints.value, seed, rows))
    else:
        sys.stdout.write(as_text(stream, rows) + "\n")
    if plots_folder:
        for file in plots.draw(stream.name, rows, plots_folder):
            sys.stderr.write(f"kvtier: wrote {file}\n")
    if failed := [f"policy {row.policy} failed at {row.capacity}: {row.error}" for row in rows if row.error]:
        raise typer.Exit(fail(*failed))


def _factories(names: list[str], tiers: TierModel) -> Mapping[str, Factory]:
    """The policies by name, also those that tiers name for themselves. Raises ConfigError with the names there are."""
    if any(":" in name for name in names) or tiers.has_classes:
        sys.path.insert(0, os.getcwd())  # for classes that are no installed package's
    wanted = dict.fromkeys(names, "--policy") | dict(tiers.policies())
    problems: list[ConfigProblem] = []
    found: dict[str, Factory] = {}
    for name, where in wanted.items():
        try:
            found[name] = eviction(name, where)
        except ConfigError as e:
            problems += e.problems
    if problems:
        raise ConfigError(problems)
    return found


def _trace(name: str, lenient: bool) -> Trace:
    if name.startswith(generator.PREFIX):
        return generator.generate(name)
    with _progress("reading") as progress:
        stream = read_trace(Path(name), lenient=lenient, progress=progress)
    if stream.skipped:
        sys.stderr.write(f"kvtier: {name}: left out {stream.skipped} malformed lines\n")
    return stream


def _rows(trace: Trace, capacities: list[Capacity], cells: Replay, names: list[str]) -> list[Row]:
    rows: list[Row] = []
    total = len(trace) * len(capacities) * (len(names) + 1)
    with _progress("replaying") as progress:
        for each in capacities:
            for name in [*names, None]:
                tick = partial(_tick, progress, len(trace) * len(rows), total) if progress else None
                rows.append(cells.run(name, each, tick) if name else cells.bound(each, tick))
    return rows


def _tick(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


@contextmanager
def _progress(title: str) -> Iterator[Progress | None]:
    """A bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
