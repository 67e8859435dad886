"""The sequence ids that captures and restores borrow hold nothing afterwards, and nothing is said of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

import llama_cpp

from kvtier import Hit, Miss, MissReason, Store
from kvtier_adapters.llama_cpp import Attachment
from kvtier_adapters.llama_cpp.memory import FULL, PARTIAL, scratch_ids
from tests.adapters import engine
from tests.adapters.conformance import Case

if TYPE_CHECKING:
    from llama_cpp import Llama

pytestmark = pytest.mark.model

#: One for each kind of memory; off block boundaries, and beyond the ring of the window.
CASES = [Case(name) for name in ("mqa", "gemma3", "mamba", "jamba", "lfm2-swa", "qwen4exp")]
CASES += [Case("jamba", flash_attn=False), Case("lfm2-swa", swa_full=True)]
ENDS = (200, 256, 520)


@pytest.fixture(params=CASES, ids=str)
def attached(request: pytest.FixtureRequest, store: Store) -> Iterator[tuple[Llama, Attachment, list[int]]]:
    """A model, what attaches it, and the sizes of its borrowed sequences while nothing has happened."""
    case: Case = request.param
    with case.loaded() as llm:
        unused = borrowed(llm)
        with case.attached(llm, store) as attachment:
            yield llm, attachment, unused


def borrowed(llm: Llama) -> list[int]:
    """Bytes of the state of each borrowed sequence."""
    size = llama_cpp.llama_state_seq_get_size_ext
    return [int(size(llm.ctx, sequence, flags)) for sequence in scratch_ids() for flags in (FULL, PARTIAL)]


def captured(llm: Llama, attachment: Attachment) -> list[int]:
    """Evaluate and capture a prompt."""
    tokens = CASES[0].prompt(llm, ENDS[-1] + 1)
    for start, end in zip((0, *ENDS), ENDS, strict=False):
        llm.eval(tokens[start:end])
        attachment.session.capture(checkpoint=True)
        attachment.session.capture(end - 1, checkpoint=True)
    assert attachment.stats.errors == {}
    return tokens


def test_captures_and_restores_leave_nothing(attached: tuple[Llama, Attachment, list[int]]) -> None:
    llm, attachment, unused = attached
    tokens = captured(llm, attachment)
    assert borrowed(llm) == unused
    for end in ENDS:
        engine.fresh(llm)
        assert attachment.session.restore(tokens[:end]) == end
        assert borrowed(llm) == unused
        assert attachment.session.position(tokens[: end + 1]) == end
        assert borrowed(llm) == unused


def test_llama_cpp_logs_no_error_of_them(
    attached: tuple[Llama, Attachment, list[int]],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hybrid memory gives back what it lent by refusing a blob: no error, whoever listens to all there is."""
    llm, attachment, _ = attached
    tokens = CASES[0].prompt(llm, ENDS[0])
    llm.eval(tokens)
    monkeypatch.setattr(logging.getLogger("llama-cpp-python"), "level", logging.DEBUG)
    capfd.readouterr()
    attachment.session.capture(checkpoint=True)
    engine.fresh(llm)
    assert attachment.session.restore(tokens) == ENDS[0]
    assert "error" not in "".join(capfd.readouterr())
    assert llama_cpp.llama_decode(llm.ctx, llama_cpp.llama_batch_get_one(None, 0)) < 0
    assert capfd.readouterr().err, "the log is heard again"


def test_captures_that_fail_leave_nothing(
    attached: tuple[Llama, Attachment, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, attachment, unused = attached
    llm.eval(CASES[0].prompt(llm, ENDS[0]))
    with monkeypatch.context() as patch:
        patch.setattr(llama_cpp, "llama_state_seq_get_data_ext", lambda *_: 0)
        attachment.session.capture(checkpoint=True)
    assert attachment.stats.errors == {"NativeError": 1}
    assert borrowed(llm) == unused


def gone(_: bytes) -> None:
    return None


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def of_another_type(data: bytes) -> bytes:
    """The last number that is 1 is the type of a tensor of f16, if there is one: only llama.cpp refuses another."""
    at = data.rfind((1).to_bytes(4, "little"))
    return data[:at] + b"\x63" + data[at + 1 :]


@pytest.mark.parametrize("damage", [gone, cut, of_another_type])
def test_restores_that_fail_leave_nothing(
    damage: Callable[[bytes], bytes | None],
    attached: tuple[Llama, Attachment, list[int]],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever block it is that fails."""
    llm, attachment, unused = attached
    tokens = captured(llm, attachment)
    get_many, reads, broken = store.get_many, 0, 0

    def damaged(keys: list[bytes], **options: Any) -> Iterator[Hit | Miss]:
        nonlocal reads
        for found in get_many(keys, **options):
            reads += 1
            if reads == broken and isinstance(found, Hit):
                changed = damage(b"".join(found.buffers))
                unavailable = Miss(found.key, MissReason.UNAVAILABLE)
                yield unavailable if changed is None else replace(found, buffers=(memoryview(changed),))
            else:
                yield found

    monkeypatch.setattr(store, "get_many", damaged)
    to = attachment.session._to
    assert to is not None
    engine.fresh(llm)
    assert attachment.session.restore(tokens) == ENDS[-1]
    shorter, blocks = 0, reads
    for broken in range(1, blocks + 1):
        engine.fresh(llm)
        to.unusable.clear()
        reads = 0
        shorter += attachment.session.restore(tokens) < ENDS[-1]
        assert borrowed(llm) == unused, f"block {broken} broken"
    assert shorter == blocks or (damage is of_another_type and shorter > 0)
