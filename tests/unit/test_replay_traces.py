"""Traces for replay: both schemas, files and folders, and every kind of malformed line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kvtier.errors import TraceError
from kvtier.replay import reader
from kvtier.replay.reader import read_trace
from kvtier.replay.sessions import sessions_of
from kvtier.replay.trace import NO_SESSION, Trace, scrambled


def hashes(time: Any, tokens: Any, ids: Any, **more: Any) -> dict[str, Any]:
    return {"timestamp": time, "input_length": tokens, "output_length": 1, "hash_ids": ids} | more


def call(time: Any, text: Any, session: Any = "s", **more: Any) -> dict[str, Any]:
    return {"timestamp": time, "input": text, "output": "done", "session_id": session} | more


def written(file: Path, *rows: Any) -> Path:
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def chains(trace: Trace) -> list[list[int]]:
    return [list(trace.chain(r)) for r in range(len(trace))]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def test_block_hashes(file: Path) -> None:
    trace = read_trace(written(file, hashes(1000, 1500, [70, 80, 90]), hashes(3500, 1024, [70, 81])))
    assert (list(trace.times), list(trace.tokens), list(trace.sessions)) == ([0, 2.5], [1500, 1024], [NO_SESSION] * 2)
    assert chains(trace) == [[1, 2, 3], [1, 4]]
    assert list(trace.parents) == [0, 0, 1, 2, 1]
    assert (trace.references, trace.unique, trace.block_tokens) == (5, 4, 512)
    assert trace.reuse == pytest.approx(0.2)


def test_calls_of_agents(file: Path) -> None:
    first = "a" * 64 + "b" * 64
    trace = read_trace(written(file, call(0, first + "left over"), call(500_000, first + "c" * 64, "t")))
    assert list(trace.times) == [0, 0.5]
    assert chains(trace) == [[1, 2], [1, 2, 3]]
    assert list(trace.sessions) == [0, 1]
    assert list(trace.tokens) == [35, 48]
    assert trace.block_tokens == 16


def test_a_block_of_text_stands_for_all_before_it(file: Path) -> None:
    same = "x" * 64
    trace = read_trace(written(file, call(0, "a" * 64 + same), call(1, "b" * 64 + same), call(2, same + same)))
    assert chains(trace) == [[1, 2], [3, 4], [5, 6]]


def test_text_is_cut_by_bytes(file: Path) -> None:
    trace = read_trace(written(file, call(0, "é" * 32), call(1, "é" * 31 + "a"), call(2, "\ud800" + "b" * 61)))
    assert chains(trace) == [[1], [], [2]]


def test_a_folder_is_merged_by_time(tmp_path: Path) -> None:
    written(tmp_path / "b.jsonl", call(0, "a" * 64, "one"), call(20, "b" * 64, "one"))
    written(tmp_path / "a.json", call(10, "a" * 64, "two"))
    written(tmp_path / "notes.txt", "no trace")
    trace = read_trace(tmp_path)
    assert list(trace.times) == [0, 1e-5, 2e-5]
    assert list(trace.sessions) == [0, 1, 0]
    assert chains(trace) == [[1], [1], [2]]


def test_lines_out_of_order_are_put_in_order(file: Path) -> None:
    trace = read_trace(written(file, hashes(9, 512, [1]), hashes(3, 1024, [2, 4]), hashes(9, 512, [3])))
    assert list(trace.times) == pytest.approx([0, 0.006, 0.006])
    assert chains(trace) == [[1, 2], [3], [4]]


def test_blank_lines_and_a_missing_end_of_line_are_no_error(file: Path) -> None:
    row = json.dumps(hashes(0, 512, [1]))
    assert len(read_trace(written(file, f"{row}\n\n  \n{row}"))) == 2


GOOD = hashes(0, 1024, [1, 2])
BAD_HASHES = {
    "not JSON": "{nonsense\n",
    "not JSON: maximum recursion": "[" * 100_000 + "\n",
    "not a JSON object": "[1, 2]\n",
    "timestamp is not a number": hashes("now", 512, [9]),
    "timestamp -1 is not a time": hashes(-1, 512, [9]),
    "timestamp nan is not a time": hashes(float("nan"), 512, [9]),
    "timestamp inf is not a time": hashes(float("inf"), 512, [9]),
    "timestamp 1000000000000000000000": hashes(10**400, 512, [9]),
    "input_length is not an integer": hashes(0, 512.0, [9]),
    "input_length -512 is not a length": hashes(0, -512, [9]),
    "output_length -1 is not a length": hashes(0, 512, [9], output_length=-1),
    "hash_ids is not a list of integers": hashes(0, 512, ["9"]),
    "2 hash_ids, and input_length 512 makes 1 blocks": hashes(0, 512, [8, 9]),
    "an id occurs twice": hashes(0, 1024, [9, 9]),
    "id 2 follows another id than before": hashes(0, 1024, [9, 2]),
    "id 1 follows another id": hashes(0, 1024, [9, 1]),
    "id 2 follows": hashes(0, 512, [2]),
}


@pytest.mark.parametrize(("says", "row"), BAD_HASHES.items())
def test_a_malformed_line_is_named_and_skipped_only_if_asked(file: Path, says: str, row: Any) -> None:
    written(file, GOOD, row, hashes(1, 1024, [1, 3]))
    with pytest.raises(TraceError, match="1 malformed line") as caught:
        read_trace(file)
    assert f"line 2: {says}" in str(caught.value)
    trace = read_trace(file, lenient=True)
    assert (chains(trace), trace.unique, trace.skipped) == ([[1, 2], [1, 3]], 3, 1)


@pytest.mark.parametrize(
    ("says", "row"),
    [
        ("input is not text", call(0, 5)),
        ("session_id is not text", call(0, "a", None)),
        ("output is not text", call(0, "a", output=[])),
        ("timestamp is not a number", call(True, "a")),
        ("namespace is not text", call(0, "a") | {"namespace": 5}),
        ("namespace 'n{24}' is not a name of up to 64 bytes", call(0, "a") | {"namespace": "n" * 65}),
        (r"namespace '\\ud800' is not a name", call(0, "a") | {"namespace": "\ud800"}),
        ("timestamp is not a number", hashes(0, 512, [1]) | {"timestamp": None}),
    ],
)
def test_a_malformed_call(file: Path, says: str, row: Any) -> None:
    with pytest.raises(TraceError, match=f"line 2: {says}"):
        read_trace(written(file, call(0, "a" * 64), row))


def test_the_first_malformed_lines_are_named_and_all_are_counted(file: Path) -> None:
    with pytest.raises(TraceError, match="8 malformed lines") as caught:
        read_trace(written(file, GOOD, *["{}\n"] * 8))
    text = str(caught.value)
    assert [f"line {n}:" in text for n in range(2, 10)] == [True] * 5 + [False] * 3
    assert "and 3 more" in text


def test_in_a_folder_the_file_is_named_too(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", GOOD)
    written(tmp_path / "b.jsonl", GOOD, "oops\n")
    with pytest.raises(TraceError, match=r"b\.jsonl line 2: not JSON"):
        read_trace(tmp_path)


def test_fields_of_no_schema(file: Path) -> None:
    with pytest.raises(TraceError, match="line 1: it has the fields of no known schema"):
        read_trace(written(file, {"timestamp": 0, "prompt": "x"}))


def test_two_schemas_in_one_trace(file: Path) -> None:
    with pytest.raises(TraceError, match="line 2: input_length is not an integer"):
        read_trace(written(file, GOOD, call(0, "a" * 64)))


def test_a_huge_line_is_malformed_and_the_next_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LINE_BYTES_MAX", 100)
    written(file, GOOD, call(0, "x" * 1000), GOOD)
    with pytest.raises(TraceError, match="line 2: longer than"):
        read_trace(file)
    assert len(read_trace(file, lenient=True)) == 2


@pytest.mark.parametrize("rows", [[], ["\n\n"], [hashes(0, 0, [])], [call(0, "short")]])
def test_a_trace_without_a_block(file: Path, rows: list[Any]) -> None:
    with pytest.raises(TraceError, match="the trace has no block"):
        read_trace(written(file, *rows))


def test_all_lines_malformed(file: Path) -> None:
    with pytest.raises(TraceError, match=r"no block \(2 malformed lines were left out\)"):
        read_trace(written(file, "x\n", "y\n"), lenient=True)


def test_a_folder_without_a_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="file in this folder"):
        read_trace(tmp_path)


def test_bytes_that_are_no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(TraceError, match="line 1: not JSON"):
        read_trace(file)


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        written(tmp_path / name, GOOD, GOOD)
    told: list[tuple[int, int]] = []
    read_trace(tmp_path, progress=lambda done, total: told.append((done, total)))
    total = sum(f.stat().st_size for f in tmp_path.iterdir())
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_ids_are_one_to_one_and_not_in_a_row() -> None:
    ids = [scrambled(n) for n in range(10_000)]
    assert ids[0] == 0
    assert len(set(ids)) == len(ids)
    assert all(0 < i < 1 << 64 for i in ids[1:])
    assert len({i % 1024 for i in ids}) > 1000
    assert len({i >> 54 for i in ids}) > 1000


def test_sessions_without_names_follow_from_what_is_shared(file: Path) -> None:
    trace = read_trace(
        written(
            file,
            hashes(0, 1536, [1, 2, 3]),
            hashes(1, 1536, [1, 2, 4]),  # goes on: more than half of what was there
            hashes(2, 1536, [1, 2, 5]),  # goes on with the last one
            hashes(3, 1024, [1, 6]),  # shares too little
            hashes(4, 512, [7]),
            hashes(5, 1024, [1, 6]),  # the same again
            hashes(6, 1024, [1, 8]),  # no more than half
        )
    )
    assert list(sessions_of(trace)) == [0, 0, 0, 1, 2, 1, 3]


@pytest.mark.parametrize("row", [hashes(1, 1024, [1, 2]), call(1, "a" * 128)])
def test_a_line_may_name_its_namespace(file: Path, row: Any) -> None:
    trace = read_trace(written(file, row, row | {"namespace": "x"}, row | {"namespace": ""}, row | {"namespace": "x"}))
    assert [trace.namespace_names[n] for n in trace.namespaces] == ["", "x", "", "x"]
    assert chains(trace) == [[1, 2], [3, 4], [1, 2], [3, 4]]  # namespaces share nothing
    assert list(trace.parents) == [0, 0, 1, 0, 3]


@pytest.mark.skipif("KVTIER_TRACES" not in os.environ, reason="KVTIER_TRACES names a folder with the public traces")
@pytest.mark.parametrize(
    ("name", "references", "unique", "reuse"),
    [("mooncake_synthetic.jsonl", 121_877, 43_924, 0.64), ("agent_miniswe", 150_975, 9_493, 0.94)],
)
def test_the_public_traces(name: str, references: int, unique: int, reuse: float) -> None:
    trace = read_trace(Path(os.environ["KVTIER_TRACES"]) / name)
    assert (trace.references, trace.unique) == (references, unique)
    assert trace.reuse == pytest.approx(reuse, abs=0.005)
