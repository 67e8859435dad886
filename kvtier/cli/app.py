"""The commands put together, and the one place where an error becomes a line on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer

from kvtier import __version__
from kvtier.cli import check, compact, config, replay, stat
from kvtier.cli.output import fail
from kvtier.errors import ConfigError, KvtierError

#: Other packages add commands here: an entry point is a function with typer's annotations.
COMMANDS_GROUP = "kvtier.commands"
_EXTRA_OF = {"llama_cpp": "llama-cpp", "numpy": "llama-cpp", "matplotlib": "plots"}


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors become one line each on stderr, never a traceback.

    ``KVTIER_TRACEBACK=1`` in the environment lets an unexpected one through, for a bug report.
    """
    try:
        _build(argv)(args=list(argv), prog_name="kvtier")
    except SystemExit as e:  # how typer ends, always
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except ConfigError as e:
        return fail(*map(str, e.problems))
    except KvtierError as e:
        return fail(str(e))
    except ModuleNotFoundError as e:
        return fail(_missing(e))
    except OSError as e:
        return fail(f"{e.filename}: {e.strerror}" if e.filename and e.strerror else str(e))
    except Exception as e:
        if os.environ.get("KVTIER_TRACEBACK") == "1":
            raise
        return fail(f"unexpected {type(e).__name__}: {e} (KVTIER_TRACEBACK=1 shows where)")
    return 0


def _build(argv: Sequence[str]) -> typer.Typer:
    app = typer.Typer(
        help="A tiered, crash-safe store for LLM KV cache.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_options)
    app.command("stat")(stat.stat)
    app.command("verify")(check.verify_command)
    app.command("repair")(check.repair_command)
    app.command("compact")(compact.compact_command)
    app.command("rebuild-index")(check.rebuild_command)
    app.command("replay")(replay.replay)
    app.add_typer(config.app, name="config")
    listing = not argv or argv[0].startswith("-")
    for entry in sorted(entry_points(group=COMMANDS_GROUP)):
        if listing or argv[0] == entry.name:  # a command of another package costs nothing until it is used
            app.command(entry.name)(_load(entry))
    return app


def _load(entry: EntryPoint) -> Callable[..., Any]:
    try:
        command: Callable[..., Any] = entry.load()
    except Exception as e:  # another package's trouble must not take the other commands away
        reason = _missing(e) if isinstance(e, ModuleNotFoundError) else f"cannot load {entry.value}: {e}"

        def unavailable() -> None:
            """(not installed)"""
            raise SystemExit(fail(reason))

        return unavailable
    return command


def _missing(e: ModuleNotFoundError) -> str:
    package = (e.name or "").partition(".")[0]
    extra = _EXTRA_OF.get(package)
    how = f": pip install 'kvtier[{extra}]'" if extra else ""
    return f"this command needs the package {package}, which is not installed{how}"


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"kvtier {__version__}\n")
        raise typer.Exit


def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
