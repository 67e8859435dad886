"""Requests to replay: recorded ones, as JSON lines, or conversations over a real text.

A line is ``{"conversation": id, "messages": [{"role": ..., "content": ...}, ...]}``, or has a ``"prompt"`` (text) in
the place of the messages, and may have the ``"answer"`` (text). Without one, the answer is what a later line of the
conversation has after the same messages.

Messages are tokenised one by one, in ChatML or Gemma's marks, so that an answer is the same tokens when it is
generated and when it is sent back. Replays are forced to give the recorded answers: all of them see the same prompts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from llama_cpp import Llama

from bench.workloads import SEED

Line = dict[str, Any]
Message = dict[str, str]

KINDS = ("first", "extension", "identical", "edit", "shorter", "switch")

_CHATML = ("<|im_start|>{role}\n", "<|im_end|>\n")
_GEMMA = ("<start_of_turn>{role}\n", "<end_of_turn>\n")


@dataclass(frozen=True)
class Request:
    """One request, in tokens. ``user_starts``: where its user messages begin; none in a plain prompt."""

    conversation: str
    prompt: list[int]
    user_starts: tuple[int, ...]
    answer: list[int]


def read(file: Path) -> list[Line]:
    """The lines of a recorded workload. Raises ``OSError``, and ``ValueError`` for a line that is not one."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, line in enumerate(lines, 1):
        if "conversation" not in line or ("messages" in line) == ("prompt" in line):
            raise ValueError(f"{file}: request {number} needs a conversation, and messages or a prompt")
    return lines


def requests(llm: Llama, lines: Sequence[Line]) -> list[Request]:
    """The lines as tokens of this model."""
    encode = _Encoder(llm)
    found = []
    for i, line in enumerate(lines):
        prompt, starts = encode.prompt(line)
        answer = encode.text(line["answer"] if "answer" in line else _answer_to(line, lines[i + 1 :]))
        found.append(Request(str(line["conversation"]), prompt, starts, answer))
    return found


def kinds(asked: Sequence[Request]) -> list[str]:
    """What each request is to the one before it, and to the last one of its conversation: see ``KINDS``."""
    last: dict[str, Request] = {}
    before: Request | None = None
    found = []
    for request in asked:
        own = last.get(request.conversation)
        if own is None:
            kind = "first"
        elif before is not own:
            kind = "switch"
        elif request.prompt == own.prompt:
            kind = "identical"
        elif request.prompt[: len(own.prompt)] == own.prompt:
            kind = "extension"
        elif own.prompt[: len(request.prompt)] == request.prompt:
            kind = "shorter"
        else:
            kind = "edit"
        found.append(kind)
        last[request.conversation] = before = request
    return found


def script(characters: int, turns: int) -> list[Line]:
    """Three conversations in one context, of messages of about so many characters (answers: a fifth).

    A long one of ``turns`` turns, whose last is asked twice and whose last message but one is edited; it goes on
    from there, is taken back to that message, and goes on again. Then it takes turns with another one that has the
    same system prompt. The third is short in every way.
    """
    texts = _texts(characters)
    lines: list[Line] = []

    def said(role: str, share: float = 1.0) -> Message:
        return {"role": role, "content": next(texts)[: int(characters * share)]}

    def ask(conversation: str, messages: list[Message], share: float = 0.2) -> list[Message]:
        """The messages with the answer to them."""
        answer = said("assistant", share)
        lines.append({"conversation": conversation, "messages": messages, "answer": answer["content"]})
        return [*messages, answer]

    system = said("system")
    long, other, short = [system], [system], list[Message]()
    for _ in range(turns):
        long = ask("long", [*long, said("user")])
    long = ask("long", long[:-1])
    edited = [*long[:-4], said("user")]
    long = ask("long", edited)
    ask("long", [*long, said("user")])
    long = ask("long", edited)
    long = ask("long", [*long, said("user")])
    for _ in range(2):
        other = ask("other", [*other, said("user")])
        long = ask("long", [*long, said("user")])
    for _ in range(turns):
        short = ask("short", [*short, said("user", 0.1)], share=0.1)
    return lines


def _texts(characters: int) -> Iterator[str]:
    """Real text in another order each time, without end; each at least so many characters."""
    generator = random.Random(SEED)
    paragraphs = sorted({p for text in topics.values() for p in text.split("\n\n") if len(p) >= 100})
    while True:
        text = ""
        while len(text) < characters:
            text += generator.choice(paragraphs) + "\n\n"
        yield text


def _answer_to(line: Line, later: Sequence[Line]) -> str:
    asked = line.get("messages", [])
    for other in later:
        messages = other.get("messages", [])
        is_continued = other["conversation"] == line["conversation"] and asked and messages[: len(asked)] == asked
        if is_continued and len(messages) > len(asked) and messages[len(asked)]["role"] == "assistant":
            return str(messages[len(asked)]["content"])
    return ""


class _Encoder:
    """Lines into tokens."""

    def __init__(self, llm: Llama) -> None:
        self._llm = llm
        self._is_gemma = str(llm.metadata.get("general.architecture", "")).startswith("gemma")

    def text(self, text: str, special: bool = False) -> list[int]:
        return [int(t) for t in self._llm.tokenize(text.encode(), add_bos=False, special=special)] if text else []

    def prompt(self, line: Line) -> tuple[list[int], tuple[int, ...]]:
        """The tokens of a request, and where its user messages start."""
        tokens = [int(t) for t in self._llm.tokenize(b"", add_bos=True)]
        if "prompt" in line:
            return tokens + self.text(line["prompt"]), ()
        starts = []
        for message in line["messages"]:
            if message["role"] == "user":
                starts.append(len(tokens))
            before, after = self._marks(message["role"])
            tokens += [*self.text(before, True), *self.text(message["content"]), *self.text(after, True)]
        return tokens + self.text(self._marks("assistant")[0], True), tuple(starts)

    def _marks(self, role: str) -> tuple[str, str]:
        before, after = _GEMMA if self._is_gemma else _CHATML
        name = "model" if self._is_gemma and role == "assistant" else role
        return before.format(role=name), after
