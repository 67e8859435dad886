"""``python -m bench [--quick] [--json] [SUITE ...]``: run the suites, keep their figures, write the page.

Figures go to ``bench/report/summary.json``, plots beside it, and from there into ``docs/benchmarks.md`` and
``docs/policies.md``; those of suites that were not run stay as they were. With ``--quick`` (small sizes, a few minutes)
all goes into ``.benchmarks/quick``. ``python -m bench --render`` only writes the pages and ``entries`` anew.

``python -m bench --workload FILE [--model FILE.gguf]`` replays recorded requests under the restore rules of
:mod:`bench.rules` instead, and prints the tables; :mod:`bench.conversations` says what is in the file, and
``bench/sample.jsonl`` is one.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from bench import (
    chat,
    churn,
    decode,
    eviction,
    footprint,
    hdd,
    opening,
    operations,
    prefetch,
    protection,
    report,
    restore_cost,
    rules,
    stall,
    storage,
    warm_ttft,
)
from bench.measure import Suite, machine
from bench.peers import suite as peers

SUITES: dict[str, Suite] = {
    "warm_ttft": warm_ttft.run,
    "rules": rules.run,
    "restore_cost": restore_cost.run,
    "chat": chat.run,
    "stall": stall.run,
    "decode": decode.run,
    "storage": storage.run,
    "protection": protection.run,
    "opening": opening.run,
    "eviction": eviction.run,
    "footprint": footprint.run,
    "churn": churn.run,
    "hdd": hdd.run,
    "prefetch": prefetch.run,
    "operations": operations.run,
    "peers": peers.run,
}


def main() -> None:
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
    chosen = options.suites or list(SUITES)
    figures = {}
    for name in chosen:
        figures[name] = SUITES[name](options.quick, partial(_say, name))
        files = report.keep({name: figures[name]}, machine(), quick=options.quick)  # after each: a later one may fail
        _say(name, f"written to {', '.join(file.name for file in files)} in {files[0].parent}")
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")


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
