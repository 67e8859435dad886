"""Several processes on one store: one writes, the others read; forked ones do neither."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvtier import Miss, MissReason, Store, StoreLocked
from tests.concurrency.mixture import KEYS, Versions, small
from tests.concurrency.processes import running
from tests.stores import KIB, commits, config, fill, names, noise, value_of

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="the platform cannot stop a process")

# -- one writer --------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from kvtier import Store
from tests.stores import config
store = Store.open(config(Path(sys.argv[1])))
store.put(b"theirs", b"x")
store.flush()
print("open", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_killed_writer_does_not_stay(tmp_path: Path) -> None:
    with running(WRITER, tmp_path) as writer:
        assert writer.line() == "open"
        with pytest.raises(StoreLocked, match=f"process {writer.pid}"):
            Store.open(config(tmp_path))
        writer.kill()
        with Store.open(config(tmp_path)) as store:
            assert value_of(store.get(b"theirs")) == b"x"


def test_a_copy_of_a_store_in_use_can_be_opened_beside_it(tmp_path: Path) -> None:
    with running(WRITER, tmp_path / "one") as writer:
        assert writer.line() == "open"
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        left = {"LOCK", "RUNNING", "index/lock.mdb"}
        assert all((tmp_path / "two" / "store" / name).exists() for name in left)
        with Store.open(config(tmp_path / "two")) as store:
            assert value_of(store.get(b"theirs")) == b"x"
            fill(store, [b"ours"], KIB)


# -- forks -------------------------------------------------------------------------------------------

FORKS = """
import os, sys, threading
from pathlib import Path
from kvtier import ForkedStore, Hint, PutItem, Store
from tests.stores import config, noise
store = Store.open(config(Path(sys.argv[1]), ram=1 << 20))
store.put(b"k", b"x")
store.flush()
iterator = store.get_many([b"k", b"k"])
next(iterator)
stop = threading.Event()
def busy(n):
    while not stop.is_set():
        store.put(b"busy%d" % n, noise(n, 1000))
        store.get(b"k")
threads = [threading.Thread(target=busy, args=(n,), daemon=True) for n in range(4)]
for thread in threads:
    thread.start()
calls = {
    "put": lambda: store.put(b"c", b"x"), "put_many": lambda: store.put_many([PutItem(b"c", b"x")]),
    "buffer": lambda: store.buffer(1), "delete": lambda: store.delete(b"k"),
    "flush": store.flush, "rotate_keys": store.rotate_keys, "forget_keys": store.forget_keys,
    "get": lambda: store.get(b"k"), "get_into": lambda: store.get_into(b"k", bytearray(1)),
    "get_many": lambda: next(store.get_many([b"k"])), "iteration": lambda: next(iterator),
    "get_many_into": lambda: store.get_many_into([b"k"], [bytearray(1)]), "info_many": lambda: store.info_many([b"k"]),
    "match": lambda: store.match([b"k"]), "contains": lambda: store.contains(b"k"), "info": lambda: store.info(b"k"),
    "explain": lambda: store.explain(b"k"), "prefetch": lambda: store.prefetch([b"k"]),
    "pin": lambda: store.pin([b"k"]), "hint": lambda: store.hint([b"k"], Hint()),
    "answered": lambda: store.answered([b"k"]), "cancel_prefetch": lambda: store.cancel_prefetch([b"k"]),
    "pause_compaction": store.pause_compaction, "resume_compaction": store.resume_compaction,
    "unpin": lambda: store.unpin([b"k"]), "stats": store.stats, "derive_key": lambda: store.derive_key(b"p"),
}
public = {n for n in dir(Store) if not n.startswith("_") and callable(getattr(Store, n))} - {"open", "close"}
assert public <= set(calls), public - set(calls)
for _ in range(5):
    child = os.fork()
    if child == 0:
        for name, call in calls.items():
            try:
                call()
            except ForkedStore:
                continue
            os.write(1, name.encode() + b"\\n")
            os._exit(1)
        store.close()
        sys.exit(0)  # with all that is done at exit
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
for thread in threads:
    thread.join()
