"""What a session tells its store ahead: prompts that wait, answers, and what becomes of conversations."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from kvtier import Config, Hint, Store
from kvtier.fs import OsFileSystem
from kvtier.policy.base import Hint as Advice
from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.testing import Call, FaultyFileSystem
from kvtier_adapters.llama_cpp import LlamaSession, Options, attach, session
from kvtier_adapters.llama_cpp.binding import as_tokens
from tests import tiny_models
from tests.adapters import engine, tiny_llama
from tests.adapters.batching import batching
from tests.adapters.engine import GEMMA, SMOL, Setup
from tests.adapters.tiny_llama import KINDS
from tests.stores import KIB, MIB, config

if TYPE_CHECKING:
    from llama_cpp import Llama

pytestmark = pytest.mark.model

BLOCK, STORED, LENGTH = 64, 320, 360
OPTIONS: dict[str, Any] = {"block_tokens": BLOCK, "checkpoint_before_end": False}

Models = Callable[[Setup], "Llama"]


class Watching:
    """A prefetch policy that notes what it is told of, and wants what it is told to want."""

    asked_of: ClassVar[list[list[int]]] = []
    answered_of: ClassVar[list[list[int]]] = []
    wants = False

    def asked(self, group: bytes, chain: Sequence[int]) -> None:
        self.asked_of.append(list(chain))

    def answered(self, group: bytes, chain: Sequence[int], stays_s: float) -> bool:
        self.answered_of.append(list(chain))
        return self.wants


class Advised(LeafLru):
    """An eviction policy that notes what has ended."""

    ended: ClassVar[set[int]] = set()

    def hint(self, block: int, hint: Advice) -> None:
        (self.ended.add if hint.ended else self.ended.discard)(block)


@pytest.fixture(autouse=True)
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watching, "asked_of", [])
    monkeypatch.setattr(Watching, "answered_of", [])
    monkeypatch.setattr(Advised, "ended", set())


@pytest.fixture
def llm(request: pytest.FixtureRequest) -> Iterator[Llama]:
    with tiny_llama.loaded(request.param) as loaded:
        yield loaded


def of(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("llm", names, indirect=True)


def with_disk(folder: Path, **prefetch: Any) -> Config:
    return config(folder, ram=64 * MIB, prefetch=prefetch)


def watched(folder: Path) -> Store:
    return Store.open(with_disk(folder, policy=f"{__name__}:Watching"))


def reopened(llm: Llama, settings: Config, tokens: Sequence[int], fs: FaultyFileSystem | None = None) -> Store:
    """A store that has ``tokens`` on disk, and nothing in RAM."""
    with Store.open(settings) as store:
        engine.stored(llm, store, tokens, **OPTIONS)
    return Store.open(settings, fs=fs)


def arrive(store: Store) -> None:
    """Wait until what was asked for is there."""
    assert store._back is not None
    for future in list(store._back._prefetcher._flying.values()):
        future.result(60)


# -- prompts that wait ---------------------------------------------------------------------------------------


def brings_up_what_the_restore_reads(llm: Llama, folder: Path) -> None:
    prompt = engine.prompt(llm, LENGTH)
    with reopened(llm, with_disk(folder), prompt[:STORED]) as store:
        waiting = LlamaSession(llm, store, Options(**OPTIONS))
        count = waiting.prefetch(prompt)
        arrive(store)
        before = store.stats()
        assert before.prefetch.unused == count > 0
        assert waiting.position(prompt) == STORED
        after = store.stats()
        assert after.tiers[0].bytes_read == before.tiers[0].bytes_read, "the restore read nothing from the disk"
        assert after.prefetch.useful == after.ram.hits - before.ram.hits == count
        assert (after.prefetch.unused, after.prefetch.late, after.prefetch.wasted) == (0, 0, 0)
        assert waiting.stats.bytes_restored == after.prefetch.bytes_useful
        assert waiting.stats.errors == {}


@of(*KINDS)
def test_a_prefetch_brings_up_exactly_what_the_restore_reads(llm: Llama, tmp_path: Path) -> None:
    brings_up_what_the_restore_reads(llm, tmp_path)


@pytest.mark.parametrize("setup", [SMOL, GEMMA], ids=str)
def test_so_it_does_of_models_that_people_use(setup: Setup, model: Models, tmp_path: Path) -> None:
    brings_up_what_the_restore_reads(model(setup), tmp_path)


@of("mha")
def test_nothing_is_brought_up_that_no_restore_would_read(llm: Llama, tmp_path: Path) -> None:
    prompt = engine.prompt(llm, LENGTH)
    with reopened(llm, with_disk(tmp_path), prompt[:STORED]) as store:
        waiting = LlamaSession(llm, store, Options(restore_min_tokens=100, **OPTIONS))
        assert waiting.prefetch(engine.prompt(llm, LENGTH, skip=5000)) == 0
        assert waiting.prefetch(prompt[: 2 * BLOCK - 1]) == 0, "one block is not worth a restore"
        assert waiting.prefetch([]) == 0
        assert waiting.prefetch(prompt[: 2 * BLOCK + 1]) == 2
        assert waiting.stats.errors == {}


@of("mha")
def test_a_request_that_is_dropped_is_not_read(llm: Llama, tmp_path: Path) -> None:
    begun, gate = threading.Event(), threading.Event()

    def hold(call: Call) -> None:
        if call.op == "read_at":
            begun.set()
            assert gate.wait(60)

    prompt, fs = engine.prompt(llm, LENGTH), FaultyFileSystem(OsFileSystem())
    one_at_a_time = with_disk(tmp_path, threads=1, bytes_max=64 * KIB, coalesce_bytes_max=64 * KIB)
    with reopened(llm, one_at_a_time, prompt[:STORED], fs) as store:
        waiting = LlamaSession(llm, store, Options(**OPTIONS))
        fs.on_call = hold
        try:
            count = waiting.prefetch(prompt)
            assert begun.wait(60)
            dropped = waiting.cancel_prefetch(prompt)
        finally:
            gate.set()
        arrive(store)
        found = store.stats().prefetch
        assert (found.cancelled, found.loaded) == (dropped, count - dropped)
        assert dropped > 0


@of("mha")
def test_another_thread_may_ask_while_the_model_evaluates(llm: Llama, tmp_path: Path) -> None:
    prompt = engine.prompt(llm, LENGTH)
    decode = llm._ctx.decode
    with (
        reopened(llm, with_disk(tmp_path), prompt[:STORED]) as store,
        attach(llm, store, **OPTIONS) as cache,
        ThreadPoolExecutor(1) as server,
    ):

        def decoding(batch: Any) -> None:
            if not counts:
                counts.append(server.submit(cache.prefetch, prompt).result(60))
            decode(batch)

        counts: list[int] = []
        llm._ctx.decode = decoding  # type: ignore[method-assign]
        try:
            engine.greedy(llm, engine.prompt(llm, 40, skip=5000), 2)
        finally:
            llm._ctx.decode = decode  # type: ignore[method-assign]
        arrive(store)
        engine.greedy(llm, prompt, 2)
        assert cache.stats.restores == 1
        assert [store.stats().prefetch.useful] == counts != [0]


@of("mha")
def test_a_store_that_fails_is_counted(llm: Llama, store: Store) -> None:
    prompt = engine.prompt(llm, LENGTH)
    with attach(llm, store, **OPTIONS) as cache:
        store.close()
        assert (cache.prefetch(prompt), cache.cancel_prefetch(prompt), cache.session.answered()) == (0, 0, 0)
        cache.hint(prompt, Hint(ended=True))
        with cache.pinned(prompt):
            assert cache.stats.errors == {"StoreClosed": 5}
        assert cache.stats.errors == {"StoreClosed": 6}
        with pytest.raises(ValueError, match="invalid literal"):
            cache.prefetch("text")  # type: ignore[arg-type]


def test_a_model_that_is_refused_has_nothing_to_tell(store: Store) -> None:
    with tiny_llama.loaded("mha", logits_all=True) as llm, attach(llm, store) as cache:
        cache.hint([1, 2, 3], Hint(ended=True))
        with cache.pinned([1, 2, 3]):
            assert (cache.prefetch([1, 2, 3]), cache.cancel_prefetch([1, 2, 3]), cache.session.answered()) == (0, 0, 0)
        assert cache.stats.errors == {}


# -- answers -------------------------------------------------------------------------------------------------


@of(*KINDS)
def test_an_answer_tells_once_of_the_chain_that_the_next_turn_asks_for(llm: Llama, tmp_path: Path) -> None:
    prompt, more = engine.prompt(llm, STORED), engine.prompt(llm, 200, skip=5000)
    with watched(tmp_path) as store:
        with attach(llm, store, **OPTIONS) as cache:
            answer = engine.greedy(llm, prompt, 20)
            assert Watching.asked_of == []
            (chain,) = Watching.answered_of
            assert cache.stats.errors == {}
        engine.fresh(llm)
        with attach(llm, store, **OPTIONS) as cache:
            engine.greedy(llm, [*prompt, *answer, *more], 20)
            assert cache.stats.tokens_restored == STORED + 19
            (asked,) = Watching.asked_of
            assert sorted(asked) == sorted(chain)
            _, longer = Watching.answered_of
            assert longer[-1] != chain[-1]
            if cache.session.memory and cache.session.memory.rows:
                assert chain[-1] in longer, "a policy can tell that the conversation went on"
            assert cache.stats.errors == {}


@of("mha")
@pytest.mark.parametrize("way", ["completion", "stream", "abandoned stream"])
def test_each_way_of_asking_tells_once(way: str, llm: Llama, tmp_path: Path) -> None:
    with watched(tmp_path) as store, attach(llm, store, **OPTIONS) as cache:
        for number in range(1, 3):
            said: Any = llm.create_completion("Once upon a time" * number, max_tokens=9, stream="stream" in way)
            if way == "stream":
                list(said)
            elif way == "abandoned stream":
                next(said)
            del said
            assert len(Watching.answered_of) == number
            assert Watching.answered_of[-1] == ids_of(cache.session, llm._input_ids.tolist())


def ids_of(of: LlamaSession, tokens: Sequence[int]) -> list[int]:
    """The ids of the blocks of all these tokens (a model with rows only)."""
    assert of._to is not None
    pieces = next(of._to.prefixes(of._to.keys(as_tokens(tokens))))
    assert pieces[-1].end == len(tokens)
    return [of._to.store._wanted(piece.key, b"").block_id for piece in pieces]


@of("mha")
def test_a_stream_that_lost_the_context_tells_nothing(llm: Llama, tmp_path: Path) -> None:
    with watched(tmp_path) as store, attach(llm, store, **OPTIONS) as cache:
        stale, current = llm.generate(engine.prompt(llm, 100)), llm.generate(engine.prompt(llm, 90, skip=5000))
        next(stale)
        next(current)
        stale.close()
        assert Watching.answered_of == []
        current.close()
        assert Watching.answered_of == [ids_of(cache.session, engine.prompt(llm, 90, skip=5000))]


@of("gemma3")
def test_the_chain_comes_up_if_the_policy_wants_it(llm: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = engine.prompt(llm, LENGTH)
    with reopened(llm, with_disk(tmp_path, policy=f"{__name__}:Watching"), prompt[:STORED]) as store:
        with attach(llm, store, **OPTIONS):
            engine.greedy(llm, prompt, 2)
            assert store.stats().prefetch.requested == 0
            monkeypatch.setattr(Watching, "wants", True)
            read = len(Watching.asked_of[-1])
            engine.greedy(llm, [*prompt, 5], 2)
            arrive(store)
        found = store.stats().prefetch
        assert (found.requested, found.unused) == (found.loaded, found.loaded)
        assert 0 < found.loaded <= read, "what was just put is there already"


@of("mha")
def test_only_what_the_context_holds_is_told_of(llm: Llama, tmp_path: Path) -> None:
    """Drafts that were refused are taken back behind what was captured."""
    prompt = engine.prompt(llm, 2 * BLOCK)
    with watched(tmp_path) as store:
        mine = LlamaSession(llm, store, Options(**OPTIONS))
        engine.evaluate(llm, prompt)
        mine.capture()
        llm.n_tokens -= 1
        mine.answered()
        assert Watching.answered_of == [ids_of(mine, prompt[:BLOCK])]


def test_sequences_of_one_context_tell_of_their_own(tmp_path: Path) -> None:
    with batching(tiny_models.path("gemma3")) as context, watched(tmp_path) as store:
        prompts = {0: list(range(3, 103)), 1: list(range(50, 200))}
        slots = {number: session(context.context, number, store, block_tokens=16) for number in prompts}
        for number, prompt in prompts.items():
            slots[number].position(prompt)
            context.decode({number: prompt})
            slots[number].decoded(prompt)
            slots[number].capture(checkpoint=True)
            slots[number].answered()
            slots[number].close()
        assert Watching.asked_of == []
        for number, prompt in prompts.items():
            assert slots[1 - number].position([*prompt, 7]) == len(prompt)
        assert list(map(sorted, Watching.asked_of)) == list(map(sorted, Watching.answered_of))
        assert [slot.stats.errors for slot in slots.values()] == [{}, {}]


# -- conversations -------------------------------------------------------------------------------------------


def in_ram(nbytes: int, eviction: str = "hit-density") -> Store:
    return Store.open(Config.from_dict({"ram": {"bytes_max": nbytes, "eviction": eviction}}))


@contextmanager
def conversations(llm: Llama, eviction: str) -> Iterator[tuple[Store, LlamaSession, list[list[int]]]]:
    """A full store with two conversations that begin alike, the first of them used last."""
    begin = engine.prompt(llm, 192)
    both = [[*begin, *engine.prompt(llm, 192, skip=1000 * number)] for number in (3, 5)]

    def fill(store: Store) -> LlamaSession:
        for tokens in reversed(both):
            made = engine.stored(llm, store, tokens, **OPTIONS)
        return made

    with in_ram(256 * MIB) as store:
        fill(store)
        needed = store.stats().ram.bytes_used
    with in_ram(needed, eviction) as store:
        yield store, fill(store), both


def restored(llm: Llama, of: LlamaSession, tokens: Sequence[int]) -> int:
    """How much of a conversation is still there."""
    engine.fresh(llm)
    return of.position([*tokens, 5])


@of(*KINDS)
@pytest.mark.parametrize("ended", [True, False])
def test_a_conversation_that_ended_goes_first(ended: bool, llm: Llama) -> None:
    with conversations(llm, "hit-density") as (store, of, (first, second)):
        if ended:
            of.hint(first, Hint(ended=True), start=192)
        goes, stays = (first, second) if ended else (second, first)  # unasked, the older one goes
        store.put(b"another", bytes(KIB))
        assert restored(llm, of, goes) < 384
        assert restored(llm, of, stays) == 384
        assert of.stats.errors == {}


@of(*KINDS)
def test_a_hint_is_told_of_all_that_is_stored_behind_what_is_shared(llm: Llama) -> None:
    with in_ram(MIB) as empty:
        LlamaSession(llm, empty, Options(**OPTIONS))
        others = empty.stats().ram.blocks  # what the store remembers of the model
    with conversations(llm, f"{__name__}:Advised") as (store, of, (first, second)):
        blocks = store.stats().ram.blocks - others
        of.hint(second, Hint(ended=True), start=192)
        mine = len(Advised.ended)
        of.hint(first, Hint(ended=True), start=192)
        theirs = len(Advised.ended) - mine
        of.hint(first, Hint(ended=True))
        assert len(Advised.ended) == blocks, "rows, windows and snapshots of both, and of what they share"
        assert mine == theirs < blocks / 2
        of.hint(first, Hint())
        assert len(Advised.ended) == mine


@of(*KINDS)
def test_what_is_pinned_stays(llm: Llama) -> None:
    with conversations(llm, "leaf-lru") as (store, of, (first, second)):
        with of.pinned([*second, 5]):
            assert store.stats().pinned > 0
            store.put(b"another", bytes(store.stats().ram.bytes_used // 4))
            assert restored(llm, of, first) < 384
            assert restored(llm, of, second) == 384
        assert store.stats().pinned == 0
        store.put(b"others", bytes(store.config.ram.bytes_max_resolved() - KIB))
        assert restored(llm, of, second) == 0
        assert of.stats.errors == {}
