"""Answer many prompts that begin with the same long instructions. Killed at any time, the same command goes on.

::

    python examples/batch_job.py --model model.gguf --store cache --instructions rules.txt prompts.jsonl answers.jsonl

Each line of the input is ``{"prompt": "..."}``; the output gets ``{"prompt": "...", "answer": "..."}`` for each, in
the same order. A line is written and on the disk before the next prompt is begun.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from pathlib import Path

from common import Failure, opened, parser, run, text_of

_ASKED = "\n\nInput: {}\nOutput:"
_NEXT = "\nInput:"


def main(options: Namespace) -> None:
    instructions_text, prompts = text_of(options.instructions), prompts_of(options.prompts)
    done = finished(options.answers, prompts)
    if done == len(prompts):
        return
    with opened(options) as model, options.answers.open("ab") as answers:
        instructions = model.tokens(instructions_text, begins=True)
        requests = [instructions + model.tokens(_ASKED.format(prompt)) for prompt in prompts]
        for number, request in enumerate(requests, start=1):
            model.check_room(f"prompt {number}", len(request), len(request) + options.max_tokens)
        model.read("instructions", instructions)
        for prompt, request in list(zip(prompts, requests, strict=True))[done:]:
            done += 1
            model.read(f"prompt {done} of {len(prompts)}", request)
            answer = model.answer(request, stop=_NEXT)
            model.cache.read(instructions)  # back to the state after them; what was captured is durable
            answers.write(line_of(prompt, answer))
            answers.flush()
            os.fsync(answers.fileno())


def prompts_of(path: Path) -> list[str]:
    prompts = []
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, LookupError, TypeError):
            prompt = None
        if not isinstance(prompt, str):
            raise Failure(f'{path}, line {number}: not {{"prompt": "..."}}')
        prompts.append(prompt)
    return prompts


def line_of(prompt: str, answer: str) -> bytes:
    return json.dumps({"prompt": prompt, "answer": answer}).encode() + b"\n"


def finished(answers: Path, prompts: list[str]) -> int:
    """How many prompts, from the first on, have an answer. A last line that a kill cut short is taken off."""
    written = answers.read_bytes() if answers.exists() else b""
    *lines, cut = written.split(b"\n")
    begins = [line_of(prompt, "")[: -len('"}\n')] for prompt in prompts]
    fits = len(lines) + bool(cut) <= len(prompts) and all(map(bytes.startswith, lines, begins))
    if fits and cut:
        begin = begins[len(lines)]
        fits = cut.startswith(begin) or begin.startswith(cut)
    if not fits:
        raise Failure(f"{answers} has answers to other prompts: name another file")
    if cut:
        os.truncate(answers, len(written) - len(cut))
    return len(lines)


def arguments() -> Namespace:
    options = parser("Answer many prompts behind the same instructions. Killed at any time, the same command goes on.")
    options.add_argument(
        "--instructions", type=Path, required=True, metavar="TEXT", help="what every prompt begins with"
    )
    options.add_argument("prompts", type=Path, metavar="PROMPTS.jsonl")
    options.add_argument("answers", type=Path, metavar="ANSWERS.jsonl", help="appended to")
    return options.parse_args()


if __name__ == "__main__":
    sys.exit(run(main, arguments()))
