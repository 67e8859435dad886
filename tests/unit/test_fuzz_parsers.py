"""A short run of every fuzz target (``make fuzz`` for a long one), and that what is wrong would be noticed."""

from __future__ import annotations

import importlib
import json
import struct
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fuzz import __main__ as fuzz
from tests.fuzz import parser_runs, plain
from tests.fuzz.parsers.target import NAMES, Failed, Target, expect_same, load
from tests.fuzz.plain import CORPUS, Outcome

EXECUTIONS = {"segment_scan": 400, "index_audit": 60, "toml_config": 300, "saved_config": 400, "llama_state": 1000}
ADAPTER = ("llama_state", "adapter_meta")
CORPUS_BYTES_MAX = 200_000


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    if request.param in ADAPTER:
        pytest.importorskip("llama_cpp")
    return str(request.param)


def test_damage_is_refused_and_the_rest_comes_back(name: str) -> None:
    wanted = EXECUTIONS.get(name, 2000)
    outcome = plain.run(name, seed=20, executions=wanted)
    assert outcome.failures == {}
    assert outcome.executions == wanted
    assert 0 < outcome.accepted < wanted


def test_the_corpus_is_of_the_present_format(name: str) -> None:
    kept = [file for file in (CORPUS / name).iterdir() if not file.name.startswith("found")]
    refused = [file.name for file in kept if not load(name).accepts(file.read_bytes())]
    assert kept
    assert refused == []


def test_the_corpus_is_small() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(NAMES)
    assert sum(file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()) < CORPUS_BYTES_MAX


@pytest.mark.parametrize(
    ("name", "at"),
    [("record_heads", 8), ("segment_scan", 20), ("index_entries", 9)],  # sequence numbers, and a store's id
)
def test_resealing_leads_behind_the_checksum(name: str, at: int) -> None:
    target, data = load(name), bytearray(plain.corpus(name)[0])
    assert target.accepts(bytes(data))
    data[at] ^= 1
    assert not target.accepts(bytes(data))
    assert target.accepts(target.reseal(bytes(data)))


def test_the_same_seed_gives_the_same_inputs() -> None:
    target, kept = load("toml_config"), plain.corpus("toml_config")
    inputs = [[plain.mutated(Random(f"{seed}"), target, kept) for seed in range(50)] for _ in range(2)]
    assert inputs[0] == inputs[1]
    assert len(set(inputs[0])) > 40


def test_the_audit_is_asked_before_lmdb_is() -> None:
    index_audit = importlib.import_module("tests.fuzz.parsers.index_audit")
    with pytest.raises(index_audit.Unsound):
        index_audit.parse(struct.pack("<I2s", 0, b"\x01\x02"))  # the number that the first page says it has


# -- what a target must notice ----------------------------------------------------------------------


def as_number(data: bytes) -> int:
    """A parser with three bugs: it over-reads, it lets struct's own error out, and it believes a length."""
    if data[:1] == b"m":
        bytes(1 << 20)
    if len(data) > 4:
        raise ValueError("too long")
    return int(struct.unpack("<I", data)[0]) if data[:1] != b"o" else int.from_bytes(data.ljust(4, b"\0"), "little")


def parse_number(data: bytes) -> None:
    number = as_number(data)
    expect_same(lambda: struct.pack("<I", number), data)


NUMBER = Target(parse_number, (ValueError,), spare=1024)


@pytest.mark.parametrize(
    ("data", "failure"),
    [(b"okay", ""), (b"refused", ""), (b"st", "error: unpack"), (b"ov", "Failed: b'ov"), (b"mem.", "Failed: 10")],
)
def test_a_broken_contract_is_a_failure_with_its_input(data: bytes, failure: str) -> None:
    outcome = Outcome("number")
    tracemalloc.start()
    try:
        outcome.run(NUMBER, data)
    finally:
        tracemalloc.stop()
    assert outcome.executions == 1
    assert outcome.accepted == (data == b"okay")
    found = list(outcome.failures.values())
    assert found[0].startswith(failure) and found[0].endswith(data.hex()) if failure else found == []


def test_what_is_refused_after_a_round_trip_is_a_failure_not_a_refusal() -> None:
    def refuse() -> None:
        raise ValueError("no")

    with pytest.raises(Failed, match="refused after a round trip: no"):
        Target(lambda data: expect_same(refuse, None), (ValueError,)).accepts(b"")


# -- guided by coverage ------------------------------------------------------------------------------


def script(name: str, folder: Path, *arguments: object) -> Sequence[str]:
    """In place of the fuzzer: it finds something and dies, and the second time it ends well."""
    folder.mkdir(exist_ok=True)
    begun = folder / "begun"
    code = f"""if 1:
        import pathlib, sys
        again = pathlib.Path({str(begun)!r})
        print('["place", "what: 00"]')
        print("stat::number_of_executed_units: 20", file=sys.stderr)
        if not again.exists():
            again.touch()
            sys.exit("killed by what it parsed")
    """
    return [sys.executable, "-c", code]


def test_a_process_that_dies_is_a_failure_and_the_rest_is_done(tmp_path: Path) -> None:
    outcome = parser_runs.run_guided("codecs", 1, 600, folder=tmp_path / "x", command=script)
    assert outcome.executions == 40
    assert outcome.failures.pop("place") == "what: 00"
    assert list(outcome.failures) == ["death 0"]
    assert "killed by what it parsed" in outcome.failures["death 0"]


def test_a_guided_run_counts_what_it_executes(tmp_path: Path) -> None:
    pytest.importorskip("atheris")

    def limited(*arguments: object) -> Sequence[str]:
        return [*parser_runs.fuzzer(*arguments), "--executions", "3000"]

    outcome = parser_runs.run_guided("index_entries", 1, 200, folder=tmp_path, command=limited)
    assert outcome.failures == {}
    assert outcome.executions >= 3000
    assert list((tmp_path / "corpus").iterdir())


# -- the command -------------------------------------------------------------------------------------


def test_the_command_counts_executions_and_failures(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert fuzz.main(["--parsers", "codecs", "encrypted", "--cases", "30", "--seed", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["codecs: 30 executions", "encrypted: 30 executions", "60 passed"]
    monkeypatch.setattr(plain, "load", lambda name: Target(parse_number, (ValueError,)))
    assert fuzz.main(["--parsers", "codecs", "--cases", "30", "--seed", "1", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    (parser,) = report["parsers"]
    assert report["models"] == []
    assert (parser["parser"], parser["executions"], parser["is_guided"]) == ("codecs", 30, False)
    assert report["failed"] == len(parser["failures"]) > 0
    assert report["passed"] == 30 - report["failed"]
