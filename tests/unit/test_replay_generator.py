"""Made-up traces: the same for the same seed, and with the properties of their class."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kvtier.errors import ConfigError
from kvtier.replay.generator import BLOCK_TOKENS, CLASSES, generate
from kvtier.replay.trace import Trace

NAMES = [f"generate:{kind}" for kind in CLASSES]


def facts(trace: Trace) -> tuple[list[float], list[int], list[int], list[int]]:
    return list(trace.times), list(trace.blocks), list(trace.tokens), list(trace.sessions)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_one_trace(name: str) -> None:
    assert facts(generate(f"{name}?seed=5&requests=300")) == facts(generate(f"{name}?requests=300&seed=5"))
    assert facts(generate(f"{name}?seed=6&requests=300")) != facts(generate(f"{name}?seed=5&requests=300"))
    assert facts(generate(f"{name}?requests=300")) == facts(generate(f"{name}?seed=1&requests=300"))


def test_a_seed_gives_one_trace_in_every_process() -> None:
    code = (
        "from kvtier.replay.generator import generate; "
        "t = generate('generate:conversation?requests=200'); print(sum(t.blocks), sum(t.tokens), t.unique)"
    )
    said = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    trace = generate("generate:conversation?requests=200")
    assert said == {f"{sum(trace.blocks)} {sum(trace.tokens)} {trace.unique}\n".encode()}


@pytest.mark.parametrize("name", NAMES)
def test_traces_are_sound(name: str) -> None:
    trace = generate(f"{name}?requests=400")
    assert len(trace) == 400
    assert list(trace.times) == sorted(trace.times)
    for request in range(len(trace)):
        chain = trace.chain(request)
        assert len(chain) == trace.tokens[request] // BLOCK_TOKENS
        assert [trace.parents[b] for b in chain] == [0, *chain[:-1]][: len(chain)]


@pytest.mark.parametrize("kind", ["conversation", "agents"])
def test_a_session_only_grows(kind: str) -> None:
    trace = generate(f"generate:{kind}?requests=400")
    last: dict[int, list[int]] = {}
    for request in range(len(trace)):
        chain = list(trace.chain(request))
        before = last.get(trace.sessions[request], [])
        assert chain[: len(before)] == before
        last[trace.sessions[request]] = chain
    assert len(last) > 1


@pytest.mark.parametrize("name", NAMES)
def test_only_blocks_that_a_request_names_are_counted(name: str) -> None:
    trace = generate(f"{name}?requests=1")  # of many shared prompts, one is used
    assert (trace.unique, trace.reuse) == (trace.references, 0.0)
    trace = generate(f"{name}?requests=50")
    assert trace.unique == len(set(trace.blocks)) == max(trace.blocks)


def test_the_classes_differ_as_they_should() -> None:
    conversation, agents, documents = (
        generate(f"generate:{k}?requests=1500") for k in ("conversation", "agents", "documents")
    )
    assert agents.reuse > conversation.reuse > documents.reuse
    length = {t.name.split(":")[1].split("?")[0]: t.references / len(t) for t in (conversation, agents, documents)}
    assert length["documents"] > length["conversation"]
    calls = [len(t) / (max(t.sessions) + 1) for t in (agents, conversation, documents)]
    assert calls == sorted(calls, reverse=True)


def test_parameters_do_what_they_say() -> None:
    short, long = (generate(f"generate:conversation?requests=1000&turns={n}") for n in (1, 10))
    assert max(short.sessions) + 1 == 1000
    assert max(long.sessions) + 1 < 500
    slow, fast = (generate(f"generate:agents?requests=500&rate={r}") for r in ("0.01", "1"))
    assert slow.times[-1] > fast.times[-1]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("generate:", "unknown class of workload ''"),
        ("generate:chess", r"unknown class of workload 'chess' \(one of .*generate:conversation"),
        ("generate:agents?sed=1", r"unknown key 'sed' \(one of seed, requests"),
        ("generate:agents?seed=x", "seed=x is out of range"),
        ("generate:agents?requests=0", r"requests=0 is out of range \(a whole number from 1"),
        ("generate:agents?requests=99999999999", "requests=99999999999 is out of range"),
        ("generate:agents?rate=-1", "rate=-1 is out of range"),
        ("generate:agents?rate=nan", "rate=nan is out of range"),
        ("generate:agents?steps=0.5", "steps=0.5 is out of range"),
        ("generate:documents?once=2", "once=2 is out of range"),
        ("generate:agents?repos=99999999999", "repos=99999999999 is out of range"),
        ("generate:agents?rate=", "rate= is out of range"),
    ],
)
def test_what_cannot_be_generated(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        generate(name)
