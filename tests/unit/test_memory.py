"""What is known of memory: of this machine, and of control groups, whose files are written here."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from kvtier import memory as module
from kvtier.memory import Memory, group_limits, memory

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def limits(folder: Path, line: str) -> list[Memory]:
    proc = folder / "proc"
    proc.write_text(line)
    return list(group_limits(proc, folder))


def test_this_machine() -> None:
    known = memory()
    assert 0 < known.available <= known.total <= psutil.virtual_memory().total


def test_the_least_of_machine_and_groups_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "group_limits", lambda: [Memory(64 * MIB, 7 * KIB), Memory(1 << 60, 1 << 59)])
    assert memory() == Memory(64 * MIB, 7 * KIB)


def test_a_machine_that_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("no /proc here")

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    with pytest.raises(OSError, match="no /proc here"):
        memory()


def test_version_2(tmp_path: Path) -> None:
    stat = "anon 1\nactive_file 100\ninactive_file 200\nslab 7"
    group(tmp_path / "a" / "b", memory__max=1000, memory__current=700, memory__stat=stat)
    group(tmp_path / "a", memory__max="max", memory__current=900, memory__stat=stat)
    assert limits(tmp_path, "0::/a/b\n") == [Memory(1000, 600)]  # caches can be had
    group(tmp_path / "a", memory__max=950)
    assert limits(tmp_path, "0::/a/b\n") == [Memory(1000, 600), Memory(950, 350)]  # the group around it counts too


def test_version_2_in_a_container(tmp_path: Path) -> None:
    group(tmp_path, memory__max=1000, memory__current=1200, memory__stat="active_file 0\ninactive_file 0")
    assert limits(tmp_path, "0::/\n") == [Memory(1000, 0)]
    assert limits(tmp_path, "0::/../../other\n") == [Memory(1000, 0)]


def test_version_1(tmp_path: Path) -> None:
    stat = "total_active_file 10\ntotal_inactive_file 20"
    files = {"memory__limit_in_bytes": 500, "memory__usage_in_bytes": 400, "memory__stat": stat}
    group(tmp_path / "memory", **files)
    lines = "5:devices:/x\n4:cpu,memory:/docker/123\n1:name=systemd:/\n"
    assert limits(tmp_path, lines) == [Memory(500, 130)]  # the group's own folder is not to be seen from inside


def test_without_groups(tmp_path: Path) -> None:
    assert list(group_limits(tmp_path / "none", tmp_path)) == []
    assert limits(tmp_path, "0::/a\n") == []
    group(tmp_path, memory__max="what", memory__current=1, memory__stat="")
    assert limits(tmp_path, "0::/\n") == []
