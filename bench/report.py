"""Keep the figures as JSON and write them as tables into docs/benchmarks.md, between its two markers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import report_tiers

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- FIGURES: written by `make bench` -->\n", "<!-- END OF FIGURES -->\n"

_MEANS = {
    "drop_caches": "through `/proc/sys/vm/drop_caches`",
    "posix_fadvise": "by `posix_fadvise(DONTNEED)`",
    "none": "**not at all**: this system has no means",
}
Lines = Iterator[str]


def keep(figures: Mapping[str, Any], machine: Mapping[str, str], *, quick: bool) -> Path:
    """Add the figures to the summary and write the tables anew; the page they are on."""
    folder = ROOT / ".benchmarks" / "quick" if quick else ROOT / "bench" / "report"
    folder.mkdir(parents=True, exist_ok=True)
    summary = folder / "summary.json"
    known = json.loads(summary.read_text(encoding="utf-8"))["figures"] if summary.exists() else {}
    known.update(figures)
    text = json.dumps({"quick": quick, "machine": machine, "figures": known}, indent=2)
    summary.write_text(text + "\n", encoding="utf-8")
    page = folder / "figures.md" if quick else PAGE
    page.write_text(_page(page, tables(known, machine, quick=quick)), encoding="utf-8")
    return page


def _page(page: Path, content: str) -> str:
    before, after = f"# Benchmarks\n\n{BEGIN}", END
    if page.exists():
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        before, after = before + BEGIN, END + rest.partition(END)[2]
    return f"{before}\n{content}\n{after}"


def tables(figures: Mapping[str, Any], machine: Mapping[str, str], *, quick: bool) -> str:
    """All figures as Markdown."""
    command = "make bench" + (" QUICK=1" if quick else "")
    facts = ", ".join(f"{value}" if name != "python" else f"Python {value}" for name, value in machine.items())
    lines = [f"Made by `{command}` on: {facts}. Medians, with least and most in brackets."]
    for name, write in _WRITERS.items():
        if name in figures:
            lines += ["", *write(figures[name])]
    return "\n".join(lines) + "\n"


# -- one function a suite ------------------------------------------------------------------------------------


def _warm_ttft(figures: Mapping[str, Any]) -> Lines:
    yield from ("## Time to first token after a restart", "")
    yield f"Page cache dropped {_dropped(figures)}."
    yield ""
    rows = figures["rows"]
    yield from _table(
        [
            "model",
            "tokens",
            "cold",
            "LlamaDiskCache",
            "raw state file",
            "**kvtier**",
            "kvtier / raw",
            "goal",
            "limit",
            "kvtier / limit",
            "goal",
        ],
        (
            [
                r["model"],
                f"{r['tokens']:,}",
                *(_range(r["ttft_s"][arm], _time) for arm in ("cold", "disk_cache", "raw", "kvtier")),
                f"**{r['kvtier_to_raw']:.2f}**",
                "≤ 1.5",
                _range(r["ttft_s"]["limit"], _time),
                f"**{r['kvtier_to_limit']:.2f}**",
                "≤ 1.15",
            ]
            for r in rows
        ),
    )
    yield ""
    for r in rows:
        spent = ", ".join(f"{part} {_time(s['median'])}" for part, s in r["limit_parts_s"].items())
        yield f"- The limit of {r['model']}, {r['tokens']:,} tokens: {spent}."
    yield from ("", "What saving took, and what it left on disk (only kvtier's is durable when it is done):", "")
    arms = ("disk_cache", "raw", "kvtier")
    yield from _table(
        [
            "model",
            "tokens",
            "LlamaDiskCache",
            "raw state file",
            "kvtier",
            "kvtier: open and attach",
            "same first token",
        ],
        (
            [
                r["model"],
                f"{r['tokens']:,}",
                *(f"{_time(r['save_s'][a])}, {_size(r['bytes'][a])}" for a in arms),
                _time(r["open_s"]["median"]),
                "yes" if r["same_first_token"] else "**no**",
            ]
            for r in rows
        ),
    )


def _chat(figures: Mapping[str, Any]) -> Lines:
    yield from ("## What a turn writes", "")
    for row in figures["rows"]:
        yield f"{row['model']}, {row['kv_bytes_per_token']:,} KV bytes a token:"
        yield ""
        yield from _table(
            [
                "turn",
                "new tokens",
                "their KV bytes",
                "written",
                "written / new",
                "goal",
                "checkpoints",
                "by the kernel",
            ],
            (
                [
                    str(n),
                    f"{t['new_tokens']:,}",
                    _size(t["bytes_new_kv"]),
                    _size(t["bytes_written"]),
                    f"**{t['written_to_new']:.3f}**",
                    "≤ 1.10",
                    _size(t["checkpoint_bytes"]),
                    "-" if t["kernel_bytes_written"] is None else _size(t["kernel_bytes_written"]),
                ]
                for n, t in enumerate(row["turns"], 1)
            ),
        )
        yield ""
    yield "“By the kernel”: all bytes sent to the disk, index and checkpoints too."


def _rules(figures: Mapping[str, Any]) -> Lines:
    yield from ("## Which rule restores what", "")
    for row in figures["rows"]:
        arms = [arm for arm in ("old", "new", "kvtier") if arm in row["total"]]
        yield f"{row['model']}, {row['requests']} requests" + (f" (kvtier: {row['refused']})" if row["refused"] else "")
        yield ""
        yield from _table(
            ["turn", "count", *(f"{what}: {' / '.join(arms)}" for what in _RULE_COLUMNS)],
            (
                [
                    kind,
                    str(of["turns"]),
                    *(" / ".join(show(of[arm]) for arm in arms) for show in _RULE_COLUMNS.values()),
                ]
                for kind, of in [*row["kinds"].items(), ("**all**", row["total"])]
            ),
        )
        avoided = ", ".join(f"{n} by {'the new rule' if a == 'new' else a}" for a, n in row["restores_avoided"].items())
        yield from ("", f"Restores avoided, against the old rule: {avoided}.", "")


_RULE_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "restores": lambda of: str(of["restores"]),
    "tokens evaluated": lambda of: f"{of['tokens_evaluated']:,}",
    "bytes restored": lambda of: _size(of["bytes_restored"]),
    "time to first token": lambda of: _time(of["ttft_s"]["median"]),
}


def _restore_cost(figures: Mapping[str, Any]) -> Lines:
    yield from ("## What a restore costs", "")
    yield f"Page cache dropped {_dropped(figures)} for the SSD. The hard disk is a model, not a measurement."
    yield ""
    yield from _table(
        [
            "model",
            "K and V",
            "tokens",
            "bytes",
            "from RAM",
            "from a cold SSD",
            "rate (SSD)",
            "seeks",
            "hard disk (model)",
        ],
        (
            [
                r["model"],
                r["kv_type"],
                f"{r['tokens']:,}",
                _size(r["bytes"]),
                *(_range(r["restore_s"][tier], _time) for tier in ("ram", "ssd")),
                _rate(r["bytes"] / r["restore_s"]["ssd"]["median"]),
                str(r["seeks"]),
                _time(r["hdd_model_s"]),
            ]
            for r in figures["rows"]
        ),
    )


def _stall(figures: Mapping[str, Any]) -> Lines:
    yield from ("## How long a capture holds up the caller", "")
    yield from _table(
        ["model", "tokens in the turn", "bytes", "capture", "llama.cpp alone", "memcpy", "capture / memcpy", "goal"],
        (
            [
                r["model"],
                f"{r['turn_tokens']:,}",
                _size(r["bytes"]),
                *(_range(r[arm], _time) for arm in ("capture_s", "engine_s", "memcpy_s")),
                f"**{r['capture_to_memcpy']:.2f}**",
                "≤ 1.5",
            ]
            for r in figures["rows"]
        ),
    )


def _decode(figures: Mapping[str, Any]) -> Lines:
    yield from ("## Decoding with saving on and off", "")
    asked, answered = figures["prompt_tokens"], figures["answer_tokens"]
    yield f"Tokens a second, {answered} tokens behind a prompt of {asked} and a question:"
    yield ""
    yield from _table(
        ["model", "counted from", "saving off", "saving on", "on / off", "pairs", "goal"],
        (
            [
                r["model"],
                counted.replace("after_", "the ") + " token",
                *(_range(r[counted][arm], "{:.1f}".format) for arm in ("off", "on")),
                f"**{r[counted]['on_to_off']:.3f}**",
                _range(r[counted]["pairs"], "{:.3f}".format),
                "≥ 0.99",
            ]
            for r in figures["rows"]
            for counted in ("after_first", "after_second")
        ),
    )


def _storage(figures: Mapping[str, Any]) -> Lines:
    put, ram, flush = figures["put"], figures["ram"], figures["flush"]
    yield from (f"## Blocks of {figures['block_bytes'] >> 20} MiB", "", "One block:", "")
    yield from _table(
        ["", "time", "ratio"],
        [
            ["`put`", _range(put["put"], _time), ""],
            [
                "memcpy into new memory",
                _range(put["memcpy_new"], _time),
                f"**{put['put_to_memcpy_new']:.2f}** (put / it)",
            ],
            [
                "memcpy into warm memory",
                _range(put["memcpy_warm"], _time),
                f"{put['put_to_memcpy_warm']:.2f} (put / it)",
            ],
            ["`get` from RAM", _range(ram["get"], _time), "copies nothing"],
            ["`get_into` from RAM", _range(ram["get_into"], _time), ""],
            [
                "memcpy into the same memory",
                _range(ram["memcpy"], _time),
                f"{ram['memcpy_to_get_into']:.2f} (it / get_into)",
            ],
        ],
    )
    yield from ("", f"{figures['blocks']} blocks; page cache dropped {_dropped(figures)} for “cold”:", "")
    warm, cold = figures["read_warm"], figures["read_cold"]

    def reads(arm: str) -> list[str]:
        return [_range(cold[arm], _rate), _range(warm[arm], _rate)]

    yield from _table(
        ["", "cold", "warm"],
        [
            ["`get_many`", *reads("get_many")],
            ["preadv into new memory", *reads("preadv_new")],
            ["`get_many` / preadv", *(f"**{r['get_many_to_preadv_new']:.2f}**" for r in (cold, warm))],
            ["`get_many(keep=False)`", *reads("get_many_once")],
            ["`get_into`, one by one", *reads("get_into")],
            ["preadv into reused memory", *reads("preadv_reused")],
            [
                "`get_many(keep=False)` / preadv",
                *(f"**{r['get_many_once_to_preadv_reused']:.2f}**" for r in (cold, warm)),
            ],
            ["`get_into` / preadv", *(f"**{r['get_into_to_preadv_reused']:.2f}**" for r in (cold, warm))],
        ],
    )
    yield ""
    yield (
        f"`put` and `flush` of them: {_range(flush['kvtier'], _rate)}; writing them to one file with one fsync: "
        f"{_range(flush['plain'], _rate)}; ratio **{flush['kvtier_to_plain']:.2f}**."
    )


def _protection(figures: Mapping[str, Any]) -> Lines:
    yield from (f"## What checks and encryption cost ({_size(figures['block_bytes'])} blocks)", "")
    yield (
        f"{figures['blocks']} blocks by `get_many(keep=False)`; page cache dropped {_dropped(figures)} for “cold”. "
        "Unchecked: the payloads' checksums are not computed, in this benchmark only."
    )
    yield ""
    states = [figures["cold"], figures["warm"]]
    yield from _table(
        ["", "cold", "warm", "goal"],
        [
            *([arm, *(_range(s["rates"][arm], _rate) for s in states), ""] for arm in states[0]["rates"]),
            ["checked / unchecked", *(f"**{s['checked_to_unchecked']:.2f}**" for s in states), "≥ 0.90"],
            ["encrypted / checked", *(f"**{s['encrypted_to_checked']:.2f}**" for s in states), "≥ 0.85"],
        ],
    )


def _opening(figures: Mapping[str, Any]) -> Lines:
    yield from (f"## Opening a store of {figures['blocks']:,} blocks", "")
    ends = figures["open_s"]
    yield from _table(
        ["", "`Store.open`", "goal"],
        [
            ["after `close()`", _range(ends["closed"], _time), "≤ 1 s"],
            ["after SIGKILL", _range(ends["killed"], _time), "≤ 1 s"],
        ],
    )
    yield from (
        "",
        f"Page cache dropped {_dropped(figures)}. Index: {figures['index_bytes_per_block']:.0f} bytes a block.",
    )


def _churn(figures: Mapping[str, Any]) -> Lines:
    yield from (f"## Churn in a tier that is 90 % full ({_size(figures['bytes_max'])})", "")
    yield (
        "Conversations grow and end; counted once the tier has been full. *Written / admitted*: bytes written to "
        "segments for each that was taken in; *disk / live*: bytes that segments occupy for each that a block needs; "
        "*live / cap*: how full the tier is kept. Goals: 1.10 and 1.15. No holes: as on a file system without them."
    )
    yield ""
    keys = ("written_to_admitted", "disk_to_live", "live_to_cap")
    yield from _table(
        ["blocks go by, file system, `compaction`", "written / admitted", "disk / live", "live / cap"],
        [[name, *(f"{arm[key]:.2f}" for key in keys)] for name, arm in figures["arms"].items()],
    )


def _operations(figures: Mapping[str, Any]) -> Lines:
    yield from ("## Single calls", "")
    yield from _table(["call", "time"], ([name, _time(s["median"])] for name, s in figures["call_s"].items()))


_WRITERS: dict[str, Callable[[Mapping[str, Any]], Lines]] = {
    "warm_ttft": _warm_ttft,
    "rules": _rules,
    "restore_cost": _restore_cost,
    "chat": _chat,
    "stall": _stall,
    "decode": _decode,
    "storage": _storage,
    "protection": _protection,
    "opening": _opening,
    "churn": _churn,
    "hdd": report_tiers.hdd,
    "prefetch": report_tiers.prefetch,
    "operations": _operations,
}


# -- text ----------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> Lines:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _range(arm: Mapping[str, float], shown: Callable[[float], str]) -> str:
    return f"{shown(arm['median'])} ({shown(arm['min'])} - {shown(arm['max'])})"


def _dropped(figures: Mapping[str, Any]) -> str:
    return " and ".join(_MEANS[means] for means in figures["page_cache"].split(", "))


def _time(s: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if s * factor >= 1:
            return f"{s * factor:.3g} {unit}"
    return f"{s * 1e9:.0f} ns"


def _size(nbytes: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes:.0f} B"


def _rate(bytes_per_s: float) -> str:
    return f"{_size(bytes_per_s)}/s"
