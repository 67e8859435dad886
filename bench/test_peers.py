"""Peers give back what they were given, do what their facts say and no more, and cost their own row when they fail."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest

from bench import goals, plots, report_peers
from bench.measure import read_files
from bench.peers import fleet as fleets
from bench.peers import lmcache
from bench.peers import worker as workers
from bench.peers.compared import comparisons
from bench.peers.fleet import Child, Fleet, Left
from bench.peers.peer import Load, Peer, direct_flag, sync_files
from bench.peers.registry import ENTRIES, OURS, OURS_GET
from bench.peers.worker import Worker
from tests.faults.needs import why_no_strace

NBYTES = 1 << 16
ALL = pytest.mark.parametrize("name", ENTRIES)
RESTARTING = [name for name in ENTRIES if ENTRIES[name].kind != "limit"]


def made(name: str) -> Peer:
    try:
        return ENTRIES[name].make()
    except ImportError as e:
        pytest.skip(f"{name} is not installed: {e}")


def opened(name: str, folder: Path) -> Peer:
    peer = made(name)
    try:
        peer.open(folder)
    except OSError as e:
        pytest.skip(f"{name} does not work here: {e}")
    return peer


def block(number: int) -> memoryview:
    """Page-aligned, as direct I/O needs it, and like no other."""
    memory = memoryview(mmap.mmap(-1, NBYTES))
    memory[:] = os.urandom(8) + bytes([number]) * (NBYTES - 8)
    return memory


def loaded(peer: Peer, key: bytes) -> bytes:
    into = memoryview(mmap.mmap(-1, NBYTES))
    given = peer.load(key, into)
    return bytes(into if given is None else given)


def stored(peer: Peer, count: int = 3) -> dict[bytes, bytes]:
    blocks = {b"0.%d" % number: block(number) for number in range(count)}
    try:
        for key, data in blocks.items():
            peer.store(key, data)
    except OSError as e:
        pytest.skip(f"no direct I/O here: {e}")
    peer.end()
    return {key: bytes(data) for key, data in blocks.items()}


# -- each peer ---------------------------------------------------------------------------------------------


@ALL
def test_what_is_stored_is_loaded(name: str, tmp_path: Path) -> None:
    peer = opened(name, tmp_path)
    blocks = stored(peer)
    if peer.facts.durable:
        peer.sync()
    else:
        with pytest.raises(NotImplementedError):
            peer.sync()
    peer.close()
    peer.open(tmp_path)
    assert {key: loaded(peer, key) for key in blocks} == blocks
    with pytest.raises(LookupError):
        loaded(peer, b"9.9")
    peer.close()


@ALL
def test_batches_follow_each_other(name: str, tmp_path: Path) -> None:
    peer = opened(name, tmp_path)
    stored(peer)
    if peer.facts.durable:
        peer.sync()
    last = block(9)
    peer.store(b"1.0", last)
    peer.end()
    if peer.facts.durable:
        peer.sync()
    assert loaded(peer, b"1.0") == bytes(last)
    peer.close()


@pytest.mark.parametrize("name", RESTARTING)
def test_another_object_finds_the_blocks(name: str, tmp_path: Path) -> None:
    first = opened(name, tmp_path)
    assert first.facts.restarts
    blocks = stored(first)
    first.close()
    second = opened(name, tmp_path)
    assert {key: loaded(second, key) for key in blocks} == blocks
    second.close()


@pytest.mark.parametrize("name", RESTARTING)
def test_the_facts_say_who_notices_a_flipped_bit(name: str, tmp_path: Path) -> None:
    peer = opened(name, tmp_path)
    blocks = stored(peer)
    if peer.facts.durable:
        peer.sync()
    peer.close()
    flip(tmp_path, blocks[b"0.1"][:64])
    peer.open(tmp_path)
    assert loaded(peer, b"0.0") == blocks[b"0.0"]
    if peer.facts.checks:
        with pytest.raises(Exception, match=r"."):  # each has its own
            loaded(peer, b"0.1")
    else:
        assert loaded(peer, b"0.1") != blocks[b"0.1"]
    peer.close()


@pytest.mark.parametrize("name", RESTARTING)
def test_the_facts_say_from_where_a_block_is_loaded_again(name: str, tmp_path: Path) -> None:
    """From its own memory it comes as it was, whatever has become of the file; from the disk it is read anew."""
    peer = opened(name, tmp_path)
    blocks = stored(peer)
    if peer.facts.durable:
        peer.sync()
    peer.close()
    sync_files(tmp_path)
    read_files(tmp_path)
    peer.open(tmp_path)
    for key in blocks:
        peer.bring(key, memoryview(mmap.mmap(-1, NBYTES)))
    is_counted, before = is_on_a_disk(tmp_path), bytes_from_disk()
    assert {key: loaded(peer, key) for key in blocks} == blocks
    if is_counted:
        came = bytes_from_disk() - before
        assert came >= len(blocks) * NBYTES if peer.facts.keeps == "nothing" else came == 0
    flip(tmp_path, blocks[b"0.1"][:64])
    try:
        is_as_it_was = loaded(peer, b"0.1") == blocks[b"0.1"]
    except Exception:  # each has its own
        is_as_it_was = False
    assert is_as_it_was == (peer.facts.keeps == "its own memory")
    peer.close()


def bytes_from_disk() -> int:
    """What this process has had read from a disk, as Linux counts it; 0 elsewhere."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def is_on_a_disk(folder: Path) -> bool:
    """Whether a direct read there counts as one from a disk, as it does not in memory or on the network."""
    before, block = bytes_from_disk(), mmap.mmap(-1, 4096)
    (folder / "probe").write_bytes(bytes(4096))
    try:
        fd = os.open(folder / "probe", os.O_RDONLY | direct_flag())
    except OSError:
        return False
    with os.fdopen(fd, "rb", buffering=0) as file:
        os.fsync(fd)
        file.readinto(block)
    (folder / "probe").unlink()
    return bytes_from_disk() != before


