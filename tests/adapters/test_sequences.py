"""Several sequences in one context, each with a session: none disturbs another, and each goes on anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from kvtier import Store
from tests import models, tiny_models
from tests.adapters import engine

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

import llama_cpp

from kvtier_adapters.llama_cpp import SequenceSession, session
from tests.adapters.batching import Batching, Logits, batching

KINDS = {
    "gqa": "rows",
    "gemma3": "rows+window",
    "mamba": "recurrent",
    "jamba": "rows+recurrent",
    "lfm2-swa": "rows+window+recurrent",
    "deepseek32": "opaque: unknown layout",
}
#: Those whose rows lie in other cells after a restore, where attention adds up in another order.
REORDERED = {"gemma3", "lfm2-swa"}
CLOSE = 0.1  # of logits with a deviation of about 3
NEVER_USED = 200
Steps = list[dict[int, Logits]]


def text(length: int, skip: int = 0) -> list[int]:
    """``length`` tokens for a tiny model: bos, and bytes of English prose."""
    return [1, *(models.ROOT / "LICENSE").read_bytes()[skip : skip + length - 1]]


PROMPTS = {0: text(158), 1: text(190, 500), 2: text(215, 1000)}


class Slots:
    """A server's slots: the sequences of a context, each with its session."""

    def __init__(self, context: Batching, store: Store) -> None:
        self.context = context
        self.sessions = [self.open(number, store) for number in range(4)]

    def open(self, sequence: int, store: Store) -> SequenceSession:
        return session(self.context.context, sequence, store, restore_min_tokens=1, block_tokens=16)

    def __getitem__(self, sequence: int) -> SequenceSession:
        return self.sessions[sequence]

    def say(self, said: Mapping[int, Sequence[int]]) -> dict[int, Logits]:
        """Decode in one batch, and note it."""
        logits = self.context.decode(said)
        for sequence, tokens in said.items():
            self[sequence].decoded(tokens)
        return logits

    def position(self, sequence: int, prompt: Sequence[int]) -> int:
        """How much of ``prompt`` need not be evaluated; all but its last token then is in the context."""
        held = self[sequence].position(prompt)
        if held < len(prompt) - 1:
            self.say({sequence: prompt[held:-1]})
        return held

    def check(self) -> None:
        """No session failed, and the ids that no sequence has hold nothing."""
        assert [slot.stats.errors for slot in self.sessions] == [{}] * 4
        highest = llama_cpp.llama_max_parallel_sequences() - 1
        for scratch in (highest, highest - 1):
            assert self.context.state(scratch) == self.context.state(NEVER_USED)


def greedy(logits: Mapping[int, Logits]) -> dict[int, list[int]]:
    return {sequence: [int(row.argmax())] for sequence, row in logits.items()}


def answered(context: Batching, said: Mapping[int, Sequence[int]], steps: int) -> Steps:
    """What follows prompts that are answered in shared batches, without kvtier."""
    context.clear()
    found = [context.decode(said)]
    for _ in range(steps):
        found.append(context.decode(greedy(found[-1])))
    return found


def answered_meanwhile(slots: Slots, expected: Steps, act: Callable[[int], None]) -> Steps:
    """The same with sessions, in an empty context; ``act`` is called with the number of each step before it."""
    found = [slots.say(PROMPTS)]
    for step, logits in enumerate(expected[:-1]):
        act(step)
        slots.check()
        found.append(slots.say(greedy(logits)))
    return found


def equal(a: Steps, b: Steps, sequence: int) -> bool:
    return all(np.array_equal(x[sequence], y[sequence]) for x, y in zip(a, b, strict=True))


