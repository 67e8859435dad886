"""``kvtier config check`` and ``kvtier config schema``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kvtier.cli.output import JsonFlag, fail, print_facts, print_json
from kvtier.config import Config, RamConfig, TierConfig, json_schema
from kvtier.errors import ConfigError
from kvtier.memory import memory
from kvtier.units import Percent

app = typer.Typer(help="Check a configuration file, or print its JSON schema.", no_args_is_help=True)


@app.command()
def check(file: Annotated[Path, typer.Argument(help="The TOML file.", metavar="FILE")], json: JsonFlag = False) -> None:
    """Say everything that is wrong with FILE, or what it comes to. Exit code 0 if it is right, else 1."""
    try:
        config = Config.from_toml(file)
    except ConfigError as e:
        if json:
            print_json({"ok": False, "problems": [dataclasses.asdict(p) for p in e.problems]})
        else:
            count = len(e.problems)
            fail(f"{file}: {count} problem{'s' if count > 1 else ''}", *(f"  {p}" for p in e.problems))
        raise typer.Exit(1) from None
    resolved = _resolved(config)
    if json:
        print_json({"ok": True, "problems": [], "config": resolved})
        return
    sys.stdout.write(f"{file}: ok\n")
    for name, section in resolved.items():
        if name != "tier":
            print_facts(name, section)
    for tier in resolved["tier"]:
        print_facts(f"tier {tier['name']}", tier)


@app.command()
def schema() -> None:
    """Print the JSON schema of the file, for editors that complete and check TOML."""
    sys.stdout.write(json_schema())


def _resolved(config: Config) -> dict[str, Any]:
    sections = {name: getattr(config, name) for name in ("store", "ram", "write_behind", "prefetch")}
    result: dict[str, Any] = {
        name: {key: _plain(value) for key, value in section} for name, section in sections.items()
    }
    result["ram"] |= _resolved_ram(config.ram)
    result["tier"] = [_resolved_tier(tier) for tier in config.tier]
    return result


def _resolved_tier(tier: TierConfig) -> dict[str, Any]:
    share = str(tier.bytes_max) if isinstance(tier.bytes_max, Percent) else None
    facts = {key: _plain(value) for key, value in tier}
    resolved = {"bytes_max": tier.bytes_max_resolved(), "free_bytes_min": tier.free_bytes_min_resolved()}
    return {**facts, **resolved, "share_of_disk": share}


def _resolved_ram(ram: RamConfig) -> dict[str, Any]:
    try:
        floor = ram.available_bytes_min_resolved(memory().total)
        return {"bytes_max": ram.bytes_max_resolved(), "available_bytes_min": floor}
    except OSError:  # a share of a memory that is not known would be a problem of the file
        return {}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path | Percent) else value
