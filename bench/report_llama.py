"""Tables of the suites that run llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bench.report_text import Lines, dropped, rate, seconds, size, spread, table


def warm_ttft(figures: Mapping[str, Any]) -> Lines:
    yield from ("## Time to first token after a restart", "")
    yield f"Page cache dropped {dropped(figures)}."
    yield ""
    rows = figures["rows"]
    yield from table(
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
                *(_ttft(r, arm) for arm in ("cold", "disk_cache", "raw", "kvtier")),
                "-" if r["kvtier_to_raw"] is None else f"**{r['kvtier_to_raw']:.2f}**",
                "≤ 1.0",
                _ttft(r, "limit"),
                f"**{r['kvtier_to_limit']:.2f}**",
                "≤ 1.15",
            ]
            for r in rows
        ),
    )
    yield from ("", "From RAM, and from a hard disk that is a model:", "")
    yield from table(
        ["model", "tokens", "LlamaRAMCache", "**kvtier**, RAM", "kvtier, hard disk (model)"],
        (
            [r["model"], f"{r['tokens']:,}", *(_ttft(r, arm) for arm in ("ram_cache", "kvtier_ram", "kvtier_hdd"))]
            for r in rows
        ),
    )
    yield ""
    for r in rows:
        spent = ", ".join(f"{part} {seconds(s['median'])}" for part, s in r["limit_parts_s"].items())
        yield f"- The limit of {r['model']}, {r['tokens']:,} tokens: {spent}."
    yield from ("", "What saving took, and what it left on disk (only kvtier's is durable when it is done):", "")
    arms = ("disk_cache", "raw", "kvtier")
    yield from table(
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
                *(f"{seconds(r['save_s'][a])}, {size(r['bytes'][a])}" for a in arms),
                seconds(r["open_s"]["median"]),
                "yes" if r["same_first_token"] else "**no**",
            ]
            for r in rows
        ),
    )


def _ttft(row: Mapping[str, Any], arm: str) -> str:
    if arm in row["ttft_s"]:
        return spread(row["ttft_s"][arm], seconds)
    return f"failed: {row['failed'][arm]}" if arm in row.get("failed", {}) else "-"


def two_models(figures: Mapping[str, Any]) -> Lines:
    yield from ("## Two models in one store", "")
    yield f"Prompts of {figures['tokens']:,} tokens; both models open on one store, which was closed in between."
    yield ""
    yield from table(
        ["model", "cold", "kvtier", "same first token", "tokens restored of the other one's prompt", "errors"],
        (
            [
                r["model"],
                seconds(r["cold_s"]),
                spread(r["ttft_s"], seconds),
                "yes" if r["same_first_token"] else "**no**",
                str(r["tokens_of_the_other"]),
                str(r["errors"]),
            ]
            for r in figures["rows"]
        ),
    )


def chat(figures: Mapping[str, Any]) -> Lines:
    yield from ("## What a turn writes", "")
    for row in figures["rows"]:
        yield f"{row['model']}, {row['kv_bytes_per_token']:,} KV bytes a token:"
        yield ""
        yield from table(
            [
                "turn",
                "new tokens",
                "their KV bytes",
                "written",
                "written / new",
                "goal",
                "checkpoints",
                "by the kernel",
                "captures held up the caller",
                "memcpy of what was captured",
            ],
            (
                [
                    str(n),
                    f"{t['new_tokens']:,}",
                    size(t["bytes_new_kv"]),
                    size(t["bytes_written"]),
                    f"**{t['written_to_new']:.3f}**",
                    "≤ 1.05",
                    size(t["checkpoint_bytes"]),
                    "-" if t["kernel_bytes_written"] is None else size(t["kernel_bytes_written"]),
                    seconds(t["stall_s"]),
                    seconds(t["memcpy_s"]),
                ]
                for n, t in enumerate(row["turns"], 1)
            ),
        )
        yield ""
    yield "“By the kernel”: all bytes sent to the disk, index and checkpoints too."


def rules(figures: Mapping[str, Any]) -> Lines:
    yield from ("## Which rule restores what", "")
    for row in figures["rows"]:
        arms = [arm for arm in ("old", "new", "kvtier") if arm in row["total"]]
        yield f"{row['model']}, {row['requests']} requests" + (f" (kvtier: {row['refused']})" if row["refused"] else "")
        yield ""
        yield from table(
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
    "bytes restored": lambda of: size(of["bytes_restored"]),
    "time to first token": lambda of: seconds(of["ttft_s"]["median"]),
}


def restore_cost(figures: Mapping[str, Any]) -> Lines:
    yield from ("## What a restore costs", "")
    yield f"Page cache dropped {dropped(figures)} for the SSD. The hard disk is a model, not a measurement."
    yield ""
    yield from table(
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
                size(r["bytes"]),
                *(spread(r["restore_s"][tier], seconds) for tier in ("ram", "ssd")),
                rate(r["bytes"] / r["restore_s"]["ssd"]["median"]),
                str(r["seeks"]),
                seconds(r["hdd_model_s"]),
            ]
            for r in figures["rows"]
        ),
    )


def stall(figures: Mapping[str, Any]) -> Lines:
    yield from ("## How long a capture holds up the caller", "")
    yield from table(
        ["model", "tokens in the turn", "bytes", "capture", "llama.cpp alone", "memcpy", "capture / memcpy", "goal"],
        (
            [
                r["model"],
                f"{r['turn_tokens']:,}",
                size(r["bytes"]),
                *(spread(r[arm], seconds) for arm in ("capture_s", "engine_s", "memcpy_s")),
                f"**{r['capture_to_memcpy']:.2f}**",
                "≤ 1.5",
            ]
            for r in figures["rows"]
        ),
    )


def decode(figures: Mapping[str, Any]) -> Lines:
    yield from ("## Decoding with saving on and off", "")
    asked, answered = figures["prompt_tokens"], figures["answer_tokens"]
    yield f"Tokens a second, {answered} tokens behind a prompt of {asked} and a question:"
    yield ""
    yield from table(
        ["model", "counted from", "saving off", "saving on", "on / off", "pairs", "goal"],
        (
            [
                r["model"],
                counted.replace("after_", "the ") + " token",
                *(spread(r[counted][arm], "{:.1f}".format) for arm in ("off", "on")),
                f"**{r[counted]['on_to_off']:.3f}**",
                spread(r[counted]["pairs"], "{:.3f}".format),
                "≥ 0.99",
            ]
            for r in figures["rows"]
            for counted in ("after_first", "after_second")
        ),
    )
