"""The checkpoints of one conversation stay within their bytes; those that are kept can be gone back to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from kvtier import Store
from kvtier_adapters.llama_cpp import LlamaSession, Options, attach
from kvtier_adapters.llama_cpp.binding import Binding, as_tokens
from tests.adapters import engine, tiny_llama

if TYPE_CHECKING:
    from llama_cpp import Llama

pytestmark = pytest.mark.model

LENGTH, STEP = 1900, 128
#: Bytes of one checkpoint, about: a snapshot, or a window of 64.
SIZES = {"mamba": 39_000, "gemma3": 66_000, "jamba": 20_000}
ROOM = 5


@dataclass
class Conversation:
    llm: Llama
    store: Store
    name: str

    @property
    def bytes_max(self) -> int:
        return ROOM * SIZES[self.name]

    def options(self, bytes_max: int) -> Options:
        return Options(block_tokens=STEP, checkpoint_bytes_max=bytes_max, restore_min_tokens=1)

    def stored(self, tokens: Sequence[int], bytes_max: int) -> LlamaSession:
        """Evaluate ``tokens`` with a checkpoint every ``STEP`` of them."""
        session = LlamaSession(self.llm, self.store, self.options(bytes_max))
        for start in range(0, len(tokens), STEP):
            self.llm.eval(list(tokens[start : start + STEP]))
            session.capture(checkpoint=True)
        engine.fresh(self.llm)
        assert session.stats.errors == {}
        return session

    def kept(self, tokens: Sequence[int]) -> list[int]:
        """The positions that can be gone back to, as another session finds them."""
        session = LlamaSession(self.llm, self.store, self.options(1 << 40))
        ends = [*range(STEP, len(tokens), STEP), len(tokens)]
        return [end for end in ends if session.stored_tokens([*tokens[:end], 5]) == end]

    def nbytes(self, tokens: Sequence[int]) -> int:
        """What the store has of checkpoints of this conversation."""
        to = binding(LlamaSession(self.llm, self.store, self.options(1 << 40)))
        pieces = next(to.prefixes(to.keys(as_tokens(tokens))))
        keys = [to.window_key(piece) for piece in pieces]
        keys += [key for snapshot in map(to.snapshot, pieces) if snapshot for key in snapshot.keys(to.secret)]
        return sum(info.nbytes for info in map(self.store.info, keys) if info)


def binding(of: LlamaSession) -> Binding:
    assert of._to is not None
    return of._to


@pytest.fixture(params=list(SIZES))
def conversation(request: pytest.FixtureRequest, store: Store) -> Iterator[Conversation]:
    with tiny_llama.loaded(request.param, n_ctx=2048) as llm:
        yield Conversation(llm, store, request.param)


def test_a_conversation_keeps_within_its_bytes_and_goes_back_to_what_it_kept(conversation: Conversation) -> None:
    llm, bytes_max = conversation.llm, conversation.bytes_max
    tokens = engine.prompt(llm, LENGTH)
    session = conversation.stored(tokens, bytes_max)
    count = -(-LENGTH // STEP)
    kept = conversation.kept(tokens)
    assert 3 <= len(kept) < count
    assert kept[-1] == LENGTH
    assert 0 < conversation.nbytes(tokens) <= bytes_max
    assert session.stats.checkpoints_thinned == count - len(kept)

    engine.fresh(llm)
    for position in kept[:-1]:
        prompt = [*tokens[: position + STEP // 2], 7, 8, 9]
        expected = tiny_llama.cold(llm, prompt, 4)
        with attach(llm, conversation.store, block_tokens=STEP, checkpoint_before_end=False) as attached:
            answer = engine.greedy(llm, prompt, 4)
            assert attached.stats.tokens_restored == position
            assert attached.stats.tokens_evaluated == len(prompt) - position + 3
            assert answer == expected
        engine.fresh(llm)


def test_distances_between_what_is_kept_grow_towards_the_beginning(conversation: Conversation) -> None:
    tokens = engine.prompt(conversation.llm, LENGTH)
    conversation.stored(tokens, conversation.bytes_max)
    kept = conversation.kept(tokens)
    assert kept[-1] - kept[-2] <= STEP
    assert kept[0] < LENGTH * 2 // 3, "something old is left"
    gaps = [after - before for before, after in zip([0, *kept], kept, strict=False)]
    assert max(gaps[len(gaps) // 2 :]) <= max(gaps[: len(gaps) // 2])


def test_another_conversation_is_left_alone(conversation: Conversation) -> None:
    other = engine.prompt(conversation.llm, 700, skip=3000)
    conversation.stored(other, 1 << 40)
    before, nbytes = conversation.kept(other), conversation.nbytes(other)
    assert len(before) == -(-700 // STEP)
    tokens = engine.prompt(conversation.llm, LENGTH)
    session = conversation.stored(tokens, conversation.bytes_max)
    assert session.stats.checkpoints_thinned > 0
    assert (conversation.kept(other), conversation.nbytes(other)) == (before, nbytes)


def test_less_room_than_one_checkpoint_keeps_the_last_one(conversation: Conversation) -> None:
    tokens = engine.prompt(conversation.llm, 700)
    session = conversation.stored(tokens, 1)
    kept = [640, 700] if conversation.name == "gemma3" else [700]  # the window of 700 begins before 640
    assert conversation.kept(tokens) == kept
    thinned = session.stats.checkpoints_thinned
    assert thinned == -(-700 // STEP) - len(kept)
    conversation.llm.eval(tokens)
    session.capture(checkpoint=True)
    assert session.stats.checkpoints_thinned == thinned
    engine.fresh(conversation.llm)


def test_with_room_enough_nothing_goes(conversation: Conversation) -> None:
    tokens = engine.prompt(conversation.llm, 700)
    session = conversation.stored(tokens, 1 << 40)
    assert len(conversation.kept(tokens)) == -(-700 // STEP)
    assert session.stats.checkpoints_thinned == 0


def test_a_window_of_several_blocks_is_kept_whole_or_not_at_all() -> None:
    """Parts of windows that no kept checkpoint needs are deleted; what is kept can be gone back to, and spreads."""
    step, window = 16, 64  # a window lies in five pieces
    with tiny_llama.loaded("gemma3") as llm, engine.in_ram() as store:
        prompt = engine.prompt(llm, 960)
        whole = SIZES["gemma3"]
        options = Options(block_tokens=step, checkpoint_bytes_max=6 * whole, restore_min_tokens=1)
        session = LlamaSession(llm, store, options)
        for start in range(0, len(prompt), 160):
            llm.eval(prompt[start : start + 160])
            session.capture(checkpoint=True)
        engine.fresh(llm)
        kept = [end for end in range(step, 961, step) if session.stored_tokens([*prompt[:end], 5]) == end]
        assert kept[-1] == 960
        assert session.stats.checkpoints_thinned > 0
        needed = {row for end in kept for row in range(max(0, end - window), end)}
        infos = []
        assert session._to is not None
        for piece in next(session._to.prefixes(session._to.keys(as_tokens(prompt)))):
            part = session._to.window_parts([piece])[0]
            if part is not None:
                infos.append(store.info(part.key))
                assert needed & set(range(part.start, part.end)), "kept for nothing"
        assert sum(info.nbytes for info in infos if info) <= 6 * whole
        apart = [end for end in kept if end <= 480]
        assert apart, "nothing is left of the first half"
