"""The command. What keeps it from starting becomes one line on stderr and exit code 2."""

from __future__ import annotations

import sys

from kvtier import ConfigError, KvtierError, Store, key_file
from kvtier_adapters.llama_cpp.server.arguments import Arguments, parse, wants_help
from kvtier_adapters.llama_cpp.server.console import say

_FAILED, _INTERRUPTED = 2, 130


def main() -> int:
    arguments = parse(sys.argv[1:])
    try:
        from kvtier_adapters.llama_cpp.server import serving
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed: pip install 'kvtier[server]'")
    if wants_help(arguments.server):
        serving.run_stock(arguments.server)
    try:
        store = _open(arguments)
    except ConfigError as error:
        return _fail("; ".join(map(str, error.problems)))
    except KvtierError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or arguments.store}: {error.strerror or error}")
    try:
        serving.serve(store, arguments.options, arguments.server)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _open(arguments: Arguments) -> Store:
    return Store.open(arguments.store, keys=key_file(arguments.key_file) if arguments.key_file else None)


def _fail(message: str) -> int:
    say(message)
    return _FAILED


if __name__ == "__main__":
    sys.exit(main())
