"""Every kind of memory, under every setting that changes its form: what a killed process stored goes on to the bit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from kvtier import Store
from tests import tiny_models
from tests.adapters import conformance, engine
from tests.adapters.conformance import N_CTX, Case, Logits, Record
from tests.tiny_models import MODELS

pytestmark = [pytest.mark.model, pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")]

#: What ``str(session.memory)`` is for each kind of model.
MEMORY = {
    "attention": "rows",
    "window": "rows+window",
    "recurrent": "recurrent",
    "hybrid": "rows+recurrent",
    "hybrid-window": "rows+window+recurrent",
    "opaque": "opaque: unknown layout",
}


def cases_of(tiny: tiny_models.Tiny) -> Iterator[Case]:
    """f16 with and without flash attention, with full windows and without; and other types, as far as they may
    change something: all for one model, quantised ones (V only with flash attention) for each."""
    name = tiny.name
    if tiny.kind == "recurrent":
        yield Case(name)  # there is no attention that a setting could change
        return
    for swa_full in (False, True) if 0 < tiny.n_swa < N_CTX else (False,):
        yield Case(name, swa_full=swa_full)
        if name != "minimax-m3":  # its layers are dense without
            yield Case(name, flash_attn=False, swa_full=swa_full)
    yield Case(name, type_k="q8_0", type_v="q8_0")
    if name in ("mha", "gqa"):  # gqa: heads of a size that llama.cpp turns before it quantises
        yield Case(name, type_k="q4_0", type_v="q4_0")
        yield from (Case(name, flash_attn=False, type_k=kv) for kv in ("q8_0", "q4_0"))
    if name == "mha":
        yield from (Case(name, flash, type_k=kv, type_v=kv) for flash in (True, False) for kv in ("f32", "bf16"))


TINY = {kind: [case for tiny in MODELS.values() if tiny.kind == kind for case in cases_of(tiny)] for kind in MEMORY}
REAL = [Case("SmolLM2"), Case("SmolLM2", flash_attn=False), Case("Gemma-3"), Case("Gemma-3", False, swa_full=True)]

Killed = Callable[[str, list[Case]], tuple[Path, dict[Case, Record]]]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """``killed(name, cases)``: the folder of a process that ran these cases and was killed, and what it saw; once."""
    processes: dict[str, tuple[Path, dict[Case, Record]]] = {}

    def get(name: str, cases: list[Case]) -> tuple[Path, dict[Case, Record]]:
        if name not in processes:
            folder = tmp_path_factory.mktemp(name)
            processes[name] = folder, conformance.killed(folder, cases)
        return processes[name]

    return get


def differing(seen: Logits, expected: Logits) -> list[int]:
    """The batches behind which any bit differs."""
    assert seen.shape == expected.shape
    assert np.isfinite(expected).all()
    return [batch for batch, (a, b) in enumerate(zip(seen, expected, strict=True)) if a.tobytes() != b.tobytes()]


def goes_on_to_the_bit(case: Case, folder: Path, record: Record) -> str:
    """From each checkpoint, in this process; returns the memory's kind."""
    with case.loaded() as llm, Store.open(folder / "store") as store, case.attached(llm, store) as attached:
        session, stats = attached.session, attached.stats
        for position in case.checkpoints:
            engine.fresh(llm)
            evaluated = stats.tokens_evaluated
            assert session.restore(record.tokens[:position]) == position
            behind = conformance.evaluate(llm, record.tokens, case.ends, position)
            assert differing(behind, record.seen[-len(behind) :]) == [], f"restored to {position}"
            assert stats.tokens_evaluated - evaluated == len(record.tokens) - position
        assert stats.tokens_restored == sum(case.checkpoints)
        assert (stats.restores, stats.mended) == (len(case.checkpoints), 0)
        assert (stats.errors, stats.misses) == ({}, {})
        return str(session.memory)


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind in TINY for case in TINY[kind]], ids=str)
def test_every_checkpoint_of_a_killed_process_goes_on_to_the_bit(kind: str, case: Case, killed: Killed) -> None:
    folder, records = killed(kind, TINY[kind])
    assert goes_on_to_the_bit(case, folder, records[case]) == MEMORY[kind]


@pytest.mark.slow
@pytest.mark.parametrize("case", REAL, ids=str)
def test_so_do_those_of_real_models(case: Case, killed: Killed) -> None:
    folder, records = killed("real", REAL)
    assert goes_on_to_the_bit(case, folder, records[case]) == {"SmolLM2": "rows", "Gemma-3": "rows+window"}[case.model]


THOROUGH = [(kind, case) for kind in TINY for case in TINY[kind] if case.thorough]


@pytest.mark.parametrize(("kind", "case"), THOROUGH, ids=str)
def test_capturing_changes_nothing(kind: str, case: Case, killed: Killed) -> None:
    record = killed(kind, TINY[kind])[1][case]
    assert record.uninterrupted is not None
    assert differing(record.seen, record.uninterrupted) == []


def test_checkpoints_of_an_opaque_memory_share_what_they_have_in_common(tmp_path: Path) -> None:
    """Rows of a layer that are longer than some chunks, as those of any real model soon are."""
    case = Case("minimax-m3", type_k="f32", type_v="f32")
    with (
        case.loaded(n_ctx=4096) as llm,
        Store.open(tmp_path / "store") as store,
        case.attached(llm, store) as attached,
    ):
        length, step = 4000, 500
        tokens = case.prompt(llm, length)
        for end in range(step, length + 1, step):
            written, blobs = store.stats().bytes_written, attached.stats.checkpoint_bytes
            llm.eval(tokens[end - step : end])
            attached.session.capture(checkpoint=True)
            store.flush()
        stats, last = store.stats(), attached.stats.checkpoint_bytes - blobs
        assert str(attached.session.memory) == MEMORY["opaque"]
        assert stats.dedup.bytes_saved >= attached.stats.checkpoint_bytes // 5
        assert stats.bytes_written <= attached.stats.checkpoint_bytes * 4 // 5
        assert stats.bytes_written - written <= last * 2 // 3, "the more there is, the more of it is shared"
