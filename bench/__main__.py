"""``python -m bench [--quick] [--json] [SUITE ...]``: run the suites, keep their figures, write the page.

Figures go to ``bench/report/summary.json``, plots beside it, and from there into ``docs/benchmarks.md`` and
``docs/policies.md``; those of suites that were not run stay as they were. With ``--quick`` (small sizes, a few minutes)
all goes into ``.benchmarks/quick``. ``python -m bench --render`` only writes the pages and ``entries`` anew.
A suite that fails is said to have failed, and why; the others go on, and the exit code is 1.

``python -m bench compare A B`` holds two summaries against each other: :mod:`bench.compare`.

``python -m bench --workload FILE [--model FILE.gguf]`` replays recorded requests under the restore rules of
:mod:`bench.rules` instead, and prints the tables; :mod:`bench.conversations` says what is in the file, and
``bench/sample.jsonl`` is one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from bench import (
    block_io,
    chat,
    churn,
    compare,
    compression,
    decode,
    eviction,
    footprint,
    hdd,
    index_entries,
    opening,
    operations,
    prefetch,
    protection,
    report,
    restore_cost,
    rules,
    stall,
    storage,
    threads,
    two_models,
    warm_ttft,
)
from bench.machines import machine
from bench.measure import Suite, reason_of
from bench.peers import suite as peers

SUITES: dict[str, Suite] = {
    "warm_ttft": warm_ttft.run,
    "two_models": two_models.run,
    "rules": rules.run,
    "restore_cost": restore_cost.run,
    "chat": chat.run,
    "stall": stall.run,
    "decode": decode.run,
    "storage": storage.run,
    "block_io": block_io.run,
    "threads": threads.run,
    "compression": compression.run,
    "protection": protection.run,
    "opening": opening.run,
    "index_entries": index_entries.run,
    "eviction": eviction.run,
    "footprint": footprint.run,
    "churn": churn.run,
    "hdd": hdd.run,
    "prefetch": prefetch.run,
    "operations": operations.run,
    "peers": peers.run,
}


def main() -> None:
    if sys.argv[1:2] == ["compare"]:
        sys.exit(compare.main(sys.argv[2:]))
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run benchmarks and write the report.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"default: all of {', '.join(SUITES)}")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats")
    parser.add_argument("--render", action="store_true", help="run nothing: write the pages from the summary")
    parser.add_argument("--json", action="store_true", help="print the figures of this run")
    parser.add_argument("--workload", type=Path, metavar="FILE", help="replay this file's requests (suite rules)")
    parser.add_argument("--model", type=Path, metavar="GGUF", help="replay with this model")
    options = parser.parse_args()
    if options.workload or options.model:
        _replay(options.workload, options.model, as_json=options.json)
        return
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    if options.render:
        report.keep({}, None, quick=options.quick)
        return
    figures, failed = _run(options.suites or list(SUITES), quick=options.quick)
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _run(chosen: list[str], *, quick: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """The figures of the suites, each kept as soon as it is there; and of those that failed, why."""
    figures, failed = {}, {}
    for name in chosen:
        begin = time.monotonic()
        try:
            figures[name] = SUITES[name](quick, partial(_say, name))
        except Exception as e:
            traceback.print_exc()
            failed[name] = reason_of(e)
        kept = {name: figures[name]} if name in figures else {}
        files = report.keep(kept, machine(), quick=quick, failed={name: failed.get(name)})
        _say(name, f"{time.monotonic() - begin:.0f} s, written to {', '.join(f.name for f in files)}")
    return figures, failed


def _replay(workload: Path | None, model: Path | None, *, as_json: bool) -> None:
    """Print the figures of one replay; nothing is kept."""
    figures = {"rules": rules.replay(workload, model, partial(_say, "rules"))}
    summary = {"quick": False, "machine": machine(), "figures": figures}
    text = json.dumps(figures, indent=2) if as_json else report.benchmarks(summary)
    sys.stdout.write(text + "\n")


def _say(suite: str, what: str) -> None:
    sys.stderr.write(f"{suite}: {what}\n")


if __name__ == "__main__":
    main()
