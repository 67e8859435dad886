"""``python -m bench [--quick] [--json] [SUITE ...]``: run the suites, keep their figures, write the page.

Figures go to ``bench/report/summary.json`` and from there into ``docs/benchmarks.md``; those of suites that
were not run stay as they were. With ``--quick`` (small sizes, a few minutes) both go into ``.benchmarks/quick``.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial

from bench import chat, opening, operations, report, storage, warm_ttft
from bench.measure import Suite, machine

SUITES: dict[str, Suite] = {
    "warm_ttft": warm_ttft.run,
    "chat": chat.run,
    "storage": storage.run,
    "opening": opening.run,
    "operations": operations.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run benchmarks and write the report.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"default: all of {', '.join(SUITES)}")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats")
    parser.add_argument("--json", action="store_true", help="print the figures of this run")
    options = parser.parse_args()
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    chosen = options.suites or list(SUITES)
    figures = {}
    for name in chosen:
        figures[name] = SUITES[name](options.quick, partial(_say, name))
        page = report.keep(figures, machine(), quick=options.quick)  # after each: a later one may fail
        _say(name, f"written to {page}")
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")


def _say(suite: str, what: str) -> None:
    sys.stderr.write(f"{suite}: {what}\n")


if __name__ == "__main__":
    main()
