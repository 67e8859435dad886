"""The slot that :mod:`bench.rules` replays on does what llama.cpp's server does, in cases counted by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from llama_cpp import Llama

from bench.conversations import Request, kinds, read, requests, script
from bench.rules import _Server, _turn
from bench.slot import MIN_STEP, Batches, Checkpoint, Slot, kept
from tests import tiny_models

_TEXT = [3 + (7 * i + i // 13) % 200 for i in range(700)]
_OTHER = [3 + (11 * i + 5) % 200 for i in range(700)]
_UBATCH = 32  # the window's 64 rows then lie in 256 cells

Loaded = Callable[[str], Llama]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    """A tiny model with an empty context."""
    kept_open: dict[str, Llama] = {}

    def get(name: str) -> Llama:
        if name not in kept_open:
            file = str(tiny_models.path(name))
            kept_open[name] = Llama(
                file, n_ctx=1024, n_batch=2 * _UBATCH, n_ubatch=_UBATCH, flash_attn=True, swa_full=False, verbose=False
            )
        llm = kept_open[name]
        llm.reset()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), True)
        return llm

    yield get
    for llm in kept_open.values():
        llm.close()


def ask(slot: Slot, llm: Llama, prompt: list[int]) -> tuple[int, int]:
    """Evaluate the whole prompt: the restores made for it, and the tokens evaluated."""
    restores, evaluated = slot.counts.restores, slot.counts.tokens_evaluated
    llm.eval(slot.start(prompt, ()))
    assert llm.input_ids[: llm.n_tokens].tolist() == prompt
    return slot.counts.restores - restores, slot.counts.tokens_evaluated - evaluated


@pytest.mark.parametrize("before", [True, False])
def test_a_window_is_restored_only_where_it_is_gone(loaded: Loaded, before: bool) -> None:
    llm = loaded("gemma3")
    slot = Slot(llm, before_b9509=before)
    assert ask(slot, llm, _TEXT[:500]) == (0, 500)
    assert ask(slot, llm, _TEXT[:600]) == (0, 100)  # goes on: the window is there
    assert ask(slot, llm, _TEXT[:600]) == (0, 1)
    assert ask(slot, llm, _TEXT[:580] + _OTHER[:40]) == (0, 40)  # 20 back: the cells still hold the window
    # The window as of 250 is gone. Kept were 464 and 496 tokens (500 - 36, 500 - 4) and later ones: all too late.
    assert ask(slot, llm, _TEXT[:250] + _OTHER[:50]) == (0, 300)


def test_a_checkpoint_before_the_divergence_is_restored(loaded: Loaded) -> None:
    llm = loaded("gemma3")
    slot = Slot(llm, before_b9509=False)
    ask(slot, llm, _TEXT[:200])  # kept: 164 and 196 tokens
    ask(slot, llm, _TEXT[:600])
    assert ask(slot, llm, _TEXT[:200] + _OTHER[:50]) == (1, 55)  # at 196, less one that the server takes off


def test_checkpoints_behind_the_divergence_are_of_no_use(loaded: Loaded) -> None:
    llm = loaded("gemma3")
    slot = Slot(llm, before_b9509=False)
    ask(slot, llm, _TEXT[:200])
    ask(slot, llm, _TEXT[:600])
    assert ask(slot, llm, _TEXT[:180] + _OTHER[:50]) == (1, 67)  # at 164, less one
    assert [c.n_tokens for c in slot.checkpoints] == [164, 230 - 36, 230 - 4]


@pytest.mark.parametrize("before", [True, False])
def test_a_prompt_within_the_window_is_restored_for_nothing(loaded: Loaded, before: bool) -> None:
    llm = loaded("gemma3")
    slot = Slot(llm, before_b9509=before)
    ask(slot, llm, _TEXT[:40])  # kept: 36 tokens
    assert ask(slot, llm, _TEXT[:60]) == (1, 25)


@pytest.mark.parametrize(("before", "expected"), [(True, (1, 24)), (False, (0, 20))])
def test_the_release_spares_a_recurrent_state_that_goes_on(
    loaded: Loaded, before: bool, expected: tuple[int, int]
) -> None:
    llm = loaded("qwen35")
    slot = Slot(llm, before_b9509=before)
    assert ask(slot, llm, _TEXT[:100]) == (0, 100)  # kept: 64 and 96 tokens
    assert ask(slot, llm, _TEXT[:120]) == expected
    assert ask(slot, llm, _TEXT[:120]) == (1, 4)  # the last token again: only from 116


def test_batches_end_where_checkpoints_are_made() -> None:
    batches = Batches(3000, user_starts=(1, 1000, 2900), n_batch=2048, n_ubatch=512)
    start, made, ends = 0, list[int](), list[int]()
    while start < 3000:
        last = made[-1] if made else None
        end = batches.end(start, last)
        if start and batches.is_checkpoint(start, end, last):
            made.append(start)
        ends.append(end)
        start = end
    assert ends == [1, 1000, 2484, 2900, 2996, 3000]
    assert made == [1, 2484, 2900, 2996]


def test_a_long_prompt_is_checkpointed_at_user_messages_far_apart() -> None:
    batches = Batches(40_000, user_starts=(10_000, 15_000, 30_000), n_batch=2048, n_ubatch=512)
    assert batches.end(9000, 5) == 10_000
    assert batches.is_checkpoint(10_000, 12_048, 5)
    assert not batches.is_checkpoint(10_000, 12_048, 10_000 - MIN_STEP)
    assert batches.end(14_000, 10_000) == 16_048
    assert batches.end(29_000, 28_000) == 30_000  # the last one always


def test_a_full_list_makes_room() -> None:
    def made(count: int) -> list[Checkpoint]:
        return [Checkpoint(1, 100 * i, 0, 100 * i - 1, np.empty(0, np.uint8)) for i in range(1, count + 1)]

    def left(checkpoints: list[Checkpoint], request: int, n_tokens: int) -> list[int]:
        return [c.n_tokens // 100 for c in kept(checkpoints, request, n_tokens)]

    assert left(made(30), 2, 9900) == list(range(1, 31))
    assert left(made(31), 2, 9900) == [1, *range(3, 32)]  # of those too close to an earlier one, the first
    assert left(made(32), 1, 9900) == list(range(2, 33))  # its own are not too close: the oldest goes
    assert left(made(3), 2, 200) == [1, 3]  # superseded


def test_a_replay_gives_the_recorded_answer(loaded: Loaded) -> None:
    llm = loaded("gemma3")
    turn = _turn(_Server(llm, before_b9509=False), Request("a", _TEXT[:90], (), _OTHER[:10]))
    assert (turn.restores, turn.tokens_evaluated) == (0, 90)
    assert llm.input_ids[: llm.n_tokens].tolist() == _TEXT[:90] + _OTHER[:10]


def test_the_sample_workload(loaded: Loaded) -> None:
    asked = requests(loaded("gemma3"), read(Path(__file__).with_name("sample.jsonl")))
    assert kinds(asked) == ["first", "extension", "extension", "edit", "shorter", "first", "switch"]
    first, second = asked[:2]
    assert second.prompt[: len(first.prompt) + len(first.answer)] == first.prompt + first.answer
    assert [len(r.user_starts) for r in asked] == [1, 2, 3, 2, 1, 0, 2]


def test_the_made_workload_has_every_kind_of_turn(loaded: Loaded) -> None:
    found = kinds(requests(loaded("gemma3"), script(200, 3)))
    assert found[:8] == ["first", "extension", "extension", "identical", "edit", "extension", "shorter", "extension"]
    assert found[8:12] == ["first", "switch", "switch", "switch"]


@pytest.mark.parametrize("line", ['{"messages": []}', '{"conversation": 1}', "{"])
def test_a_line_that_is_no_request_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "workload.jsonl"
    file.write_text(line)
    with pytest.raises(ValueError, match=r"request 1|Expecting"):
        read(file)
