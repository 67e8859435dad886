"""``kvtier replay``: its report, its plots, and every refusal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from kvtier.cli.app import run
from kvtier.policy.registry import EVICTION
from kvtier.replay import belady

Capture = pytest.CaptureFixture[str]
MADE = "generate:conversation?requests=200&rate=1"


def report(capsys: Capture, *argv: str, code: int = 0) -> dict[str, Any]:
    assert run(["replay", *argv, "--json"]) == code
    parsed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return parsed


def refusal(capsys: Capture, *argv: str) -> str:
    """What is on stderr, after checking that it looks like ours and that stdout is empty."""
    assert run(["replay", *argv]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert all(line.startswith("kvtier: ") for line in err.splitlines())
    return err


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = [{"timestamp": t, "input_length": 1024, "output_length": 1, "hash_ids": [1, 2 + t % 3]} for t in range(30)]
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_report(trace: Path, capsys: Capture) -> None:
    answer = report(capsys, str(trace), "--capacity", "50%,4", "--policy", "leaf-lru")
    assert answer["trace"] | {"name": ""} == {
        "name": "",
        "requests": 30,
        "references": 60,
        "unique_blocks": 4,
        "seconds": pytest.approx(0.029),
        "reuse": 1 - 4 / 60,
        "block_tokens": 512,
        "lines_skipped": 0,
    }
    rows = [(r["policy"], r["capacity"], r["capacity_blocks"], r["hit_ratio"]) for r in answer["results"]]
    assert rows == [
        ("leaf-lru", "50%", 2, pytest.approx(29 / 60)),  # the shared block always, a block in turn never
        (belady.NAME, "50%", 2, pytest.approx((29 + 9) / 60)),
        ("leaf-lru", "4", 4, pytest.approx(56 / 60)),
        (belady.NAME, "4", 4, pytest.approx(56 / 60)),
    ]
    lru = answer["results"][0]
    assert lru["bytes_written"] == 31 * (64 << 20)
    assert lru["bytes_moved"] == 0
    assert 0 < lru["recompute_missed_ratio"] < 1
    assert lru["recompute_missed"] > answer["results"][1]["recompute_missed"]
    assert lru["policy_bytes_per_block"] > 0
    assert lru["policy_seconds_per_reference"] > 0


def test_all_policies_and_the_bound(capsys: Capture) -> None:
    answer = report(capsys, MADE, "--policy", "all", "--capacity", "10%")
    assert [r["policy"] for r in answer["results"]] == [*EVICTION, belady.NAME]
    assert all(r["error"] is None and r["hit_ratio"] <= answer["results"][-1]["hit_ratio"] for r in answer["results"])


def test_the_table(trace: Path, capsys: Capture) -> None:
    assert run(["replay", str(trace), "--capacity", "50%"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    title, head, _, lru, bound = out.splitlines()
    assert "30 requests, 60 blocks, 4 of them different" in title
    assert "hit ratio" in head
    assert lru.split()[:4] == ["leaf-lru", "50%", "2", "0.4833"]
    assert bound.split()[:4] == [belady.NAME, "50%", "2", "0.6333"]


def test_the_same_run_gives_the_same_figures(capsys: Capture) -> None:
    first, second = (report(capsys, MADE, "--hints", "full", "--capacity", "5%") for _ in range(2))
    for row in (*first["results"], *second["results"]):
        row.pop("policy_seconds_per_reference")
    assert first == second


def test_a_tier_model(trace: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "tiers.toml"
    file.write_text(
        'block_bytes = 100\n[[tier]]\nname = "nvme"\nshare = 1\nread_bytes_per_second = 1000\n'
        '[[tier]]\nname = "ssd"\nshare = 1\neviction = "sieve"\n'
    )
    answer = report(capsys, str(trace), "--capacity", "4", "--tier-model", str(file), "--model", "smollm2-135m")
    row = answer["results"][0]
    nvme, ssd = row["tiers"]
    assert (nvme["name"], nvme["capacity_blocks"], ssd["name"], ssd["capacity_blocks"]) == ("nvme", 2, "ssd", 2)
    assert row["bytes_moved"] == nvme["bytes_demoted"] + ssd["bytes_promoted"] > 0
    assert row["bytes_written"] == nvme["bytes_written"] + ssd["bytes_written"]
    assert nvme["seconds_read"] == nvme["bytes_read"] / 1000
    assert nvme["bytes_read"] + ssd["bytes_read"] == row["hit_ratio"] * 60 * 100
    assert "seconds_read" not in ssd
    assert (answer["block_bytes"], answer["model"]) == (100, "smollm2-135m")


def test_what_is_refused_is_told_where_something_may_be(trace: Path, tmp_path: Path, capsys: Capture) -> None:
    plain = report(capsys, str(trace), "--capacity", "4")["results"][0]
    assert plain.keys().isdisjoint({"namespaces", "restores_cut"})
    assert [k for k in plain["tiers"][0] if k.startswith("bytes_")] == [
        f"bytes_{name}" for name in ("read", "written", "demoted", "promoted", "dropped")
    ]
    file = tmp_path / "tiers.toml"
    file.write_text(
        "block_bytes = 1000\nttl_s = 1\n[ram]\nshare = 1\n"
        '[[tier]]\nname = "ssd"\nshare = 3\nadmission = "second-touch"\n'
        '[[namespace]]\nname = "x"\nsessions = "50%"\n[[quota]]\nbytes_max = "100%"\n'
    )
    argv = [str(trace), "--capacity", "4", "--tier-model", str(file)]
    row = report(capsys, *argv)["results"][0]
    ram, ssd = row["tiers"]
    assert ram.keys() == {"name", "capacity_blocks", "bytes_read", "bytes_written", "bytes_dropped"}
    assert {"bytes_not_admitted", "bytes_expired", "bytes_quota_evicted", "bytes_over_quota"} < ssd.keys()
    assert ssd["bytes_not_admitted"] > 0
    assert row["bytes_written"] == ssd["bytes_written"]
    assert {n["name"] for n in row["namespaces"]} == {"", "x"}
    assert run(["replay", *argv]) == 0
    out = capsys.readouterr().out
    assert "leaf-lru at 4: ssd: written " in out
    assert "leaf-lru at 4: namespace 'x': hit ratio" in out


def test_rules_that_do_not_go_with_the_trace_are_refused(trace: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "tiers.toml"
    file.write_text('[[tier]]\nname = "ssd"\nshare = 1\nwrite_bytes_per_day = 0\nadmission = "no_such_module:X"\n')
    argv = [str(trace), "--capacity", "4", "--tier-model", str(file)]
    assert f"{file}: tier[0].admission: 'no_such_module:X': cannot be imported" in refusal(capsys, *argv)
    file.write_text('[[tier]]\nname = "ssd"\nshare = 1\nwrite_bytes_per_day = 0\n')
    assert f"{file}: tier[0].write_bytes_per_day: 0B a day cannot hold a block of 64MiB" in refusal(capsys, *argv)


def test_a_policy_that_raises_is_a_row_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "their_policies.py").write_text(
        "from kvtier.policy.eviction.leaf_lru import LeafLru\n"
        "class Broken(LeafLru):\n    def pop(self):\n        raise ZeroDivisionError('by zero')\n"
        "class Fine(LeafLru):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    names = "their_policies:Broken,their_policies:Fine,leaf-lru"
    assert run(["replay", MADE, "--capacity", "5%", "--policy", names, "--json"]) == 1
    out, err = capsys.readouterr()
    broken, fine, lru, _ = json.loads(out)["results"]
    assert broken["error"] == "ZeroDivisionError: by zero"
    assert broken["hit_ratio"] is None
    assert fine["hit_ratio"] == lru["hit_ratio"] > 0
    assert err == "kvtier: policy their_policies:Broken failed at 5%: ZeroDivisionError: by zero\n"
    assert run(["replay", MADE, "--capacity", "5%", "--policy", names]) == 1
    assert "failed: their_policies:Broken at 5%: ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--capacity", "0"], "--capacity: 0 leaves no room"),
        (["--capacity", "200%"], "--capacity: 200% is more than all blocks"),
        (["--capacity", "5"], "--capacity: 5 blocks are more than the trace has (it has 4"),
        (["--capacity", "50%", "--policy", "lru"], "'lru': there is no such policy (one of leaf-lru"),
        (["--capacity", "50%", "--policy", ""], "there is no such policy"),
        (["--capacity", "50%", "--policy", "no_such_module:X"], "cannot be imported"),
        (["--capacity", "50%", "--model", "gpt"], "--model: unknown model 'gpt'"),
        (["--capacity", "50%", "--tier-model", "none.toml"], "none.toml: cannot be read: No such file"),
    ],
)
def test_refusals(trace: Path, capsys: Capture, argv: list[str], says: str) -> None:
    assert says in refusal(capsys, str(trace), *argv)


def test_a_tier_names_an_unknown_policy(trace: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "tiers.toml"
    file.write_text('[[tier]]\nname = "nvme"\nshare = 1\neviction = "fifo"\n')
    says = 'tier[0].eviction: unknown eviction "fifo"'
    assert says in refusal(capsys, str(trace), "--tier-model", str(file))


def test_a_trace_that_is_not_there(capsys: Capture) -> None:
    assert "No such file" in refusal(capsys, "no/such/trace.jsonl")


def test_a_class_that_is_not_there(capsys: Capture) -> None:
    assert "unknown class of workload 'chess'" in refusal(capsys, "generate:chess")


@pytest.mark.parametrize("argv", [[], ["x", "--hints", "many"], ["x", "--seed", "odd"]])
def test_wrong_usage_is_2(argv: list[str]) -> None:
    assert run(["replay", *argv]) == 2


def test_malformed_lines_are_named_and_left_out_only_if_asked(trace: Path, capsys: Capture) -> None:
    with trace.open("a") as file:
        file.write("nonsense\n{}\n")
    err = refusal(capsys, str(trace), "--capacity", "50%")
    assert "2 malformed lines" in err
    assert "line 31: not JSON" in err
    assert "line 32: " in err
    assert run(["replay", str(trace), "--capacity", "50%", "--lenient", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["trace"]["lines_skipped"] == 2
    assert err == f"kvtier: {trace}: left out 2 malformed lines\n"


def test_plots(trace: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "plots"
    assert run(["replay", str(trace), "--capacity", "50%,4", "--policy", "all", "--plots", str(folder)]) == 0
    assert {f.name for f in folder.iterdir()} == {"hit-ratio.png", "recompute-missed.png"}
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in folder.iterdir())


def test_plots_without_matplotlib_are_refused_before_the_work(
    trace: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    err = refusal(capsys, str(trace), "--plots", str(tmp_path / "plots"))
    assert "pip install 'kvtier[plots]'" in err
    assert not (tmp_path / "plots").exists()


def test_progress_is_shown_on_a_terminal(trace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert run(["replay", str(trace), "--capacity", "50%", "--json"]) == 0
    json.loads(capsys.readouterr().out)
