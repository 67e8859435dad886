"""Whatever fails in a restore or a capture: the context ends empty, the prompt is answered from zero, and rightly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

import llama_cpp

from kvtier import Config, Hit, Store, StoreClosed
from kvtier.pool import BufferPool
from kvtier_adapters.llama_cpp import LlamaSession, Options, SessionStats, attach, restore, session, snapshots
from kvtier_adapters.llama_cpp.binding import Binding, as_tokens
from kvtier_adapters.llama_cpp.lookup import Plan
from kvtier_adapters.llama_cpp.memory import FULL, scratch_ids
from kvtier_adapters.llama_cpp.state import Layout, parse, refused_blob
from tests import tiny_models
from tests.adapters import engine, tiny_llama
from tests.adapters.batching import batching
from tests.adapters.meddling import Meddling
from tests.adapters.tiny_llama import KINDS, SNAPSHOTS
from tests.stores import KIB, config

if TYPE_CHECKING:
    from llama_cpp import Llama

pytestmark = pytest.mark.model

STORED, MORE, BLOCK = 320, 24, 64
WINDOWS = ["gemma3", "lfm2-swa"]
ROWS = ["mha", "gemma3", "jamba", "lfm2-swa"]
#: The batches are those of the bare model, so that answers can be compared.
SETTINGS: dict[str, Any] = {"block_tokens": BLOCK, "checkpoint_before_end": False}


def binding(of: LlamaSession) -> Binding:
    assert of._to is not None
    return of._to


@dataclass
class Case:
    """A model with a prompt whose first ``STORED`` tokens are stored, and the answer to it without kvtier."""

    llm: Llama
    store: Store
    prompt: list[int] = field(init=False)
    expected: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.prompt = engine.prompt(self.llm, STORED + MORE)
        self.expected = tiny_llama.cold(self.llm, self.prompt)
        self.empty_sizes = self.sizes()
        engine.stored(self.llm, self.store, self.prompt[:STORED], **SETTINGS)

    def session(self, store: object = None) -> LlamaSession:
        return LlamaSession(self.llm, cast(Store, store or self.store), Options(**SETTINGS))

    def plan(self) -> Plan:
        """What a restore would read, in the order of :attr:`keys`."""
        to = binding(self.session())
        plan = to.plan(to.keys(as_tokens(self.prompt)), len(self.prompt))
        assert plan is not None
        return plan

    @property
    def keys(self) -> list[bytes]:
        plan, to = self.plan(), binding(self.session())
        rows = [piece.key for piece in plan.pieces] if to.memory.rows else []
        return [*rows, *(p.key for p in plan.window), *(plan.snapshot.keys(to.secret) if plan.snapshot else [])]

    def sizes(self) -> list[int]:
        """Bytes of state of the sequence and of those that captures and restores borrow."""
        return [llama_cpp.llama_state_seq_get_size_ext(self.llm.ctx, s, FULL) for s in (0, *scratch_ids())]

    def fails(self, store: object = None) -> SessionStats:
        """Nothing of the prompt can be restored: an empty context, and the right answer all the same."""
        failing = self.session(store)
        assert failing.position(self.prompt) == 0
        assert (self.llm.n_tokens, engine.pos_max(self.llm)) == (0, -1)
        assert self.sizes() == self.empty_sizes
        assert (failing.stats.cold_starts, failing.stats.restores) == (1, 0)
        assert engine.greedy(self.llm, self.prompt, 16) == self.expected
        engine.fresh(self.llm)
        return failing.stats

    def fails_at(self, block: int, change: Callable[[bytes], bytes]) -> None:
        """llama.cpp refuses the prompt's state if this block of it is changed."""
        bad = Meddling(self.store, lambda number, blob: change(blob) if number == block else blob)
        assert self.fails(bad).errors == {"NativeError": 1}

    def restores(self) -> None:
        """All that was stored of the prompt is restored, and the answer is right."""
        with attach(self.llm, self.store, **SETTINGS) as attached:
            assert engine.greedy(self.llm, self.prompt, 16) == self.expected
            assert (attached.stats.tokens_restored, attached.stats.errors) == (STORED, {})
        engine.fresh(self.llm)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots of tiny models in several chunks."""
    monkeypatch.setattr(snapshots, "CHUNK_MIN", KIB // 4)
    monkeypatch.setattr(snapshots, "CHUNK_MAX", KIB // 2)


@pytest.fixture
def case(request: pytest.FixtureRequest, store: Store, small_chunks: None) -> Iterator[Case]:
    with tiny_llama.loaded(request.param) as llm:
        yield Case(llm, store)


def of(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", names, indirect=True)


@of(*KINDS)
def test_without_a_failure_all_of_it_is_restored(case: Case) -> None:
    case.restores()


# -- what llama.cpp refuses ------------------------------------------------------------------------------


def layout_of(case: Case) -> Layout:
    layout = binding(case.session()).memory.layout
    assert layout is not None
    return layout


def other_type(blob: bytes, layout: Layout) -> bytes:
    """A blob of the same form whose first tensor is of another type: only llama.cpp can tell."""
    section = parse(memoryview(blob), layout)[0]
    at = section.tensors[0].data - 12 if section.tensors else section.data  # without layers: another v_trans
    return blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]


@of(*ROWS)
def test_rows_of_another_type(case: Case) -> None:
    layout = layout_of(case)
    for which in (0, STORED // BLOCK - 1):
        case.fails_at(which, lambda blob: other_type(blob, layout))
    case.restores()


@of(*WINDOWS)
def test_window_rows_of_another_type(case: Case) -> None:
    layout = layout_of(case).window
    first = len(case.plan().pieces)
    case.fails_at(first, lambda blob: other_type(blob, layout))
    case.restores()


@of("qwen4exp")
def test_a_whole_state_of_another_kind(case: Case) -> None:
    case.fails_at(0, lambda blob: b"\0" + blob[1:])
    case.restores()


@pytest.mark.parametrize(
    ("case", "taken"), [*((name, 0) for name in KINDS), *((name, 1) for name in ROWS), ("gemma3", 5)], indirect=["case"]
)
def test_llama_cpp_takes_no_state(case: Case, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it could not allocate: at once, or after so many blocks."""
    original = llama_cpp.llama_state_seq_set_data_ext
    left = [taken]

    def refuses(handle: Any, source: Any, size: int, sequence: int, flags: int) -> int:
        if size != len(refused_blob()):  # with which a scratch sequence is emptied
            left[0] -= 1
            if left[0] < 0:
                return 0
        return int(original(handle, source, size, sequence, flags))

    with monkeypatch.context() as patch:
        patch.setattr(llama_cpp, "llama_state_seq_set_data_ext", refuses)
        assert case.fails().errors == {"NativeError": 1}
    case.restores()