print("done", flush=True)
sys.stdin.readline()
store.put(b"after", b"y")
store.flush()
print("flushed", flush=True)
sys.stdin.read()
store.close()
"""


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    with running(FORKS, tmp_path) as parent:
        assert parent.line() == "done"
        assert (tmp_path / "store" / "RUNNING").exists()
        with pytest.raises(StoreLocked, match=f"process {parent.pid}"):
            Store.open(config(tmp_path))
        assert parent.ask("go on") == "flushed"
        assert parent.end() == 0
    assert not (tmp_path / "store" / "RUNNING").exists()
    with Store.open(config(tmp_path)) as store:
        assert store.match([b"k", b"after"]) == 2
        assert not store.contains(b"c")


ORPHAN = """
import os, sys
from pathlib import Path
from kvtier import Store
from tests.stores import config
store = Store.open(config(Path(sys.argv[1])))
store.put(b"k", b"x")
store.flush()
if os.fork() == 0:
    print("child", flush=True)
    sys.stdin.read()
    os._exit(0)
os.waitpid(-1, 0)
"""


@needs_fork
def test_a_child_that_outlives_a_killed_writer_does_not_keep_its_lock(tmp_path: Path) -> None:
    with running(ORPHAN, tmp_path) as writer:
        assert writer.line() == "child"
        with pytest.raises(StoreLocked):
            Store.open(config(tmp_path))
        writer.kill()
        with Store.open(config(tmp_path)) as store:  # the child still waits for a line
            assert value_of(store.get(b"k")) == b"x"


# -- multiprocessing ---------------------------------------------------------------------------------

POOL = """
import multiprocessing, sys
from pathlib import Path
from kvtier import ForkedStore, Store
from tests.stores import config, fill, names, noise

folder, method = Path(sys.argv[1]), sys.argv[2]
store = None

def use_inherited(_):
    try:
        return store.match([b"k0000"])
    except ForkedStore:
        store.close()
        return "forked"

def read(rounds):
    \"\"\"Read all there is, while the writer writes: how many values, none of them wrong.\"\"\"
    right = 0
    with Store.open(config(folder), read_only=True) as reader:
        for _ in range(rounds):
            for key, hit in zip(names(200), reader.get_many(names(200))):
                if hit:
                    assert b"".join(hit.buffers) == noise(key, 2000), key
                    right += 1
    return right

if __name__ == "__main__":
    context = multiprocessing.get_context(method)
    store = Store.open(config(folder))
    fill(store, names(100), 2000)
    with context.Pool(2) as pool:
        if method == "fork":
            print(*pool.map(use_inherited, range(2)), flush=True)
        else:
            found = pool.map_async(read, [10, 10])
            fill(store, names(200)[100:], 2000)
            print(*(count >= 1000 for count in found.get(120)), flush=True)
        pool.close()
        pool.join()
    fill(store, [b"after"], 100)
    store.close()
"""


@pytest.mark.parametrize(
    ("method", "said"),
    [
        pytest.param("fork", "forked forked", marks=needs_fork),
        ("spawn", "True True"),
        pytest.param("forkserver", "True True", marks=needs_fork),
    ],
)
def test_workers_of_multiprocessing(tmp_path: Path, method: str, said: str) -> None:
    """One that inherits an open store is refused; one that starts afresh opens it read only, beside the writer."""
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    with running(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", tmp_path, method) as parent:
        assert parent.line() == said
        assert parent.end() == 0
    with Store.open(config(tmp_path)) as store:
        assert store.match([*names(1), b"after"]) == 2


# -- readers -----------------------------------------------------------------------------------------

READER = """
import sys
from pathlib import Path
from kvtier import Store
from tests.stores import config
with Store.open(config(Path(sys.argv[1])), read_only=True) as store:
    print("ready", flush=True)
    for line in sys.stdin:
        if line == "enter\\n":
            with store._back.parts.index.read():
                print("inside", flush=True)
                sys.stdin.readline()
            print("left", flush=True)
        else:
            found = store.get(line.strip().encode())
            said = bytes(found.buffers[0][:40]).hex() if found else found.reason.name
            print(said, store.stats().quarantined, flush=True)