def distance(a: Steps, b: Steps, sequence: int) -> float:
    return max(float(np.abs(x[sequence] - y[sequence]).max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_capturing_one_changes_no_logits(name: str, store: Store) -> None:
    with batching(tiny_models.path(name)) as context:
        expected = answered(context, PROMPTS, 8)
        context.clear()
        slots = Slots(context, store)
        assert slots[0].stats.memory == KINDS[name]
        found = answered_meanwhile(slots, expected, lambda step: slots[0].capture(checkpoint=step % 3 == 0))
        for sequence in PROMPTS:
            assert equal(found, expected, sequence)
        assert slots[0].stored_tokens([*slots[0].tokens, 0]) >= len(PROMPTS[0])


@pytest.mark.parametrize("name", KINDS)
def test_the_others_do_not_notice_that_one_is_given_up_and_comes_back(name: str, store: Store) -> None:
    with batching(tiny_models.path(name)) as context:
        expected = answered(context, PROMPTS, 12)
        context.clear()
        slots = Slots(context, store)

        def come_back(step: int) -> None:
            if step != 5:
                return
            tokens, others = slots[0].tokens, {other: context.state(other) for other in (1, 2)}
            slots[0].close()
            assert context.state(0) == context.state(NEVER_USED)
            assert {other: context.state(other) for other in others} == others
            assert slots[0].position([*tokens, 0]) == len(tokens) == len(PROMPTS[0]) + 5
            assert slots[0].stats.tokens_restored == len(tokens)
            assert {other: context.state(other) for other in others} == others

        found = answered_meanwhile(slots, expected, come_back)
        for sequence in PROMPTS:
            if name in REORDERED:
                assert distance(found, expected, sequence) < CLOSE
            else:
                assert equal(found, expected, sequence)


@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
@pytest.mark.parametrize("name", KINDS)
def test_a_sequence_goes_on_under_another_id_of_another_context(name: str, unified: bool, store: Store) -> None:
    """Of several KV streams no ranges are copied: llama.cpp aborts the process."""
    with batching(tiny_models.path(name), kv_unified=unified) as context:
        expected = answered(context, PROMPTS, 12)
        context.clear()
        slots = Slots(context, store)
        answered_meanwhile(slots, expected[:7], lambda step: None)
        tokens = slots[1].tokens
        slots[1].capture(checkpoint=True)
        slots.check()
    by_range = unified or name == "mamba"
    assert slots[1].stats.memory == (KINDS[name] if by_range else "opaque: 4 KV streams")

    with batching(tiny_models.path(name), kv_unified=unified) as context:
        slots = Slots(context, store)
        slots.say({0: text(90, 3000), 2: text(70, 4000)})  # other conversations
        assert slots.position(3, [*tokens, 0]) == len(tokens) == len(PROMPTS[1]) + 6
        slots.check()
        for before, after in itertools.pairwise(expected[6:]):
            token = greedy(before)[1]
            assert float(np.abs(slots.say({0: [65], 3: token, 2: [66]})[3] - after[1]).max()) < CLOSE


@pytest.mark.parametrize("name", KINDS)
def test_a_prefix_may_be_shared(name: str, store: Store) -> None:
    """Cells of two sequences (``llama_memory_seq_cp``) are captured for either, and stay with the one that is left."""
    prefix, rest = text(96), {0: text(40, 2000)[1:], 1: text(50, 2500)[1:]}

    def begin(context: Batching, note: Callable[[int], None]) -> dict[int, Logits]:
        context.clear()
        context.decode({0: prefix})
        note(0)
        llama_cpp.llama_memory_seq_cp(context.memory, 0, 1, -1, -1)
        note(1)
        return context.decode(rest)

    with batching(tiny_models.path(name)) as context:
        begin(context, lambda sequence: None)
        expected = context.decode({0: [65], 1: [66]})
        slots = Slots(context, store)
        begin(context, lambda sequence: slots[sequence].decoded(prefix))
        for sequence, tokens in rest.items():
            slots[sequence].decoded(tokens)
        first = slots[0].tokens
        slots[0].capture(checkpoint=True)
        state = context.state(1)
        slots[0].close()
        slots[1].capture(checkpoint=True)
        slots.check()
        assert context.state(1) == state
        assert slots.position(3, [*first, 0]) == len(first)
        found = slots.say({3: [65], 1: [66]})
        assert np.abs(found[3] - expected[0]).max() < CLOSE
        assert np.abs(found[1] - expected[1]).max() < CLOSE
        if name == "gqa":
            by_token = slots[0].stats.bytes_captured / len(first)
            assert slots[1].stats.bytes_captured < (len(rest[1]) + 1) * by_token, "the prefix was stored already"


@pytest.mark.parametrize(
    ("sequences", "memory"),
    [(254, ""), (255, "opaque: no sequence ids left for ranges"), (256, "opaque: no sequence ids left for ranges")],
)
@pytest.mark.parametrize("name", ["gqa", "gemma3", "mamba", "jamba"])
def test_ids_for_ranges_are_never_those_of_a_sequence(name: str, sequences: int, memory: str, store: Store) -> None:
    assert llama_cpp.llama_max_parallel_sequences() == 256
    prompt = text(50)
    with batching(tiny_models.path(name), n_seq_max=sequences) as context:
        top = sequences - 1
        expected = answered(context, {top: prompt, top - 1: text(40, 700)}, 1)[1]
        context.clear()
        opened = session(context.context, top, store, restore_min_tokens=1)
        assert opened.stats.memory == (KINDS[name] if name == "mamba" or not memory else memory)
        logits = context.decode({top: prompt, top - 1: text(40, 700)})
        opened.decoded(prompt)
        neighbour = context.state(top - 1)
        opened.close()
        assert opened.position([*prompt, 0]) == len(prompt)
        assert context.state(top - 1) == neighbour
        assert opened.stats.errors == {}
        found = context.decode(greedy(logits))
        assert np.abs(found[top] - expected[top]).max() < CLOSE


@pytest.mark.parametrize("sequence", [-1, 4, 255])
def test_an_id_that_the_context_does_not_have_is_refused(sequence: int, store: Store) -> None:
    with (
        batching(tiny_models.path("gqa")) as context,
        pytest.raises(ValueError, match=rf"sequence {sequence} of a context with 4"),
    ):
        session(context.context, sequence, store)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "mamba"])