@of(*KINDS)
def test_llama_cpp_gives_no_state(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    other = case.prompt[::-1]
    expected = tiny_llama.cold(case.llm, other)
    with attach(case.llm, case.store, **SETTINGS) as attached:
        with monkeypatch.context() as patch:
            patch.setattr(llama_cpp, "llama_state_seq_get_data_ext", lambda *_: 0)
            assert engine.greedy(case.llm, other, 16) == expected
        assert set(attached.stats.errors) == {"NativeError"}
        assert (attached.stats.bytes_captured, attached.stats.checkpoint_bytes) == (0, 0)
        assert case.sizes()[1:] == case.empty_sizes[1:], "scratch cells are left"
        attached.session.capture(checkpoint=True)
        assert attached.session.stored_tokens([*other, *expected]) > len(other)
    engine.fresh(case.llm)


@of("mamba", "jamba")
def test_a_snapshot_that_is_not_understood_is_stored_whole(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as one that no restore would accept."""
    used = case.session()
    memory = binding(used).memory
    assert memory.recurrent is not None
    tail = memory.recurrent.tail
    unlike = replace(memory, recurrent=replace(memory.recurrent, tail=tail[:12] + b"\x07" + tail[13:]))
    monkeypatch.setattr(binding(used), "memory", unlike)
    other = case.prompt[::-1]
    case.llm.eval(other[:STORED])
    used.capture(checkpoint=True)
    used.capture(checkpoint=True)
    assert used.stats.memory.startswith("opaque: unknown layout: ")
    assert used.stats.errors == {}
    engine.fresh(case.llm)
    assert used.position(other) == STORED
    engine.fresh(case.llm)


# -- memory ----------------------------------------------------------------------------------------------


def exhausted(*_: object, **__: object) -> Any:
    raise MemoryError("as if there were none")


@of(*KINDS)
def test_no_memory_for_a_capture(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    other = case.prompt[::-1]
    expected = tiny_llama.cold(case.llm, other)
    with attach(case.llm, case.store, **SETTINGS) as attached:
        with monkeypatch.context() as patch:
            patch.setattr(BufferPool, "take", exhausted)
            assert engine.greedy(case.llm, other, 16) == expected
        assert set(attached.stats.errors) == {"MemoryError"}
        assert attached.stats.last_error == "MemoryError: as if there were none"
        assert (attached.stats.bytes_captured, attached.stats.checkpoint_bytes) == (0, 0)
        assert case.sizes()[1:] == case.empty_sizes[1:], "scratch cells are left"
        attached.session.capture(checkpoint=True)
        assert attached.session.stored_tokens([*other, *expected]) > len(other)
    engine.fresh(case.llm)


@of(*SNAPSHOTS)
def test_no_memory_for_a_snapshot(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(restore, "bytearray", exhausted, raising=False)
        assert case.fails().errors == {"MemoryError": 1}
    case.restores()


# -- a store that fails ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError("none"), OSError(5, "input/output error"), StoreClosed("closed")])
@of(*KINDS)
def test_a_store_that_raises_in_the_middle_of_a_restore(case: Case, error: Exception) -> None:
    count = len(case.keys)
    assert count > 2
    for which in (0, count // 2, count - 1):

        def change(number: int, blob: bytes) -> bytes:
            if number == which:  # noqa: B023
                raise error
            return blob

        stats = case.fails(Meddling(case.store, change))
        assert stats.errors == {type(error).__name__: 1}
        assert stats.last_error == f"{type(error).__name__}: {error}"
    case.restores()


@of(*KINDS)
def test_a_block_that_is_gone_is_a_miss_and_captured_again(case: Case) -> None:
    """Each block of a restore in turn, with the session that stored it, and with another one."""
    keys = case.keys
    assert len(keys) > 3
    again = case.session()
    for same in (True, False):
        for key in (keys[0], keys[len(keys) // 2], keys[-2], keys[-1]):
            assert case.store.delete(key)
            used = again if same else case.session()
            held = used.position(case.prompt)
            assert held < STORED
            assert held == 0 or not used.checkpoints
            case.llm.eval(case.prompt[held:STORED])
            used.capture(checkpoint=True)
            assert used.stats.errors == {}
            engine.fresh(case.llm)
            assert case.store.contains(key), "not captured again"
            assert used.position(case.prompt) == STORED
            engine.fresh(case.llm)
    case.restores()


@of(*SNAPSHOTS)
@pytest.mark.parametrize("place", [0, 1, -1], ids=["first", "middle", "last"])
def test_a_chunk_that_is_gone_makes_the_snapshot_a_miss(case: Case, place: int) -> None:
    plan, to = case.plan(), binding(case.session())
    assert plan.snapshot is not None
    chunks = plan.snapshot.keys(to.secret)
    assert len(chunks) > 2
    assert case.store.delete(chunks[place])
    stats = case.fails()
    assert stats.misses == ({"no checkpoint": 1} if place == 0 else {"block absent": 1})
    assert stats.errors == {}


@of(*SNAPSHOTS)
@pytest.mark.parametrize("place", [0, 1, -1], ids=["first", "middle", "last"])
def test_a_chunk_of_another_length_makes_the_snapshot_a_miss(case: Case, place: int) -> None:
    plan, to = case.plan(), binding(case.session())
    assert plan.snapshot is not None
    count = plan.snapshot.chunks
    number = len(case.keys) - count + place % count
    for change in (lambda blob: blob[:-4], lambda blob: blob + b"\0\0\0\0", lambda blob: b""):
        bad = Meddling(case.store, lambda n, blob: change(blob) if n == number else blob)  # noqa: B023
        healing = case.session(bad)
        assert healing.position(case.prompt) == 0
        assert healing.stats.misses == {"block malformed": 1}
        assert (case.llm.n_tokens, case.sizes()) == (0, case.empty_sizes)
        assert plan.snapshot.key in binding(healing).unusable
        case.llm.eval(case.prompt[:STORED])
        healing.capture(checkpoint=True)
        assert plan.snapshot.key not in binding(healing).unusable
        engine.fresh(case.llm)
    assert isinstance(case.store.get(plan.snapshot.keys(to.secret)[place]), Hit)
    case.restores()


@of(*SNAPSHOTS)
def test_chunks_of_two_snapshots_are_not_mixed(case: Case) -> None:
    """One of a capture that was cut short, and the others of an older one of the same position."""
    plan, to = case.plan(), binding(case.session())
    assert plan.snapshot is not None
    key = plan.snapshot.keys(to.secret)[1]
    found = case.store.get(key)
    assert isinstance(found, Hit)
    another = replace(plan.snapshot, content=b"another capture.")
    case.store.put(key, b"".join(found.buffers), meta=another.meta(1))
    healing = case.session()
    assert healing.position(case.prompt) == 0
    assert healing.stats.misses == {"block malformed": 1}
    case.llm.eval(case.prompt[:STORED])
    healing.capture(checkpoint=True)
    engine.fresh(case.llm)
    case.restores()


@pytest.mark.parametrize("name", WINDOWS)
def test_window_rows_too_big_for_one_value_are_stored_in_smaller_pieces(name: str) -> None:
    """Of many models they are several times what a piece has of the other layers."""
    limits = {"store": {"value_bytes_max": 24 * KIB}, "ram": {"bytes_max": 64 << 20}}
    with tiny_llama.loaded(name) as llm, Store.open(Config.from_dict(limits)) as store:
        wide = Case(llm, store)
        parts = [store.info(part.key) for part in wide.plan().window]
        assert len(parts) > 1
        assert all(part and 0 < part.nbytes <= 24 * KIB for part in parts)
        wide.restores()


# -- room ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_smaller_context_restores_what_fits(name: str, store: Store) -> None:
    with tiny_llama.loaded(name) as llm:
        prompt = engine.prompt(llm, 600)
        with attach(llm, store, checkpoint_tokens=128, **SETTINGS):
            engine.greedy(llm, prompt, 1)
    with tiny_llama.loaded(name, n_ctx=256) as llm:
        asked = [*prompt[:200], *prompt[400:430]]
        expected = tiny_llama.cold(llm, asked)
        with attach(llm, store, **SETTINGS) as attached:
            assert engine.greedy(llm, asked, 16) == expected
            assert attached.stats.tokens_restored == (192 if name == "mha" else 128)
            assert attached.stats.errors == {}
        engine.fresh(llm)
        used = LlamaSession(llm, store, Options(**SETTINGS))
        assert used.position(prompt) == 256
        assert (used.stats.errors, engine.pos_max(llm)) == ({}, 255)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "mha"])
def test_a_smaller_context_without_a_checkpoint_inside_is_a_cold_start(name: str, store: Store) -> None:
    with tiny_llama.loaded(name) as llm:
        prompt = engine.prompt(llm, 600)
        engine.stored(llm, store, prompt, **SETTINGS)
    with tiny_llama.loaded(name, n_ctx=256) as llm:
        expected = tiny_llama.cold(llm, prompt[:200])
        with attach(llm, store, **SETTINGS) as attached:
            assert engine.greedy(llm, prompt[:200], 16) == expected
            assert attached.stats.misses == {"no checkpoint": 1}
            assert (attached.stats.cold_starts, attached.stats.errors) == (1, {})


@pytest.mark.parametrize("name", ["mha", "gemma3", "jamba", "lfm2-swa"])
def test_cells_that_another_sequence_holds(name: str, store: Store) -> None:
    """Of 512 cells in common, one sequence has taken 400: the other's 320 cannot be loaded."""
    with batching(tiny_models.path(name), n_ctx=512, n_seq_max=2) as context:
        tokens = [3 + n % 250 for n in range(STORED + MORE)]
        used = session(context.context, 0, store, **SETTINGS)
        for start in (0, STORED // 2):
            context.decode({0: tokens[start : start + STORED // 2]})
        used.decoded(tokens[:STORED])
        used.close()
        neighbour = tokens[::-1] + tokens[:56]
        for start in range(0, len(neighbour), 100):
            context.decode({1: neighbour[start : start + 100]})
        before = context.state(1)

        assert used.position(tokens) == 0
        assert used.stats.errors == {"NativeError": 1}
        assert (used.tokens, context.pos_max(0)) == ([], -1)
        assert context.state(1) == before
        assert [len(context.state(scratch)) for scratch in scratch_ids()] == [len(context.state(0))] * 2
        assert context.decode({0: tokens[:50]})[0].any(), "the free cells can be used"

        used.close()
        context.clear()
        assert used.position(tokens) == STORED
        assert used.stats.errors == {"NativeError": 1}


# -- a full write queue ----------------------------------------------------------------------------------


#: KiB of a write queue: less than a checkpoint, and at least as much as a block of it.
QUEUES = {"mha": 160, "gemma3": 80, "mamba": 16, "jamba": 24, "lfm2-swa": 24, "qwen4exp": 64}


@pytest.mark.parametrize("name", KINDS)
def test_a_full_write_queue_is_skipped_and_made_up_for(name: str, tmp_path: Path, small_chunks: None) -> None:
    with tiny_llama.loaded(name) as llm:
        prompt = engine.prompt(llm, STORED + MORE)
        expected = tiny_llama.cold(llm, prompt)
        limit = QUEUES[name] * KIB
        narrow = config(tmp_path, queue=limit, value_bytes_max=limit, when_full="skip")
        with Store.open(narrow, background=False) as store:
            with attach(llm, store, **SETTINGS) as attached:
                assert engine.greedy(llm, prompt, 16) == expected
                stats = attached.stats
                assert stats.captures_skipped > 0
                assert stats.errors == {}
                attached.session.persist()
                held = [*prompt, *expected][: attached.session.held]
                assert attached.session.stored_tokens([*held, 5]) == len(held)
            engine.fresh(llm)
            with attach(llm, store, **SETTINGS) as attached:
                assert len(engine.greedy(llm, [*held, 5], 1)) == 1
                assert attached.stats.tokens_restored == len(held)
