"""A short run of ``python -m tests.fuzz`` (``make fuzz`` for a long one), and that it would notice."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from kvtier_adapters.llama_cpp import restore
from tests.adapters import engine
from tests.fuzz import __main__ as fuzz
from tests.fuzz import victim as victims
from tests.fuzz.mutations import MUTATIONS, mutate
from tests.fuzz.parsers.target import Failed
from tests.fuzz.victim import Victim

pytestmark = pytest.mark.model

PARTS = {
    "mha": ["rows"],
    "qwen2vl": ["rows"],
    "deepseek2": ["rows"],
    "gemma3": ["rows", "window"],
    "mamba": ["recurrent"],
    "jamba": ["rows", "recurrent"],
    "lfm2-swa": ["rows", "window", "recurrent"],
}


@pytest.mark.parametrize("model", fuzz.MODELS)
def test_damaged_state_is_refused_or_harmless(model: str) -> None:
    result = fuzz.fuzz(model, seed=20, cases=60)
    assert result.failures == []
    assert result.passed == 60 == sum(result.outcomes.values())
    for part in PARTS[model]:
        assert result.outcomes[f"{part} refused"] > 0
        assert result.outcomes[f"{part} loaded"] > 0, "nothing that passes the checks was tried"


@pytest.mark.parametrize("kind", set(MUTATIONS))
def test_the_same_seed_damages_alike(kind: Any) -> None:
    blob, others = bytes(range(256)), [bytes(300), bytes(200)]
    seen = set()
    for seed in range(20):
        first, again = bytearray(blob), bytearray(blob)
        kind(Random(seed), first, others, [0, 8, 100])
        kind(Random(seed), again, others, [0, 8, 100])
        assert first == again
        seen.add(bytes(first))
    assert len(seen) > 10
    assert mutate(Random(3), blob, others, [0]) == mutate(Random(3), blob, others, [0])


def script(*arguments: object) -> Sequence[str]:
    """In place of the victim: it dies in case 2, with the other cases done."""
    first = int(str(arguments[arguments.index("--first") + 1]))
    code = "print(0); print(1); print(2, flush=True); import os; os.abort()"
    if first == 3:
        code = 'print(3); print(4); print(\'{"outcomes": {"rows loaded": 1}, "failures": ["case 4: noticed"]}\')'
    return [sys.executable, "-c", code]


def test_a_process_that_dies_is_a_failure_and_the_rest_is_done() -> None:
    result = fuzz.fuzz("mha", seed=1, cases=5, command=script)
    assert [failure.split(":")[0] for failure in result.failures] == ["case 2", "case 4"]
    assert result.failures[0].startswith("case 2: exit status ")
    assert result.passed == 3


def test_a_failure_is_counted_and_exits_with_1(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(fuzz.fuzz, "__kwdefaults__", {"until": 0, "cases": None, "command": script})
    assert fuzz.main(["--models", "mha", "--cases", "5", "--seed", "9"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "3 passed, 2 failed, seed 9"
    assert fuzz.main(["--models", "mha", "--cases", "5", "--seed", "9", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["failed"], report["seed"]) == (3, 2, 9)
    assert report["models"][0]["outcomes"] == {"rows loaded": 1}


@pytest.fixture
def victim() -> Iterator[Victim]:
    with engine.in_ram() as store:
        made = Victim("mha", store)
        yield made
        made.llm.close()


def test_a_check_that_lets_damage_through_is_noticed(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = victim.subjects[0]
    cut = subject.blob[: len(subject.blob) // 2]
    assert victim.restore(subject, cut) == "refused"
    monkeypatch.setattr(restore, "check_rows", lambda *_: None)
    with pytest.raises(Failed, match="malformed: NativeError"):
        victim.restore(subject, cut)


def test_another_exception_than_the_refusal_is_noticed(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflows(*_: object) -> None:
        raise OverflowError

    monkeypatch.setattr(victims, "select_rows", overflows)
    with pytest.raises(OverflowError):
        victim.restore(victim.subjects[0], victim.subjects[0].blob)


def test_memory_for_a_count_that_was_not_checked_is_noticed(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = victim.subjects[0]
    monkeypatch.setattr(victims, "blank_rows", lambda *_: bytes(victims.PEAK_MAX * (len(subject.blob) + 5000)))
    tracemalloc.start()
    try:
        with pytest.raises(Failed, match="allocated"):
            victim.restore(subject, subject.blob)
    finally:
        tracemalloc.stop()