"""


SMALL_MAP_READER = f"import kvtier.assembly\nkvtier.assembly._MAP_BYTES = 1 << 18\n{READER}"


def hit(value: bytes) -> str:
    return f"{value[:40].hex()} 0"


def test_a_reader_follows_an_index_that_was_made_anew(tmp_path: Path) -> None:
    """Not even an old value comes from the old one: here its bytes are still there, for another block."""
    old, new = noise("old", 10 * KIB), noise("new", 10 * KIB)
    with Store.open(config(tmp_path)) as store:
        store.put(b"k", old)
        store.put(b"twin", old)
        store.flush()
    with running(READER, tmp_path) as reader:
        assert reader.line() == "ready"
        assert reader.ask("k") == hit(old)
        (tmp_path / "store" / "index" / "data.mdb").unlink()
        assert reader.ask("k") == "UNAVAILABLE 0"
        with Store.open(config(tmp_path)) as store:
            assert store.stats().quarantined == 0
            store.put(b"k", new)
            store.flush()
            assert reader.ask("k") == hit(new)
            assert reader.ask("twin") == hit(old)
            store.delete(b"k")
            store.flush()
            assert reader.ask("k") == "ABSENT 0"
        assert reader.end() == 0


def overwrite(store: Store, times: int) -> None:
    for n in range(times):
        fill(store, [b"hot"], 64)
        store.put(b"hot", b"%d" % n)
        store.flush()


@needs_signals
def test_a_stopped_reader_holds_up_nobody_and_goes_on_with_the_truth(tmp_path: Path) -> None:
    keys = names(50)
    with Store.open(config(tmp_path)) as store:
        fill(store, keys, 10 * KIB)
        with running(READER, tmp_path) as reader:
            assert reader.line() == "ready"
            assert reader.ask("enter") == "inside"
            reader.signal(signal.SIGSTOP)
            for key in keys:
                store.put(key, noise((key, 2), 10 * KIB))
            store.flush()
            store.delete(keys[0])
            store.flush()
            reader.signal(signal.SIGCONT)
            assert reader.ask("leave") == "left"
            assert reader.ask(keys[0].decode()) == "ABSENT 0"
            assert reader.ask(keys[1].decode()) == hit(noise((keys[1], 2), 10 * KIB))
            assert reader.end() == 0


@needs_signals
def test_a_reader_killed_inside_a_look_up_does_not_let_the_index_grow(tmp_path: Path) -> None:
    with Store.open(config(tmp_path), background=False) as store:
        fill(store, names(200), 64)
        overwrite(store, 20)
        with running(READER, tmp_path) as reader:
            assert reader.line() == "ready"
            assert reader.ask("enter") == "inside"
            before = store.stats().index_bytes
            overwrite(store, 20)
            held = store.stats().index_bytes
            assert held > before  # its look-up keeps every page that was in use then
            reader.kill()
        first = commits(store)
        overwrite(store, 100)
        assert commits(store) - first >= 200
        assert store.stats().index_bytes <= held + (held - before)


def test_what_was_dropped_is_a_miss_to_a_reader(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)) as store:
        fill(store, names(4), 300 * KIB)
        with running(READER, tmp_path) as reader:
            assert reader.line() == "ready"
            assert reader.ask("k0000") == hit(noise(b"k0000", 300 * KIB))
            for key in names(4):
                store.delete(key)
            store.flush()
            fill(store, names(4, "n"), 300 * KIB)
            assert reader.ask("k0000") == "ABSENT 0"
            assert reader.ask("n0000") == hit(noise(b"n0000", 300 * KIB))
            assert reader.end() == 0
        found = store.get(b"k0000")
        assert isinstance(found, Miss)
        assert found.reason is MissReason.ABSENT


def test_readers_go_on_while_the_index_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map that a reader opened is soon too small; what it reads stays right, before and after."""
    monkeypatch.setattr("kvtier.assembly._MAP_BYTES", 1 << 18)
    first, later = names(20), names(1500, "later")
    with Store.open(config(tmp_path)) as store:
        fill(store, first, KIB)
    with running(SMALL_MAP_READER, tmp_path) as reader, Store.open(config(tmp_path)) as store:
        assert reader.line() == "ready"
        assert reader.ask("k0000") == hit(noise(b"k0000", KIB))
        fill(store, later, 64)
        assert store._back is not None
        assert store._back.parts.index._env.info()["map_size"] > 1 << 18
        for key, size in ((first[0], KIB), (first[-1], KIB), (later[0], 64), (later[-1], 64)):
            assert reader.ask(key.decode()) == hit(noise(key, size))
        assert reader.end() == 0


