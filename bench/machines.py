"""On what figures were made: the machine in general terms, and the versions of what was measured."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from bench.peers.lmcache import COMMAND

Machine = Mapping[str, str]

_PACKAGES = ("numpy", "lmdb", "llama-cpp-python", "diskcache", "rocksdict")


def machine() -> dict[str, str]:
    """This machine, and ``packages``: what is installed here of that which decides how fast something is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    release = ".".join(platform.release().split(".")[:2])
    return {
        "processor": f"{os.cpu_count()} cores, {platform.machine()}",
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": f"{platform.system()} {release}",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version}" for name, version in packages().items()),
    }


def packages() -> dict[str, str]:
    """Versions by name; LMCache's is that in its own environment."""
    places = [str(place) for place in COMMAND.parents[1].glob("lib/python*/site-packages")]
    found = [*metadata.distributions(name="lmcache", path=places)] if places else []
    for name in _PACKAGES:
        found += metadata.distributions(name=name)
    versions = {"SQLite": sqlite3.sqlite_version}
    for distribution in found:
        versions.setdefault(distribution.metadata["Name"], distribution.version)
    return versions


def machine_of(summary: Mapping[str, Any], suite: str) -> Machine:
    """Where the figures of a suite in a summary were made; older summaries know that of the last run only."""
    known: Machine = summary.get("machines", {}).get(suite, summary["machine"])
    return known


def in_words(machine: Machine) -> str:
    return ", ".join(f"Python {value}" if name == "python" else value for name, value in machine.items())
