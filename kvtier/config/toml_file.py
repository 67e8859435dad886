"""TOML files, and what is said of one that cannot be read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from kvtier.errors import ConfigError, ConfigProblem

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(file: Path) -> dict[str, Any]:
    """What the file says. Raises :class:`kvtier.ConfigError`, also for a file that cannot be read."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError([ConfigProblem(str(file), f"cannot be read: {e.strerror or e}")]) from e
    except UnicodeDecodeError as e:
        raise ConfigError([ConfigProblem(str(file), f"is not UTF-8 text: {e.reason}")]) from e
    except (ValueError, RecursionError) as e:
        raise ConfigError([ConfigProblem(str(file), f"is not valid TOML: {e}")]) from e
