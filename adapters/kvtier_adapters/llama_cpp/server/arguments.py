"""The options that are ours; all others belong to ``llama_cpp.server`` and are handed on as they are."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from kvtier_adapters.llama_cpp.options import Options

_PROGRAM = "python -m kvtier_adapters.llama_cpp.server"
_PREFIX = "kvtier_"
_DESCRIPTION = """
llama_cpp.server with a store: prompts seen before, in any process, are restored. The options kvtier_... are those of
kvtier_adapters.llama_cpp.Options; all of them can be given in the environment instead, as KVTIER_STORE,
KVTIER_NAMESPACE, and so on. The server's own logits_all is off unless it is asked for: a model that has it on is
served without the store.
"""


@dataclass(frozen=True)
class Arguments:
    """What was asked for. ``server`` are the arguments that are not ours, in their order."""

    store: str
    key_file: str | None
    options: Options
    server: list[str]


def parse(argv: Sequence[str]) -> Arguments:
    """Take our options out of ``argv``, and from the environment what is not there.

    ``--help`` prints them and stays in the server's arguments, for its own help. A wrong one ends the process
    with code 2 and a line that says why.
    """
    parser = _parser()
    ours, server = parser.parse_known_args(argv)
    if wants_help(server):
        print(parser.format_help())
    elif not ours.store:
        parser.error("--store (or KVTIER_STORE) is needed: the folder of the store, or its TOML file")
    given = {name.removeprefix(_PREFIX): value for name, value in vars(ours).items() if value is not None}
    store, key = given.pop("store", ""), given.pop("key_file", None)
    try:
        return Arguments(store, key, Options(**given), server)
    except ValueError as error:
        parser.error(str(error))


def wants_help(server: Sequence[str]) -> bool:
    return "-h" in server or "--help" in server


def _parser() -> argparse.ArgumentParser:
    """``--store``, ``--key_file``, and a ``--kvtier_NAME`` for each field of :class:`Options`."""
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        usage=f"{_PROGRAM} --store FOLDER|FILE.toml [options of llama_cpp.server]",
        description=_DESCRIPTION,
        add_help=False,
        allow_abbrev=False,  # an abbreviation may be one of the server's options
    )
    parser.add_argument(
        "--store",
        metavar="FOLDER|FILE.toml",
        default=os.environ.get("KVTIER_STORE"),
        help="where prompts are kept: a folder (made if need be), or a configuration file",
    )
    parser.add_argument(
        "--key_file",
        metavar="FILE",
        default=os.environ.get("KVTIER_KEY_FILE"),
        help="the key of an encrypted store, or to make one: a file of 32 bytes or 64 hexadecimal digits",
    )
    for option in fields(Options):
        metavar, convert = _KINDS[type(option.default)]
        name = _PREFIX + option.name
        parser.add_argument(
            f"--{name}",
            metavar=metavar,
            type=convert,
            default=os.environ.get(name.upper()),
            help=f"default: {option.default!r}",
        )
    return parser


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise ValueError(text)


_KINDS: dict[type, tuple[str, Callable[[str], object]]] = {
    bool: ("true|false", _boolean),
    bytes: ("TEXT", str.encode),
    int: ("N", int),
    str: ("TEXT", str),
}
