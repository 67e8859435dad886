"""The suites themselves, small: what they count, and what they do when something fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import __main__ as command
from bench import block_io, fio, index_entries, measure, pytest_run, report
from bench.compression import entropy_bytes
from bench.pytest_run import run_files
from bench.storage import allocated_bytes


def nothing(what: str) -> None:
    pass


def test_many_entries_are_there_and_real_blocks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_entries, "_CALLS", 5)
    found = index_entries.measure((100, 2000), 100, 1, nothing)
    assert [row["blocks"] for row in found["rows"]] == [100, 2000]
    small, large = (row["index_bytes"] for row in found["rows"])
    assert large - small > 1900 * 64  # an entry and its content, at the least
    assert set(found["rows"][0]["call_s"]) == {"get", "match", "put and flush"}


def test_too_little_disk_leaves_a_row_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_entries, "_CALLS", 5)
    monkeypatch.setattr(index_entries, "_BYTES_A_BLOCK", 1 << 40)
    found = index_entries.measure((100,), 100, 1, nothing)
    assert found["rows"] == []
    assert "too little disk" in found["left_out"]["100 blocks"]


def test_entropy_of_two_planes() -> None:
    generator = np.random.default_rng(1)
    noise = generator.integers(0, 256, 1 << 16, dtype=np.uint8)
    assert entropy_bytes(bytes(1000)) == 0
    assert entropy_bytes(noise.tobytes()) == pytest.approx(1 << 16, rel=0.01)
    planes = np.empty(1 << 17, dtype=np.uint8)
    planes[0::2], planes[1::2] = noise, noise % 4  # eight bits and two
    assert entropy_bytes(planes.tobytes()) == pytest.approx((1 << 16) * 10 / 8, rel=0.01)


def test_what_is_allocated_is_counted() -> None:
    kept: list[bytes] = []
    assert allocated_bytes(lambda: kept.append(bytes(1 << 20))) >= 1 << 20
    assert allocated_bytes(lambda: kept[0]) < 1 << 10


def test_a_peer_that_fails_is_left_out_and_said_so() -> None:
    def crash() -> float:
        raise OSError("it is gone\nand more")

    arms = {"ours": lambda: 1.0, "peer": crash}
    samples, failed = measure.alternate_with_peers(arms, ["peer"], 2)
    assert (samples, failed) == ({"ours": [1.0, 1.0]}, {"peer": "OSError: it is gone"})
    with pytest.raises(OSError, match="gone"):
        measure.alternate_with_peers(arms, [], 1)


def test_a_suite_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(quick: bool, say: Any) -> dict[str, Any]:
        raise RuntimeError("no such thing")

    works = {"call_s": {"get": {"median": 1.0, "min": 1.0, "max": 1.0, "runs": 1}}}
    monkeypatch.setattr(command, "SUITES", {"decode": fails, "operations": lambda quick, say: works})
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["bench", "--quick"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == "failed: decode"
    summary = json.loads((tmp_path / ".benchmarks" / "quick" / "summary.json").read_text(encoding="utf-8"))
    assert summary["figures"] == {"operations": works}
    assert summary["failed"] == {"decode": "RuntimeError: no such thing"}
    page = (tmp_path / ".benchmarks" / "quick" / "README.md").read_text(encoding="utf-8")
    assert "**Suite `decode` failed**" in page
    monkeypatch.setattr(command, "SUITES", {"decode": lambda quick, say: {"rows": []}})
    monkeypatch.setattr(report, "BENCHMARKS", {})
    monkeypatch.setattr(report, "entries", lambda figures: [])
    command.main()
    summary = json.loads((tmp_path / ".benchmarks" / "quick" / "summary.json").read_text(encoding="utf-8"))
    assert summary["failed"] == {}


def test_benchmarks_become_rows() -> None:
    ran = run_files(
        ["test_chains.py"], "--sizes", "small", "-k", "get_many and 64 and cold", "--benchmark-max-time", "0"
    )
    assert ran.left_out == {}
    rows = [block_io._row(benchmark) for benchmark in ran.benchmarks]
    assert sorted(row["arm"] for row in rows) == ["cold, keep", "cold, pass through"]
    assert {(row["operation"], row["block_bytes"], row["bytes"]) for row in rows} == {("get many", 64 << 10, 4 << 20)}
    assert all(row["call_s"]["median"] > 0 for row in rows)


def test_a_benchmark_leaves_no_files_behind(tmp_path: Path) -> None:
    file = tmp_path / "test_two.py"
    file.write_text(
        "def test_first(benchmark, tmp_path):\n"
        "    (tmp_path / 'block').touch()\n"
        "    benchmark(lambda: None)\n"
        "def test_second(tmp_path):\n"
        "    assert not list(tmp_path.parent.glob('*/block'))\n",
        encoding="utf-8",
    )
    ran = run_files([str(file)], "--benchmark-max-time", "0")
    assert ([benchmark["name"] for benchmark in ran.benchmarks], ran.left_out) == (["test_first"], {})


def test_too_little_disk_leaves_all_sizes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_io, "_BYTES_QUICK", 1 << 60)
    found = block_io.run(True, nothing)
    assert found["rows"] == []
    assert set(found["left_out"]) == set(block_io.FILES)
    assert "too little disk" in "".join(report.BENCHMARKS["block_io"](found))


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><skipped message="no room"/></testcase>'
        '<testcase name="c"><failure message="OSError: gone&#10;more"/></testcase></testsuite></testsuites>',
        encoding="utf-8",
    )
    assert pytest_run._left_out(report) == {"b": "skipped: no room", "c": "failure: OSError: gone"}


def test_fio_reads_a_file(tmp_path: Path) -> None:
    if reason := fio.why_not():
        pytest.skip(reason)
    file = tmp_path / "a"
    file.write_bytes(bytes(8 << 20))
    assert fio.sequential_read(file) > 0
