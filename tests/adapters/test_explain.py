"""What would be restored, from where, and why not the rest: from the library and from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvtier import Config, Store
from tests import tiny_models
from tests.adapters import engine

if TYPE_CHECKING:
    from llama_cpp import Llama

pytest.importorskip("llama_cpp")

from kvtier.cli.app import run as kvtier
from kvtier_adapters.llama_cpp import LlamaSession, Options, PromptExplanation, attach

N_CTX = 2048


def load(name: str, **changes: Any) -> Llama:
    from llama_cpp import Llama

    options = {"n_ctx": N_CTX, "n_batch": 128, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    return Llama(str(tiny_models.path(name)), **{**options, **changes})


def text(llm: Llama, length: int, skip: int = 0) -> list[int]:
    return engine.prompt(llm, length, skip)


def on_disk(folder: Path, **tier: Any) -> Config:
    disk = {"name": "disk", "kind": "ssd", "bytes_max": "1GiB", "segment_bytes": "1MiB", **tier}
    return Config.from_dict(
        {"store": {"path": folder, "value_bytes_max": "512KiB"}, "ram": {"bytes_max": 0}, "tier": [disk]}
    )


@pytest.fixture
def llm() -> Iterator[Llama]:
    made = load("gqa")
    yield made
    made.close()


def explained(llm: Llama, store: Store, prompt: list[int], **options: Any) -> PromptExplanation:
    engine.fresh(llm)
    return LlamaSession(llm, store, Options(**options)).explain(prompt)


def test_what_is_stored_where_it_is_and_what_it_costs_to_read(llm: Llama, tmp_path: Path) -> None:
    prompt = text(llm, 700)
    with Store.open(on_disk(tmp_path / "store")) as store:
        session = engine.stored(llm, store, prompt[:600])
        store.flush()
        answer = session.explain(prompt)
        assert (answer.tokens, answer.restorable, answer.stored, answer.live) == (700, 600, 600, 0)
        assert answer.tiers == {"disk": 600}
        assert answer.bytes_to_read == session.stats.bytes_captured
        assert answer.rest.startswith("The block was never stored")
        reads = session.stats.bytes_restored
        assert session.position(prompt) == 600
        assert session.stats.bytes_restored - reads == answer.bytes_to_read
        assert session.explain(prompt).live == 600
        assert "600 of 700 tokens can be restored: 600 from disk." in str(answer)


def test_blocks_in_ram_and_nothing_more_to_say(llm: Llama, store: Store) -> None:
    prompt = text(llm, 300)
    answer = engine.stored(llm, store, prompt).explain(prompt)
    assert answer.tiers == {"ram": 299}
    assert (answer.restorable, answer.rest) == (299, ""), "the last token is evaluated in any case"


def test_an_evicted_block_says_when_it_went(llm: Llama, tmp_path: Path) -> None:
    prompt = text(llm, 1024)
    with Store.open(on_disk(tmp_path / "store", bytes_max="4MiB")) as store:
        engine.stored(llm, store, prompt)
        store.flush()
        for number in range(1, 3):  # other prompts, until the first is gone from its end on
            engine.stored(llm, store, text(llm, 1024, skip=800 * number))
            store.flush()
        answer = explained(llm, store, prompt)
    assert answer.restorable < 1024
    assert "The block was evicted from tier 'disk', at 20" in answer.rest


def test_a_deleted_checkpoint_is_named(store: Store) -> None:
    llm = load("mamba")
    try:
        prompt = text(llm, 300)
        session = engine.stored(llm, store, prompt[:200])
        assert session._to is not None
        assert session.explain(prompt).restorable == 200
        assert session.explain(prompt).tiers == {"ram": 200}
        (piece,) = next(session._to.prefixes(session._to.keys(as_array(prompt))))
        snapshot = session._to.snapshot(piece)
        assert snapshot is not None
        for key in snapshot.keys(session._to.secret):
            store.delete(key)
        answer = session.explain(prompt)
        assert (answer.restorable, answer.stored) == (0, 200)
        assert answer.rest.startswith("No checkpoint, though 200 tokens are stored. The checkpoint there was ")
    finally:
        llm.close()


def as_array(tokens: list[int]) -> Any:
    from kvtier_adapters.llama_cpp.binding import as_tokens

    return as_tokens(tokens)


def test_another_setting_is_named(llm: Llama, store: Store) -> None:
    prompt = text(llm, 300)
    engine.stored(llm, store, prompt)
    other = load("gqa", flash_attn=True)
    try:
        answer = LlamaSession(other, store).explain(prompt)
        assert answer.restorable == 0
        assert answer.rest.startswith("Fingerprint differs: flash_attn ")
    finally:
        other.close()


def test_an_attachment_explains_too(llm: Llama, store: Store) -> None:
    prompt = text(llm, 300)
    with attach(llm, store) as cache:
        engine.greedy(llm, prompt, 2)
        assert cache.explain(prompt).live == 300


def test_the_command_line_answers_without_the_weights(
    llm: Llama, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, prompt = tmp_path / "store", "The quick brown fox jumps over the lazy dog. " * 20
    tokens = [int(t) for t in llm.tokenize(prompt.encode())]
    with Store.open(folder) as store:
        engine.stored(llm, store, tokens[:600])
    command = ["explain", str(folder), "--model", str(tiny_models.path("gqa"))]

    assert kvtier([*command, "--prompt", prompt]) == 0
    out = capsys.readouterr().out
    assert f"600 of {len(tokens):,} tokens can be restored: 600 from disk." in out

    (tmp_path / "ids.json").write_text(json.dumps(tokens))
    assert kvtier([*command, "--tokens", "--file", str(tmp_path / "ids.json"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [s["restorable"] for s in report["settings"]] == [600]
    assert report["settings"][0]["fingerprint"]["arch"] == "llama"

    assert kvtier([*command, "--prompt", "Something else, which was never said."]) == 1
    assert "never stored" in capsys.readouterr().out
    assert kvtier(["explain", str(folder), "--model", str(tiny_models.path("mamba")), "--prompt", prompt]) == 1
    assert "nothing of this model" in capsys.readouterr().out
    assert kvtier([*command, "--prompt", prompt, "--namespace", "other"]) == 1


@pytest.mark.parametrize("text", ["not json", '{"a": 1}', '["x"]'])
def test_a_prompt_that_is_no_list_of_tokens(
    text: str, llm: Llama, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Store.open(tmp_path / "store").close()
    (tmp_path / "ids.json").write_text(text)
    where = ["--model", str(tiny_models.path("gqa")), "--tokens", "--file", str(tmp_path / "ids.json")]
    assert kvtier(["explain", str(tmp_path / "store"), *where]) != 0
    assert "Traceback" not in capsys.readouterr().err
