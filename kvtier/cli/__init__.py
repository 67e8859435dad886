"""The command line, ``kvtier``. It needs the extra ``cli`` (typer and rich); the library does not."""

from __future__ import annotations

import sys

_NEEDED = {"click", "rich", "shellingham", "typer"}


def main() -> None:
    """Run the command line on ``sys.argv`` and exit: 0 done, 1 failed (one line on stderr), 2 wrong usage."""
    try:
        from kvtier.cli.app import run
    except ModuleNotFoundError as e:
        if e.name not in _NEEDED:
            raise
        sys.exit(f"kvtier: the command line needs the package {e.name}: pip install 'kvtier[cli]'")
    sys.exit(run(sys.argv[1:]))
