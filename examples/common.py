"""What both programs share: options, a model behind a store, progress, and errors of one line.

Nothing in here makes a program go on after a kill: ``Attachment.read`` does, see :meth:`Model.read`.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from llama_cpp import Llama
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from kvtier import KvtierError, Store
from kvtier_adapters.llama_cpp import Attachment, Progress, SessionStats, attach

_BATCH = 512


class Failure(Exception):
    """The program cannot do what it was asked for; its message says why, in one line."""


def parser(description: str) -> ArgumentParser:
    """The options that both programs have."""
    made = ArgumentParser(description=description)
    made.add_argument("--model", required=True, metavar="FILE.gguf")
    made.add_argument("--store", required=True, metavar="FOLDER|CONFIG", help="made if it is not there")
    made.add_argument("--n-ctx", type=positive, default=8192, metavar="N", help="context in tokens (%(default)s)")
    made.add_argument("--max-tokens", type=positive, default=128, metavar="N", help="of an answer (%(default)s)")
    made.add_argument(
        "--checkpoint-tokens", type=positive, default=2048, metavar="N", help="read between checkpoints (%(default)s)"
    )
    made.add_argument("--progress", choices=("bar", "json"), default="bar", help="on stderr (%(default)s)")
    return made


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def run(program: Callable[[Namespace], None], options: Namespace) -> int:
    """The exit code of a program; what stops it is one line on stderr."""
    try:
        program(options)
    except KeyboardInterrupt:
        print("stopped: the same command goes on at the last checkpoint", file=sys.stderr)
        return 130
    except (Failure, KvtierError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def text_of(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Failure(f"{path} is not text in UTF-8") from error
    if not text.strip():
        raise Failure(f"{path} is empty")
    return text


@dataclass(frozen=True)
class Model:
    """A model whose state is kept in a store."""

    llm: Llama
    cache: Attachment
    shown: Callable[[str], AbstractContextManager[Callable[[Progress], None]]]
    max_tokens: int

    def tokens(self, text: str, *, begins: bool = False) -> list[int]:
        """``begins``: nothing comes before it, so that the model's token for the beginning does."""
        return self.llm.tokenize(text.encode(), add_bos=begins)

    def check_room(self, what: str, tokens: int, longest: int) -> None:
        """``longest`` tokens have to fit, of which ``tokens`` are ``what``, the others are asked and answered."""
        if longest > self.llm.n_ctx():
            raise Failure(
                f"{what} has {tokens:,} tokens, with question and answer {longest:,}; "
                f"the context has {self.llm.n_ctx():,} (--n-ctx)"
            )

    def read(self, what: str, tokens: list[int]) -> None:
        """Go on where the last run was killed, and store every segment before the next."""
        with self.shown(what) as show:
            self.cache.read(tokens, show)

    def answer(self, prompt: list[int], stop: str) -> str:
        """The likeliest one. What of the prompt was read, or is in the store, is not evaluated again."""
        found = self.llm.create_completion(prompt, max_tokens=self.max_tokens, temperature=0.0, stop=[stop])
        return str(cast(Any, found)["choices"][0]["text"]).strip()


@contextmanager
def opened(options: Namespace) -> Iterator[Model]:
    """The model and the store that the options name; at the end, what went wrong with the store is told."""
    with Store.open(options.store) as store, closing(_load(options)) as llm:
        # reproducible: an answer does not depend on whether, and where, the program was killed
        with attach(llm, store, reproducible=True, checkpoint_tokens=options.checkpoint_tokens) as cache:
            if cache.stats.refused:
                raise Failure(f"the state of {options.model} cannot be stored: {cache.stats.refused}")
            shown = partial(_json_lines, cache.stats) if options.progress == "json" else _bar
            yield Model(llm, cache, shown, options.max_tokens)
        if options.progress == "json":
            _say(cache.stats)
        elif cache.stats.errors:
            print(f"warning: not everything could be stored: {cache.stats.last_error}", file=sys.stderr)


def _load(options: Namespace) -> Llama:
    batch = min(_BATCH, options.checkpoint_tokens)
    try:
        return Llama(options.model, n_ctx=options.n_ctx, n_batch=batch, flash_attn=True, swa_full=False, verbose=False)
    except ValueError as error:  # no file, or no model in it
        raise Failure(str(error)) from error


@contextmanager
def _bar(what: str) -> Iterator[Callable[[Progress], None]]:
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[says]}")
    with Bars(*columns, console=Console(stderr=True, highlight=False)) as bars:
        task, began = bars.add_task(what, total=None, says=""), time.monotonic()

        def show(now: Progress) -> None:
            speed = (now.done - now.restored) / max(1e-9, time.monotonic() - began)
            says = f"{now.done:,} of {now.tokens:,} tokens, {now.restored:,} restored, {speed:,.0f} tokens/s"
            bars.update(task, total=now.tokens, completed=now.done, says=says)

        yield show


@contextmanager
def _json_lines(stats: SessionStats, what: str) -> Iterator[Callable[[Progress], None]]:
    yield lambda now: _say(stats, reading=what, **asdict(now))


def _say(stats: SessionStats, **facts: Any) -> None:
    counts = {"evaluated": stats.tokens_evaluated, "errors": dict(stats.errors)}  # since the program began
    print(json.dumps({**facts, **counts}), file=sys.stderr, flush=True)