def test_a_context_without_room_ends_one_restore_and_nothing_else(name: str, store: Store) -> None:
    prompt, others = text(120), {1: text(100, 900), 2: text(90, 1800)}
    with batching(tiny_models.path(name), n_ctx=256) as context:
        slots = Slots(context, store)
        slots.say({0: prompt})
        slots[0].close()
        slots.say(others)
        before = {other: context.state(other) for other in others}
        assert slots[3].position([*prompt, 0]) == 0
        assert slots[3].stats.errors == {"NativeError": 1}
        assert (slots[3].stats.cold_starts, slots[3].tokens, context.pos_max(3)) == (1, [], -1)
        assert {other: context.state(other) for other in others} == before
        slots[3].stats.errors.clear()
        slots.check()
        slots[1].close()
        assert slots[3].position([*prompt, 0]) == len(prompt), "there is room now, and nothing was lost"
        slots.check()


@pytest.mark.parametrize("name", ["lfm2-swa", "qwen35"])
def test_recurrent_layers_that_can_roll_back_are_stored_whole(name: str, store: Store) -> None:
    prompt = text(100)
    with batching(tiny_models.path(name), n_rs_seq=4) as context:
        assert llama_cpp.llama_n_rs_seq(context.handle) == 4
        slots = Slots(context, store)
        assert slots[0].stats.memory == "opaque: the recurrent layers keep states to roll back to"
        slots.say({0: prompt, 1: text(60, 700)})
        slots[0].capture(checkpoint=True)
        expected = slots.say({0: [65], 1: [67]})[0]
        slots.say({0: [68, 69]})
        assert llama_cpp.llama_memory_seq_rm(context.memory, 0, len(prompt) + 1, -1)  # a roll-back is pending
        slots[0].capture(checkpoint=True)
        assert slots[0].truncate(len(prompt)) == len(prompt)
        assert slots[0].stats.restores == 1
        assert np.abs(slots.say({0: [65]})[0] - expected).max() < CLOSE
        assert slots.position(2, [*prompt, 0]) == len(prompt)
        assert np.abs(slots.say({2: [65], 1: [70]})[2] - expected).max() < CLOSE
        slots.check()


def test_a_model_that_cannot_roll_back_is_not_affected_by_asking_for_it(store: Store) -> None:
    with batching(tiny_models.path("gqa"), n_rs_seq=4) as context:
        assert session(context.context, 0, store).stats.memory == "rows"


@pytest.mark.parametrize("name", ["gqa", "gemma3"])
def test_logits_that_another_sequence_has_replaced_are_not_relied_on(name: str, store: Store) -> None:
    prompt = text(60)
    with batching(tiny_models.path(name)) as context:
        slots = Slots(context, store)
        slots.say({0: prompt})
        slots.say({1: text(60, 700)})
        assert slots[0].position(prompt) == len(prompt) - 1
        assert slots[0].stats.restores_avoided == 1


