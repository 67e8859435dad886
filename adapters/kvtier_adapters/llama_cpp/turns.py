"""Where the user's messages begin in a prompt of tokens, found by what the chat template writes before each."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from llama_cpp.llama_chat_format import Jinja2ChatFormatter

if TYPE_CHECKING:
    from llama_cpp import Llama

_FIRST, _SECOND, _ANSWER = "kvtierfirstmessage", "kvtiersecondmessage", "kvtieranswer"
_MARKER_TOKENS_MAX = 64


class Turns:
    """Of one model. Without a chat template in the model file no messages are found."""

    def __init__(self, llm: Llama) -> None:
        self._marker = _marker(llm)

    def starts(self, prompt: list[int]) -> list[int]:
        """The positions at which user messages begin (with what the template writes before them), ascending."""
        marker, length = self._marker, len(self._marker)
        if not marker:
            return []
        last = len(prompt) - length
        return [at for at in range(last + 1) if prompt[at] == marker[0] and prompt[at : at + length] == marker]


def _marker(llm: Llama) -> list[int]:
    """The tokens before each user message: what the template writes there both at the beginning and later on."""
    template = llm.metadata.get("tokenizer.chat_template")
    if not template:
        return []
    try:
        first, later = (_tokens_before(llm, text) for text in _before_messages(template))
    except Exception:  # a template is a program of the model file's: whatever it raises, there are no markers
        return []
    tokens = _common_start(first[::-1], later[::-1])[::-1]  # of tokens: a tokenizer may put a space before each text
    return tokens if len(tokens) <= _MARKER_TOKENS_MAX else []


def _before_messages(template: str) -> tuple[str, str]:
    """What the template writes before a first message, and between an answer and the next message."""
    formatter = Jinja2ChatFormatter(template, eos_token="", bos_token="", add_generation_prompt=False)
    text = formatter(
        messages=[
            {"role": "user", "content": _FIRST},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _SECOND},
        ]
    ).prompt
    return text[: text.index(_FIRST)], text[text.index(_ANSWER) + len(_ANSWER) : text.index(_SECOND)]


def _tokens_before(llm: Llama, text: str) -> list[int]:
    """The tokens of ``text`` that are the same whatever is said behind it: its end may go into one with that."""
    one, other = (llm.tokenize((text + said).encode(), add_bos=False, special=True) for said in ("yes", "No"))
    return _common_start(one, other)


def _common_start(a: list[int], b: list[int]) -> list[int]:
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return [token for token, _ in pairs]