def flip(folder: Path, data: bytes) -> None:
    """A bit right behind the first place where these bytes are."""
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        raw = file.read_bytes()
        if (at := raw.find(data)) >= 0:
            with file.open("r+b") as opened:
                opened.seek(at + len(data))
                opened.write(bytes([raw[at + len(data)] ^ 1]))
            return
    raise AssertionError("not on disk")


_DIE = """
import os, signal, sys
from pathlib import Path
from bench.test_peers import ENTRIES, block
peer = ENTRIES[sys.argv[1]].make()
peer.open(Path(sys.argv[2]))
data = block(7)
peer.store(b"0.0", data)
peer.end()
sys.stdout.write(bytes(data[:8]).hex())
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", [n for n in RESTARTING if ENTRIES[n].module != "kvtier_store"])  # it may have written
def test_what_survives_a_kill(name: str, tmp_path: Path) -> None:
    facts = made(name).facts
    done = subprocess.run(
        [sys.executable, "-c", _DIE, name, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    if not done.stdout:
        pytest.skip(f"{name} does not work here: {done.stderr[-200:]}")
    peer = opened(name, tmp_path)
    expected = bytes.fromhex(done.stdout) + bytes([7]) * (NBYTES - 8)
    if facts.acknowledged == "nothing":
        with pytest.raises(LookupError):
            loaded(peer, b"0.0")
    else:
        assert loaded(peer, b"0.0") == expected
    peer.close()


_SYNC = """
import os, sys
from pathlib import Path
from bench.test_peers import ENTRIES, block
peer = ENTRIES[sys.argv[1]].make()
peer.open(Path(sys.argv[2]))
os.access("/stored-from-here", os.F_OK)
peer.store(b"0.0", block(7))
peer.end()
peer.sync()
os.access("/durable-here", os.F_OK)
peer.close()
"""


@pytest.mark.parametrize("name", [n for n in ENTRIES if "Memcpy" not in ENTRIES[n]])
def test_what_is_called_durable_was_synced(name: str, tmp_path: Path) -> None:
    if not made(name).facts.durable:
        pytest.skip(f"{name} is not durable, and says so")
    if why := why_no_strace():
        pytest.skip(why)
    folder, trace = tmp_path / "blocks", tmp_path / "trace"
    folder.mkdir()
    tracing = ["strace", "-f", "-e", "trace=fsync,fdatasync,access,faccessat,faccessat2", "-o", str(trace)]
    command = [*tracing, sys.executable, "-c", _SYNC, name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "O_DIRECT" in done.stderr or "Invalid argument" in done.stderr:
        pytest.skip(f"no direct I/O here: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    between = trace.read_text(encoding="utf-8").partition("/stored-from-here")[2].partition("/durable-here")[0]
    assert between
    assert "fsync(" in between or "fdatasync(" in between


# -- their processes ---------------------------------------------------------------------------------------


def test_a_peer_is_measured_in_its_process(tmp_path: Path) -> None:
    with Fleet([OURS, "memcpy"], tmp_path, 2, NBYTES) as fleet:
        for name in (OURS, "memcpy"):
            seconds = fleet.store(name, 0)
            assert set(seconds) == ({"acknowledged", "durable"} if name == OURS else {"acknowledged"})
            assert all(s > 0 for s in seconds.values())
            assert fleet.load(name, 0, "warm")["page_cache"] is None
        assert fleet.load(OURS, 0, "cold")["page_cache"]
        assert fleet.children[OURS].facts == asdict(made(OURS).facts)
        with pytest.raises(Left, match="LookupError"):
            fleet.load(OURS, 5, "again")
        assert fleet.children[OURS].missing
        assert fleet.store("memcpy", 1)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ('print(\'{"error": "not installed: x"}\')', "not installed: x"),
        ("import os; os.abort()", r"crashed \(SIGABRT\)"),
        ("import sys; sys.exit('out of luck')", "ended with code 1: out of luck"),
    ],
)
def test_a_peer_that_cannot_start_says_why(code: str, why: str, tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", code], tmp_path / "log")
    child.meet()
    with pytest.raises(Left, match=why):
        child.ask(do="store", batch=0)
    child.stop()


def test_a_crash_later_on_is_told_once_and_for_all(tmp_path: Path) -> None:
    code = "import os, signal; print('{\"x\": 1}', flush=True); input(); os.kill(os.getpid(), signal.SIGSEGV)"
    child = Child([sys.executable, "-c", code], tmp_path / "log")
    child.meet()
    for _ in range(2):
        with pytest.raises(Left, match=r"crashed \(SIGSEGV\)"):
            child.ask(do="store", batch=0)
    child.stop()


def test_a_peer_that_does_not_answer_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "_ANSWER_S_MAX", 0.0)
    child = Child([sys.executable, "-c", "input()"], tmp_path / "log")
    child.meet()
    assert child.missing == "no answer within 0 s"
    child.stop()


def test_too_little_disk_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Fleet(["memcpy"], tmp_path, 1, NBYTES) as fleet:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 500_000_000))
        with pytest.raises(Left, match=r"too little disk: 0\.5 GB are free"):
            fleet.store("memcpy", 0)


def test_wrong_bytes_are_not_timed(tmp_path: Path) -> None:
    class Wrong(type(made("memcpy"))):  # type: ignore[misc]
        def load(self, key: bytes, into: memoryview) -> None:
            super().load(key, into)
            into[-1] ^= 1

    worker = Worker(Wrong(), tmp_path, 2, NBYTES)
    worker.store(0)
    with pytest.raises(RuntimeError, match="other bytes"):
        worker.load(0, "warm")


@pytest.mark.parametrize("how", get_args(Load))
def test_files_are_in_the_page_cache_but_for_a_cold_load(
    how: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    class Recorded(type(made("a file per block"))):  # type: ignore[misc]
        def open(self, folder: Path) -> None:
            calls.append("open")
            super().open(folder)

        def load(self, key: bytes, into: memoryview) -> None:
            calls.append("load")
            super().load(key, into)

    monkeypatch.setattr(workers, "read_files", lambda folder: calls.append("read"))
    monkeypatch.setattr("bench.peers.worker.page_cache.drop", lambda folders: calls.append("drop"))
    worker = Worker(Recorded(), tmp_path, 2, NBYTES)
    worker.store(0)
    calls.clear()
    worker.load(0, how)
    first = "drop" if how == "cold" else "read"
    assert calls == [first, "open", *["load"] * (4 if how == "again" else 2)]


def test_a_peer_may_give_the_memory_that_has_a_block(tmp_path: Path) -> None:
    worker = Worker(made(OURS_GET), tmp_path, 2, NBYTES)
    worker.store(0)
    assert worker.load(0, "again")["s"] > 0
    assert not worker._got.any(), "nothing was copied"


def test_reading_files_reads_all_of_them(tmp_path: Path) -> None:
    if why := why_no_strace():
        pytest.skip(why)
    (tmp_path / "in").mkdir()
    for name in ("a", "in/b"):
        (tmp_path / name).write_bytes(bytes(3 << 20))
    code = "import sys, pathlib; from bench.measure import read_files; read_files(pathlib.Path(sys.argv[1]))"
    trace = tmp_path.parent / "trace"
    command = ["strace", "-y", "-e", "trace=read", "-o", str(trace), sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, timeout=120, check=True)
    reads = re.findall(rf"^read\(\d+<{re.escape(str(tmp_path))}/(\S+)>.* = (\d+)$", trace.read_text(), re.MULTILINE)
    assert {name for name, _ in reads} == {"a", "in/b"}
    assert sum(int(n) for _, n in reads) == 2 * (3 << 20)


# -- LMCache's benchmark -----------------------------------------------------------------------------------


def test_lmcache_that_is_not_installed_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lmcache, "COMMAND", tmp_path / "lmcache")
    assert "make lmcache" in lmcache.measure(["fs"], 1, NBYTES, 1, print)["missing"]


def test_an_adapter_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmcache, "COMMAND", Path(sys.executable))  # which knows no "bench"
    found = lmcache.measure(["fs", "fs_native"], 1, NBYTES, 2, lambda text: None)
    assert [row["store"] for row in found["rows"]] == [None, None]
    assert all(row["missing"].startswith("ended with code 2") for row in found["rows"])


def test_what_lmcache_reports_is_a_rate() -> None:
    section = {"total_keys": 4, "total_success": 4, "duration_avg_ms": 19.0}
    assert lmcache.rate({"metrics": {"op_0": section}}, 19_000_000) == 1e9
    with pytest.raises(Left, match="3 of 4"):
        lmcache.rate({"metrics": {"op_0": {**section, "total_success": 3}}}, 1)


# -- what is made of it ------------------------------------------------------------------------------------


def rate(median: float) -> dict[str, float]:
    return {"median": median, "min": median, "max": median, "runs": 1}


def row(
    name: str,
    kind: str,
    *rates: float | None,
    again: float | None = None,
    missing: str | None = None,
    survives: str = "nothing",
) -> dict[str, Any]:
    found = [None if r is None else rate(r) for r in rates]
    facts = {**asdict(made("memcpy").facts), "acknowledged": survives}
    measured = dict(zip(("acknowledged", "durable", "warm", "cold"), found, strict=True))
    measured["again"] = None if again is None else rate(again)
    return {"name": name, "kind": kind, "facts": facts, "missing": missing, **measured}


def adapter(name: str, *rates: float | None, missing: str | None = None) -> dict[str, Any]:
    found = [None if r is None else rate(r) for r in (*rates, None)]
    known = lmcache.ADAPTERS[name]
    facts = {"kind": known.kind, "checks": known.checks, "acknowledged": known.acknowledged}
    return {"name": name, **facts, "missing": missing, **dict(zip(("store", "warm", "cold"), found, strict=True))}


def figures() -> dict[str, Any]:
    rows = [
        row(OURS, "ours", 6e9, 3e9, 4e9, 2e9, again=6e9),
        row(OURS_GET, "ours", None, None, 9e9, 9e9, again=80e9),
        row("fast", "peer", 3e9, None, 8e9, 1e9, again=8e9),
        row("slow", "peer", 2e9, 1e9, 1e9, 1e9, survives="a kill"),
        {**row("absent", "peer", None, None, None, None, missing="not installed: x"), "facts": None},
        row("raw", "limit", 9e9, 4e9, 16e9, None),
    ]
    adapters = [
        adapter(lmcache.OURS, 1e9, 2e9),
        adapter("kvtier, `durable`", 5e8, 2e9),
        adapter("fs", 2e9, 1e9),
        adapter("fs_native", None, None, missing="crashed"),
    ]
    measured = {"missing": None, "keys": 2, "rows": adapters, "page_cache": "none"}
    return {"block_bytes": 2 << 20, "blocks": 2, "page_cache": "none", "rows": rows, "lmcache": measured}


def test_kvtier_is_held_against_those_that_promise_no_more() -> None:
    found = {c.what.removeprefix("2 MiB blocks, "): c for c in comparisons(figures())}
    more = "by peers whose block survives more then"
    assert {what: c.arms for what, c in found.items()} == {
        "store until durable": {"slow": 3.0},
        "store until acknowledged": {"fast": 2.0},
        f"store until acknowledged, {more}": {"slow": 3.0},
        "load from the page cache": {"fast": 0.5, "slow": 4.0},
        "load from the disk": {"fast": 2.0, "slow": 2.0},
        "loaded again in the same process, `get_into` from RAM": {"fast": 0.75},
        "loaded again in the same process, `get`, which copies nothing": {"fast": 10.0},
        f"LMCache: store, {more}": {"fs": 0.5},
        "LMCache: load from the page cache": {"fs": 2.0},
        "LMCache: store, `durable`": {"fs": 0.25},
    }
    shown = [what for what, c in found.items() if not c.has_goal]
    assert shown == [what for what in found if what.endswith(more) or "again" in what]
    assert [c.limit for c in found.values()] == [4.0, 3.0, None, 2.0, None, None, None, None, None, None]
    assert [c.beaten_by for c in found.values()] == [[], [], [], ["fast"], [], ["fast"], [], ["fs"], [], ["fs"]]


def test_what_a_peer_is_faster_than_is_no_limit() -> None:
    slow = figures()
    slow["rows"][-1] = row("raw", "limit", 9e9, 4e9, 7e9, None)
    (warm,) = [c for c in comparisons(slow) if c.what == "2 MiB blocks, load from the page cache"]
    assert warm.limit is None


def test_an_entry_names_who_was_faster_and_how_sure_that_is() -> None:
    uncertain = figures()
    uncertain["rows"][0]["durable"] = {"median": 3e9, "min": 2.7e9, "max": 3.3e9, "runs": 4}
    entries = [e for e in goals.entries({"peers": uncertain}) if e["id"] == "P11"]
    assert [(e["value"], e["met"], e.get("beaten_by", [])) for e in entries] == [
        (3.0, True, []),
        (2.0, True, []),
        (3.0, None, []),
        (0.5, False, ["fast"]),
        (2.0, True, []),
        (0.75, None, ["fast"]),
        (10.0, None, []),
        (0.5, None, ["fs"]),
        (2.0, True, []),
        (0.25, False, ["fs"]),
    ]
    assert entries[0]["noise"] == pytest.approx(0.05)


def test_nothing_is_claimed_without_figures_of_both() -> None:
    alone = figures()
    alone["rows"] = [r for r in alone["rows"] if r["kind"] != "peer"]
    alone["lmcache"] = {"missing": "not installed", "rows": []}
    assert list(comparisons(alone)) == []
    without = figures()
    without["rows"] = [r for r in without["rows"] if r["kind"] != "ours"]
    assert all(c.what.startswith("LMCache") for c in comparisons(without))


def test_the_table_says_why_a_peer_is_left_out() -> None:
    lines = list(report_peers.peers(figures()))
    assert "| absent | left out: not installed: x |  |  |  |  |  |  |  |  |  |" in lines
    (others,) = [line for line in lines if line.startswith("LMCache's other adapters")]
    assert "; `nixl_store`, `dax` (what they have" in others
    assert "| fs_native | left out: crashed |  |  |  |  |" in lines
    assert "| 2 MiB blocks, load from the page cache | **0.50** (fast) | ≥ 1 | fast |" in lines
    assert "| LMCache: store, by peers whose block survives more then | **0.50** (fs) |  | fs |" in lines
    missing = {**figures(), "lmcache": {"missing": "not installed: no package", "rows": []}}
    assert "Not measured: not installed: no package." in list(report_peers.peers(missing))


def test_there_is_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = plots.draw({"peers": figures()}, tmp_path)
    assert "store, until durable" in next(f for f in drawn if f.suffix == ".svg").read_text(encoding="utf-8")