@pytest.mark.parametrize("name", ["gemma3", "lfm2-swa"])
def test_a_neighbour_may_take_the_row_before_the_window(name: str, store: Store) -> None:
    """The sequences of a context share the window's cells: a row is anyone's as soon as it has left its window."""
    prompt = text(100)
    with batching(tiny_models.path(name), n_ubatch=16) as context:
        slots = Slots(context, store)
        context.decode({0: prompt})
        expected = context.decode({0: [65]})[0]
        context.clear()
        slots.say({0: prompt})
        slots.say({1: text(700, 500)})
        slots[0].close()
        slots[1].close()
        assert slots[0].stats.memory == KINDS[name]
        assert slots[2].stored_tokens([*prompt, 0]) == len(prompt)
        assert slots[2].position(prompt) == 0, "a token before the end it would look back further"
        assert slots.position(2, [*prompt, 0]) == len(prompt)
        assert np.abs(slots.say({2: [65]})[2] - expected).max() < CLOSE
        slots.check()


@pytest.mark.parametrize(
    ("name", "left"),
    [("gqa", 104), ("gemma3", 104), ("mamba", 100), ("jamba", 100), ("lfm2-swa", 100), ("deepseek32", 100)],
)
def test_refused_drafts_are_taken_back(name: str, left: int, store: Store) -> None:
    """To the token, or where the memory cannot: to the last checkpoint."""
    prompt, kept, refused = text(100), [65, 66, 67, 68], [90, 91, 92]
    with batching(tiny_models.path(name)) as context:
        context.decode({0: prompt})
        context.decode({0: kept})
        expected = context.decode({0: [70]})[0]
        slots = Slots(context, store)
        context.clear()
        slots.say({0: prompt, 1: text(80, 700)})
        slots[0].capture(checkpoint=True)
        slots.say({0: [*kept, *refused], 1: [70]})
        neighbour = context.state(1)
        assert slots[0].truncate(len(prompt) + len(kept)) == left == len(slots[0].tokens)
        assert context.pos_max(0) == left - 1
        assert context.state(1) == neighbour
        if left == len(prompt):
            slots.say({0: kept})
        assert np.abs(slots.say({0: [70]})[0] - expected).max() < CLOSE
        slots[0].capture(checkpoint=True)
        assert slots[0].stored_tokens([*prompt, *kept, *refused]) <= len(prompt) + len(kept)
        slots.check()


def test_an_id_may_be_opened_again(store: Store) -> None:
    """Whatever it held is gone: its tokens are not known."""
    with batching(tiny_models.path("jamba")) as context:
        slots = Slots(context, store)
        context.decode({0: text(40), 1: text(50, 700)})
        neighbour = context.state(1)
        again = slots.open(0, store)
        assert (again.tokens, context.pos_max(0)) == ([], -1)
        assert context.state(1) == neighbour
        slots.check()


def test_more_tokens_than_the_context_has_are_an_error(store: Store) -> None:
    with batching(tiny_models.path("gqa"), n_ctx=256) as context:
        opened = session(context.context, 0, store)
        with pytest.raises(ValueError, match="257 tokens in a context of 256"):
            opened.decoded(range(257))


@pytest.mark.model
def test_a_real_model(store: Store) -> None:
    prompts: dict[int, list[int]] = {}
    with engine.loaded(engine.SMOL, n_ctx=64, n_batch=64) as llm:
        for sequence in range(3):
            prompts[sequence] = engine.prompt(llm, 60 + 10 * sequence, skip=900 * sequence)
    with batching(models.smollm2(), n_ctx=512, n_threads=2, n_threads_batch=2) as context:
        expected = answered(context, prompts, 8)
        context.clear()
        slots = Slots(context, store)
        slots.say(prompts)
        for logits in expected[:4]:
            slots.say(greedy(logits))
        tokens = slots[1].tokens
        slots[1].close()
        assert slots.position(3, [*tokens, 0]) == len(prompts[1]) + 4
        for step in range(4, 8):
            said = greedy(expected[step])
            found = slots.say({0: said[0], 3: said[1], 2: said[2]})
            for sequence, was in {0: 0, 3: 1, 2: 2}.items():
                assert np.abs(found[sequence] - expected[step + 1][was]).max() < CLOSE
        slots.check()
