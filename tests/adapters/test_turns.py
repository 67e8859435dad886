"""Where user messages begin, found in the prompts that chat templates make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from kvtier import Store
from kvtier_adapters.llama_cpp import attach
from kvtier_adapters.llama_cpp.turns import Turns
from tests import models, tiny_models
from tests.adapters import engine, tiny_llama

if TYPE_CHECKING:
    from llama_cpp import Llama

pytestmark = pytest.mark.model

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' "
    "+ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA_TEMPLATE = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
SAID = ["What is a marmot?", "A rodent.", "And a pika?\n\nIn one word.", "Mammal.", "Which of them whistles?"]


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Callable[[str], Llama]]:
    """Tokenizers of three kinds: of SmolLM2, of Gemma 3, and of a model of bytes that puts a space before a text."""
    paths: dict[str, Callable[[], Path]]
    paths = {"smollm2": models.smollm2, "gemma3": models.gemma3, "bytes": lambda: tiny_models.path("mamba")}
    kept: dict[str, Llama] = {}

    def get(name: str) -> Llama:
        if name not in kept:
            kept[name] = llama_cpp.Llama(str(paths[name]()), vocab_only=True, verbose=False)
        return kept[name]

    yield get
    for llm in kept.values():
        llm.close()


def turns_of(template: str | None, llm: Llama) -> Turns:
    """Of a model with this template and the tokenizer of ``llm``."""
    metadata = {"tokenizer.chat_template": template} if template is not None else {}
    return Turns(cast(Any, SimpleNamespace(metadata=metadata, tokenize=llm.tokenize)))


def messages(*said: str, system: str = "") -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant") * len(said)
    return [*first, *({"role": role, "content": text} for role, text in zip(roles, said, strict=False))]


def prompt(template: str, llm: Llama, of: list[dict[str, str]]) -> list[int]:
    """As ``create_chat_completion`` makes it."""
    formatter = Jinja2ChatFormatter(template, eos_token="</s>", bos_token="<s>")
    return llm.tokenize(formatter(messages=cast(Any, of)).prompt.encode(), add_bos=False, special=True)


def smollm2_template(vocabulary: Callable[[str], Llama]) -> str:
    return str(vocabulary("smollm2").metadata["tokenizer.chat_template"])


CASES = [
    ("smollm2", None, "<|im_start|>user\n", "Answer briefly."),
    ("bytes", None, "<|im_start|>user\n", "Answer briefly."),
    ("gemma3", GEMMA_TEMPLATE, "<start_of_turn>user\n", ""),
    ("bytes", GEMMA_TEMPLATE, "<start_of_turn>user\n", ""),
    ("smollm2", LLAMA_TEMPLATE, "<|start_header_id|>user<|end_header_id|>\n\n", "Answer briefly."),
    ("bytes", MISTRAL_TEMPLATE, "[INST] ", ""),
]


@pytest.mark.parametrize(("tokenizer", "template", "header", "system"), CASES)
def test_each_user_message_is_found_where_its_header_begins(
    tokenizer: str, template: str | None, header: str, system: str, vocabulary: Callable[[str], Llama]
) -> None:
    llm = vocabulary(tokenizer)
    template = template or smollm2_template(vocabulary)
    turns = turns_of(template, llm)
    for count in (1, 3, 5):
        tokens = prompt(template, llm, messages(*SAID[:count], system=system))
        starts = turns.starts(tokens)
        assert len(starts) == (count + 1) // 2
        for start, said in zip(starts, SAID[::2], strict=False):
            before, _, _ = llm.detokenize(tokens[start:], special=True).decode().partition(said)
            assert header[-3:].strip() in before, "what is found is not before the message"
            assert len(before) <= len("<|im_end|>\n" + header), "it begins in the answer before"


def test_a_conversation_that_goes_on_has_the_same_beginnings(vocabulary: Callable[[str], Llama]) -> None:
    llm, template = vocabulary("smollm2"), smollm2_template(vocabulary)
    turns = turns_of(template, llm)
    long = turns.starts(prompt(template, llm, messages(*SAID)))
    assert turns.starts(prompt(template, llm, messages(*SAID[:3]))) == long[:2]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, "none in the model file"),
        ("", "an empty one"),
        ("{% for message in messages %}", "no end"),
        ("{{ raise_exception('not for you') }}", "one that raises"),
        ("{{ messages[7]['content'] | lower }}", "one that expects more"),
        ("{{ unknown_function(messages) }}", "one that calls what is not there"),
        ("{% for message in messages %}{{ message['content'] | upper }}{% endfor %}", "one that changes what was said"),
        ("{% for message in messages %}{{ message['content'] }}{% endfor %}", "nothing before a message"),
        ("always the same", "one that says nothing"),
        ("{% for m in messages %}{{ 'once upon a time ' * 40 + m['content'] }}{% endfor %}", "a header without end"),
    ],
)
def test_without_a_usable_template_there_are_none(
    template: str | None, why: str, vocabulary: Callable[[str], Llama]
) -> None:
    llm = vocabulary("smollm2")
    turns = turns_of(template, llm)
    assert turns.starts(llm.tokenize(b"once upon a time " * 40 + b"yes", add_bos=False)) == []


def test_an_edited_last_message_goes_back_to_its_beginning(
    tmp_path: Path, store: Store, vocabulary: Callable[[str], Llama]
) -> None:
    """A chat with a recurrent model: all before the last message is restored, whatever is said in its place."""
    writer = tiny_models.MODELS["mamba"].build("mamba")
    writer._gguf.add_chat_template(smollm2_template(vocabulary))
    file = writer.write(tmp_path / "chat.gguf")
    with tiny_llama.loaded(file) as llm:
        template = llm.metadata["tokenizer.chat_template"]
        said = messages(*SAID[:4], "Tell me about the marmots of the Alps, please.")
        edited = messages(*SAID[:4], "Never mind: what do pikas eat in winter?")
        whole, other = (prompt(template, llm, chat) for chat in (said, edited))
        (*_, beginning) = turns_of(template, llm).starts(whole)
        with attach(llm, store):
            answer(llm, said)
        engine.fresh(llm)
        with attach(llm, store) as attached:
            text = answer(llm, edited)
            assert attached.stats.tokens_restored == beginning
            assert attached.stats.tokens_evaluated == len(other) - beginning + 7, "the last token of 8 is not"
            assert attached.stats.errors == {}
        engine.fresh(llm)
        assert text == answer(llm, edited)
        engine.fresh(llm)
        with attach(
            llm, store, checkpoint_user_messages=False, checkpoint_before_end=False, namespace=b"no"
        ) as attached:
            answer(llm, said)
            answer(llm, edited)
            assert attached.stats.tokens_restored == 0, "the checkpoint is what makes the difference"


def answer(llm: Llama, chat: list[dict[str, str]]) -> str:
    answered = cast(Any, llm.create_chat_completion(cast(Any, chat), temperature=0.0, max_tokens=8))
    return str(answered["choices"][0]["message"]["content"])
