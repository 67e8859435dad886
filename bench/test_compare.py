"""Two reports against each other: what counts as a change, and what ends with an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import compare
from bench.entry import at_least, at_most, ratio_noise, uncertainty


def summary(*entries: dict[str, Any], **figures: Any) -> dict[str, Any]:
    return {"machine": {"system": "one"}, "entries": list(entries), "figures": figures}


def counted(value: float) -> dict[str, Any]:
    return at_most("P7", "churn", "bytes written / admitted", {"one": value}, 1.1, 1.0)


def timed(value: float, noise: float) -> dict[str, Any]:
    return at_least("P1", "storage", "restore / fio", {"one": value}, 0.95, 1.0, noise=noise)


def spread(median: float, half: float) -> dict[str, float]:
    return {"median": median, "min": median - half, "max": median + half, "runs": 4}


def written(folder: Path, name: str, content: dict[str, Any]) -> str:
    file = folder / name
    file.write_text(json.dumps(content), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    ("before", "after", "regressed"),
    [
        (counted(1.05), counted(1.11), True),
        (counted(1.05), counted(1.09), False),  # worse, and still met
        (counted(1.2), counted(1.3), False),  # was not met before
        (timed(0.97, 0.01), timed(0.8, 0.01), True),
        (timed(0.97, 0.05), timed(0.94, 0.05), False),  # no longer met, within noise
    ],
)
def test_a_goal_that_is_no_longer_met_is_a_regression(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], regressed: bool
) -> None:
    a, b = written(tmp_path, "a", summary(before)), written(tmp_path, "b", summary(after))
    assert compare.main([a, b]) == int(regressed)
    (entry,) = compare.compare(summary(before), summary(after))["entries"]
    assert entry["regressed"] == regressed
    assert entry["ratio"] == pytest.approx(after["value"] / before["value"])


def test_timed_figures_change_beyond_noise_only() -> None:
    a = summary(storage={"put": {"put": spread(1.0, 0.1)}, "read_cold": {"get_into": spread(100, 1)}})
    b = summary(storage={"put": {"put": spread(1.06, 0.1)}, "read_cold": {"get_into": spread(80, 1)}})
    found = compare.compare(a, b)
    assert found["compared"] == 2
    assert [(f["figure"], f["change"]) for f in found["figures"]] == [("storage / read_cold / get_into", "worse")]
    back = compare.compare(b, a)["figures"]
    assert [f["change"] for f in back] == ["better"]


def test_machines_are_those_of_the_suites_that_both_have() -> None:
    old = summary(storage={}, hdd={})  # which knows only one for all
    new = {**summary(storage={}, peers={}), "machine": {"system": "other"}}
    assert not compare.compare(old, new)["same_machine"]
    new["machines"] = {"storage": {"system": "one", "python": "newer"}, "peers": {"system": "other"}}
    assert compare.compare(old, new)["same_machine"]


def test_rows_are_told_apart_by_their_names() -> None:
    def rows(*models: str) -> dict[str, Any]:
        return summary(stall={"rows": [{"model": m, "capture_s": spread(1.0 if m == "x" else 3.0, 0)} for m in models]})

    assert compare.compare(rows("x", "y"), rows("y", "x"))["figures"] == []


def test_what_is_no_summary_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, "a", {"entries": []})
    for other in (file, "no-such-revision"):
        with pytest.raises(SystemExit) as ended:
            compare.main([other, file])
        assert ended.value.code == 2
    assert "not a summary" in capsys.readouterr().err


def test_missing_entries_are_named() -> None:
    found = compare.compare(summary(counted(1.0), timed(1.0, 0.1)), summary(counted(1.0)))
    assert found["missing"] == [{"entry": "P1 storage restore / fio", "met": True}]
    assert "Not in B: P1 storage restore / fio, **met by A**" in compare.text(found)


@pytest.mark.parametrize(("before", "code"), [(1.0, 1), (1.2, 0)])
def test_a_goal_that_was_met_and_has_no_figure_is_an_error(tmp_path: Path, before: float, code: int) -> None:
    a, b = written(tmp_path, "a", summary(counted(before))), written(tmp_path, "b", summary())
    assert compare.main([a, b]) == code


def test_an_entry_without_a_goal_is_compared_and_is_no_error(tmp_path: Path) -> None:
    def shown(value: float) -> dict[str, Any]:
        return summary(at_most("P3", "warm_ttft", "saving", {"one": value}, None, None))

    (entry,) = compare.compare(shown(1.0), shown(2.0))["entries"]
    assert (entry["change"], entry["met"], entry["regressed"]) == ("worse", [None, None], False)
    assert compare.main([written(tmp_path, "a", shown(1.0)), written(tmp_path, "b", summary())]) == 0
    assert "| saving | 1 | 2 | 2.00 |  |  | worse |" in compare.text(compare.compare(shown(1.0), shown(2.0)))


@pytest.mark.parametrize("key", ["acknowledged", "durable", "warm", "cold", "store"])
def test_more_is_better_of_peers(key: str) -> None:
    def rows(rate: float) -> dict[str, Any]:
        return summary(peers={"rows": [{"name": "kvtier", key: spread(rate, 0)}]})

    assert [f["change"] for f in compare.compare(rows(1e9), rows(2e9))["figures"]] == ["better"]
    assert [f["change"] for f in compare.compare(rows(2e9), rows(1e9))["figures"]] == ["worse"]


def test_more_runs_are_more_certain() -> None:
    few, many = {**spread(1.0, 0.2), "runs": 1}, {**spread(1.0, 0.2), "runs": 16}
    assert uncertainty(few) == pytest.approx(0.2)
    assert uncertainty(many) == pytest.approx(0.05)
    assert ratio_noise((few, few), (many, many)) == pytest.approx(0.2 * 2**0.5)
