"""Read a long text with a model and ask about it. Killed at any time, the same command goes on.

::

    python examples/long_document.py --model model.gguf --store cache book.txt --question "Who is Emma?"
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from common import opened, parser, run, text_of

_ASKED = "\n\nQuestion: {}\nAnswer:"
_NEXT = "\nQuestion:"


def main(options: Namespace) -> None:
    text = text_of(options.document)
    with opened(options) as model:
        document = model.tokens(text, begins=True)
        questions = {question: model.tokens(_ASKED.format(question)) for question in options.question}
        longest = len(document) + max(map(len, questions.values())) + options.max_tokens
        model.check_room(str(options.document), len(document), longest)
        model.read(options.document.name, document)
        for question, tokens in questions.items():
            print(f"Question: {question}\nAnswer: {model.answer(document + tokens, stop=_NEXT)}\n", flush=True)


def arguments() -> Namespace:
    options = parser("Read a long text and answer questions about it. Killed at any time, the same command goes on.")
    options.add_argument("document", type=Path, metavar="TEXT")
    options.add_argument("--question", action="append", required=True, metavar="TEXT", help="may be given repeatedly")
    return options.parse_args()


if __name__ == "__main__":
    sys.exit(run(main, arguments()))