WATCHER = """
import mmap, sys
from pathlib import Path
from kvtier import Hit, MissReason, Store
from tests.concurrency.mixture import KEYS, SIZES, small, version_of
from tests.concurrency.test_processes import flushed_version

floor = open(sys.argv[2], "rb")
flushed = mmap.mmap(floor.fileno(), 0, access=mmap.ACCESS_READ)
hits = newest = 0
with Store.open(small(Path(sys.argv[1]), ram=0), read_only=True) as store:
    print("ready", flush=True)
    for line in sys.stdin:
        least = [flushed_version(flushed, n) for n in range(len(KEYS))]
        for n, outcome in enumerate(store.get_many(KEYS)):
            if isinstance(outcome, Hit):
                version = version_of(KEYS[n], b"".join(outcome.buffers), outcome.meta)
                assert version >= least[n], (n, version, least[n])
                hits, newest = hits + 1, max(newest, version)
        for n, key in enumerate(KEYS):
            at_least, target = flushed_version(flushed, n), bytearray(SIZES[key])
            if into := store.get_into(key, target):
                assert version_of(key, bytes(target), into.meta) >= at_least
        print("looked", flush=True)
    misses = store.stats().misses
    assert set(misses) <= {MissReason.ABSENT.value}, misses
print(hits > 0, newest > 1, flush=True)
"""


def flushed_version(shared: mmap.mmap, number: int) -> int:
    """The version of a key that is durable, and so the least that a reader that starts now may see."""
    return int.from_bytes(shared[8 * number : 8 * number + 8], "little")


def test_readers_never_see_a_wrong_or_an_older_value(tmp_path: Path) -> None:
    """While a writer overwrites, deletes, moves between two tiers, evicts and punches as fast as it can."""
    versions, rng = Versions(), random.Random(1)
    settings = small(tmp_path, ram=0)
    floor = tmp_path / "flushed"
    floor.write_bytes(bytes(8 * len(KEYS)))
    with (
        Store.open(settings) as store,
        floor.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as flushed,
        ExitStack() as stack,
    ):
        readers = [stack.enter_context(running(WATCHER, tmp_path, floor)) for _ in range(3)]
        assert [r.line() for r in readers] == ["ready"] * 3
        for _ in range(25):
            for reader in readers:
                reader.tell("look")
            for _ in range(5):  # no more: the index grows with each commit that a reader sleeps through
                versions.put(store, rng.choice(KEYS), None)
                if rng.random() < 0.1:
                    versions.delete(store, rng.choice(KEYS))
                store.get(rng.choice(KEYS))  # promotes
            store.flush()
            for n, key in enumerate(KEYS):
                flushed[8 * n : 8 * n + 8] = versions.done[key].to_bytes(8, "little")
            assert [r.line() for r in readers] == ["looked"] * 3
        assert [r.end() for r in readers] == [0] * 3
        assert [r.line() for r in readers] == ["True True"] * 3
        for key in KEYS:  # more than there is room for
            versions.put(store, key, None)
        store.flush()
        counters = store.stats().counters
        assert counters["demotions"]
        assert counters["evictions"]
        assert store.stats().quarantined == 0
