"""What the suites on policies count, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import eviction, footprint
from kvtier.policy.registry import EVICTION
from kvtier.replay import belady


def test_the_bound_closes_the_gap_and_leaf_lru_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        f'{{"timestamp": {t}, "input_length": 1024, "output_length": 1, "hash_ids": [1, {2 + t % 3}]}}'
        for t in range(30)
    ]
    file = tmp_path / "turns.jsonl"
    file.write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.setenv(eviction.TRACES, str(file))
    monkeypatch.setattr(eviction, "SHARES", ("50%", "100%"))
    monkeypatch.setattr(eviction, "_made", lambda quick: [])
    (trace,) = eviction.run(True, lambda what: None)["traces"]
    assert (trace["name"], trace["references"], trace["capacity_blocks"]) == ("turns.jsonl", 60, [2, 4])
    names = [(s["policy"], s["hints"]) for s in trace["series"]]
    assert names[:-1] == [*((name, "none") for name in EVICTION), (eviction.OURS, "sessions"), (eviction.OURS, "full")]
    lru, bound = trace["series"][0], trace["series"][-1]
    assert (lru["policy"], bound["policy"]) == (eviction.BASE, belady.NAME)
    assert lru["hit_ratio"] == [pytest.approx(29 / 60), pytest.approx(56 / 60)]
    assert bound["hit_ratio"] == [pytest.approx(38 / 60), pytest.approx(56 / 60)]
    assert lru["of_gap"] == [0.0, None]
    assert lru["of_lru_hits"] == lru["of_lru_cpu"] == [1.0, 1.0]
    assert lru["of_bound_recompute"][1] == pytest.approx(1.0)
    assert lru["of_bound_recompute"][0] > 1


def test_the_index_is_counted(tmp_path: Path) -> None:
    footprint._fill(tmp_path, 500, 50)
    found = footprint._index(tmp_path, 500)
    known = 8 + 10 + 4 + 16 + 8 + 32  # LMDB's key and node, the checksum, the ids of content and parent, the key
    assert known < found["tables"]["blocks"]["entries"] < known + 20  # docs/format.md: the numbers are narrow
    assert found["entries"] < found["live"] < found["file"]
