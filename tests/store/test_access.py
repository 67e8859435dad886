"""Who but the owner can get at a store's folders, and what is refused because somebody else could have."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvtier import NotAStore, Store, UnsafeFolder
from kvtier.events import AccessNarrowed, Event, FolderExposed
from tests.stores import config, fill, names, tier

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes and owners are POSIX")

FILES = ["STORE", "CONFIG", "LOCK", "index/data.mdb", "index/lock.mdb", "disk/TIER", "disk/00000001.seg"]
FOLDERS = [".", "index", "disk"]
Change = Callable[[Path], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with blocks in it, closed."""
    with Store.open(config(tmp_path)) as store:
        fill(store, names(3), 5000)
    return tmp_path / "store"


@pytest.fixture(params=[0, 0o077, 0o022], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


def modes(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): stat.S_IMODE(p.lstat().st_mode) for p in (root, *root.rglob("*"))}


def times(root: Path) -> dict[Path, int]:
    """When each was changed; but who looks, takes the lock."""
    return {p: p.lstat().st_mtime_ns for p in (root, *root.rglob("*")) if p.name != "LOCK"}


def opens(root: Path) -> list[Event]:
    """What is said as it opens; its blocks are there."""
    events: list[Event] = []
    with Store.open(config(root.parent), listeners=[events.append]) as store:
        assert store.match(names(3)) == 3
    return events


def refused(root: Path, what: str) -> None:
    """For writing and for reading only, by its configuration and by its folder; and nothing is changed."""
    before = times(root)
    for source in (config(root.parent), root):
        for read_only in (False, True):
            with pytest.raises(UnsafeFolder, match=what):
                Store.open(source, read_only=read_only)
    assert times(root) == before


def test_the_umask_does_not_matter(tmp_path: Path, umask: int) -> None:
    two = [tier("disk"), tier("far", path=tmp_path / "elsewhere" / "far")]
    with Store.open(config(tmp_path, *two)) as store:
        fill(store, names(3), 5000)
        found = {**modes(tmp_path / "store"), **modes(tmp_path / "elsewhere")}
    assert {"STORE", "RUNNING", "far", "far/TIER", *FILES} <= set(found)
    for name, mode in found.items():
        is_folder = name in (*FOLDERS, "far")
        assert mode == (0o700 if is_folder else 0o600), name
    assert "disk/00000001.seg" in found


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_what_others_can_read_is_narrowed(root: Path, name: str) -> None:
    (root / name).chmod(0o755 if name in FOLDERS else 0o644)
    (event,) = opens(root)
    folder = root / name if name in FOLDERS else (root / name).parent
    assert event == AccessNarrowed(str(folder), 1)
    assert set(modes(root).values()) == {0o700, 0o600}
    assert opens(root) == []


def test_reading_only_narrows_nothing(root: Path) -> None:
    root.chmod(0o755)
    with Store.open(root, read_only=True) as store:
        assert store.match(names(3)) == 3
    assert modes(root)["."] == 0o755


@pytest.mark.parametrize("bit", [0o020, 0o002], ids=["group", "world"])
@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_what_others_could_write_is_refused(root: Path, name: str, bit: int) -> None:
    path = root / name
    path.chmod(stat.S_IMODE(path.stat().st_mode) | bit)
    refused(root, "other users could have written to it.*chmod -R go= ")
    path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)
    assert opens(root) == []


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_what_belongs_to_another_user_is_refused(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    if mine == 0:
        os.chown(root / name, 12345, -1)
        refused(root, "belongs to user 12345 and this process is user 0")
    else:  # we are another user
        monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
        refused(root, f"belongs to user {mine} and this process is user {mine + 1}")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can make what belongs to root")
def test_what_belongs_to_root_will_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert opens(root) == []


def linked(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [linked, fifo])
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_refused(root: Path, name: str, change: Change) -> None:
    change(root / name)
    refused(root, f"{Path(name).name} is a symbolic link, or no file at all")


def test_a_link_instead_of_the_index_is_refused(root: Path) -> None:
    linked(root / "index")
    refused(root, "index is a symbolic link")


@pytest.mark.parametrize("name", [".", "disk"])
def test_a_configured_folder_may_be_a_link(root: Path, name: str) -> None:
    elsewhere = root.parent / "elsewhere"
    shutil.move(root / name, elsewhere)
    (root / name).symlink_to(elsewhere)
    assert opens(root) == []
    elsewhere.chmod(0o777)  # it is the target that counts
    refused(root, "elsewhere|disk|store")


def test_an_empty_folder_is_made_ours(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o775)
    events: list[Event] = []
    with Store.open(config(tmp_path), listeners=[events.append]) as store:
        fill(store, names(3), 5000)
    assert events == [AccessNarrowed(str(tmp_path / "store"), 1)]
    assert modes(tmp_path / "store")["."] == 0o700


def test_an_empty_folder_that_is_meant_to_be_shared_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o1777)
    with pytest.raises(UnsafeFolder):
        Store.open(config(tmp_path))
    assert modes(tmp_path / "store") == {".": 0o1777}


@pytest.mark.parametrize("name", ["store", "store/disk"])
def test_a_folder_of_something_else_keeps_its_mode(tmp_path: Path, name: str) -> None:
    with Store.open(config(tmp_path, tier("other"))):
        pass
    folder = tmp_path / (name if name != "store" else "else/store")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "photo").write_bytes(b"photo")
    folder.chmod(0o755)
    where = tmp_path if name != "store" else tmp_path / "else"
    with pytest.raises(NotAStore):
        Store.open(config(where))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_an_exposed_parent_is_told(root: Path) -> None:
    parent = root.parent
    parent.chmod(0o777)
    try:
        assert opens(root) == [FolderExposed(str(root), str(parent))]
        parent.chmod(0o1777)
        assert opens(root) == []
    finally:
        parent.chmod(0o700)
