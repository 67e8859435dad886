"""Who but the owner can get at a store's folders, and what is refused because somebody else could have."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvtier import Config, ConfigError, NotAStore, Store, StoreLocked, StoreUnwritable, UnsafeFolder
from kvtier.check.verify import verify
from kvtier.events import AccessNarrowed, Event, FolderExposed
from kvtier.fs import default_file_system
from tests.stores import config, fill, names, tier

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes and owners are POSIX")
needs_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")

FILES = ["STORE", "CONFIG", "LOCK", "index/data.mdb", "index/lock.mdb", "disk/TIER", "disk/00000001.seg"]
FOLDERS = [".", "index", "disk"]
STRANGER = 12345  # a user id
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


@pytest.fixture
def public() -> Iterator[Path]:
    """An empty folder that every user can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def a_stranger() -> Iterator[None]:
    """Be another user, of the group that we are in."""
    mine = os.geteuid()
    os.seteuid(STRANGER)
    try:
        yield
    finally:
        os.seteuid(mine)


def be_root_elsewhere(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be root, and the store another user's."""
    if os.geteuid() == 0:
        for path in (root, *root.rglob("*")):
            os.chown(path, STRANGER, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 0)


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


@pytest.mark.parametrize("bits", [0o055, 0o070, 0o075], ids=oct)
@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_what_others_can_read_or_the_group_can_use_is_narrowed(root: Path, name: str, bits: int) -> None:
    (root / name).chmod(0o700 | bits if name in FOLDERS else 0o600 | bits & 0o066)
    (event,) = opens(root)
    folder = root / name if name in FOLDERS else (root / name).parent
    assert event == AccessNarrowed(str(folder), 1)
    assert set(modes(root).values()) == {0o700, 0o600}
    assert opens(root) == []


@pytest.mark.parametrize(("folders", "files"), [(0o775, 0o600), (0o2770, 0o660)], ids=["umask 002", "fsGroup"])
def test_a_store_that_its_group_could_use_is_narrowed_as_a_whole(root: Path, folders: int, files: int) -> None:
    for name, mode in modes(root).items():
        (root / name).chmod(folders if mode == 0o700 else files)
    with Store.open(root, read_only=True) as store:
        assert store.match(names(3)) == 3
    assert {event.folder for event in opens(root) if isinstance(event, AccessNarrowed)} == {
        os.path.normpath(root / name) for name in FOLDERS
    }
    assert set(modes(root).values()) == {0o700, 0o600}
    assert opens(root) == []


def ignored(*args: object, **options: object) -> None:
    """What chmod does on file systems without modes; on some it is an error."""


def forbidden(*args: object, **options: object) -> None:
    raise PermissionError


@pytest.mark.parametrize("chmod", [ignored, forbidden])
@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701], ids=oct)
def test_a_mode_that_stays_is_told_each_time(
    tmp_path: Path, chmod: Callable[..., None], mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(mode)
    monkeypatch.setattr(os, "chmod", chmod)
    for _ in range(2):
        events: list[Event] = []
        with Store.open(config(tmp_path), listeners=[events.append]):
            assert events == [FolderExposed(str(root), str(root))]
    assert modes(root)["."] == mode


@pytest.mark.parametrize("chmod", [ignored, forbidden])
def test_where_any_user_can_go_on_writing_nothing_is_begun(
    tmp_path: Path, chmod: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o777)
    monkeypatch.setattr(os, "chmod", chmod)
    with pytest.raises(UnsafeFolder, match="does not keep modes; mount it"):
        Store.open(config(tmp_path))
    assert modes(root) == {".": 0o777}


@needs_root
def test_a_folder_of_root_that_our_group_can_write_to_is_told_each_time(public: Path) -> None:
    (public / "store").mkdir()
    (public / "store").chmod(0o2775)
    with a_stranger():
        for _ in range(2):
            events: list[Event] = []
            with Store.open(config(public), listeners=[events.append]) as store:
                fill(store, names(3), 5000)
            assert events == [FolderExposed(str(public / "store"), str(public / "store"))]


@needs_root
def test_a_folder_of_root_that_any_user_can_write_to_is_refused_at_once(public: Path) -> None:
    (public / "store").mkdir()
    (public / "store").chmod(0o777)
    with a_stranger(), pytest.raises(UnsafeFolder, match=r"belongs to user 0 .*give a new folder inside it"):
        Store.open(config(public))
    assert modes(public / "store") == {".": 0o777}


def test_reading_only_narrows_nothing(root: Path) -> None:
    root.chmod(0o755)
    with Store.open(root, read_only=True) as store:
        assert store.match(names(3)) == 3
    assert modes(root)["."] == 0o755


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_what_any_user_could_write_is_refused(root: Path, name: str) -> None:
    path = root / name
    path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o002)
    refused(root, "other users could have written to it.*chmod -R go= ")
    path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)
    assert opens(root) == []


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_what_belongs_to_another_user_is_refused(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    if mine == 0:
        os.chown(root / name, STRANGER, -1)
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    owner = STRANGER if mine == 0 else mine
    refused(root, f"belongs to user {owner} and this process is user {mine + 1}.*container.*NFS")


def test_root_can_look_at_what_belongs_to_another_user(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be_root_elsewhere(root, monkeypatch)
    with Store.open(root, read_only=True) as store:
        assert store.match(names(3)) == 3
    assert not verify(root).findings


def test_root_can_write_where_all_belongs_to_one_user(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be_root_elsewhere(root, monkeypatch)
    assert opens(root) == []
    assert opens(root) == []  # some files are root's now


def test_root_leaves_the_modes_of_another_user(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.chmod(0o750)
    be_root_elsewhere(root, monkeypatch)
    assert opens(root) == [FolderExposed(str(root), str(root))]
    assert modes(root)["."] == 0o750


@needs_root
@pytest.mark.parametrize("name", FILES)
def test_root_does_not_write_where_a_file_belongs_to_neither(root: Path, name: str) -> None:
    os.chown(root / name, STRANGER, -1)
    with pytest.raises(UnsafeFolder, match="belongs to user 12345 and this process is user 0"):
        Store.open(config(root.parent))
    with Store.open(root, read_only=True) as store:
        assert store.match(names(3)) == 3


@needs_root
def test_what_belongs_to_root_will_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert opens(root) == []


@needs_root
def test_a_folder_that_only_its_owner_can_enter_is_refused_to_others(public: Path) -> None:
    root = public / "store"
    with Store.open(config(public)):
        pass
    with a_stranger():
        for source in (config(public), root):
            for read_only in (False, True):
                with pytest.raises(StoreUnwritable, match="ermission denied"):
                    Store.open(source, read_only=read_only)
        with pytest.raises(StoreUnwritable, match="ermission denied"):
            verify(root)
        with pytest.raises(ConfigError, match="cannot be read"):
            Config.of_store(root)


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


@pytest.mark.parametrize("mode", [0o775, 0o777], ids=oct)
def test_an_empty_folder_is_made_ours(tmp_path: Path, mode: int) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(mode)
    events: list[Event] = []
    with Store.open(config(tmp_path), listeners=[events.append]) as store:
        fill(store, names(3), 5000)
    assert events == [AccessNarrowed(str(tmp_path / "store"), 1)]
    assert modes(tmp_path / "store")["."] == 0o700


def test_a_folder_that_another_process_is_just_beginning_is_locked(tmp_path: Path) -> None:
    root, fs = tmp_path / "store", default_file_system()
    root.mkdir()
    root.chmod(0o777)
    lock = fs.lock(str(root / "LOCK"))
    (root / "STORE.tmp").touch(0o600)
    try:
        with pytest.raises(StoreLocked):
            Store.open(config(tmp_path))
    finally:
        fs.unlock(lock)


def test_a_folder_that_was_empty_a_moment_ago_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, chmod = tmp_path / "store", os.chmod

    def too_late(*args: Any, **options: Any) -> None:
        (root / "STORE").touch()
        chmod(*args, **options)

    root.mkdir()
    root.chmod(0o777)
    monkeypatch.setattr(os, "chmod", too_late)
    with pytest.raises(UnsafeFolder, match="could have written to it"):
        Store.open(config(tmp_path))


def test_a_file_that_goes_away_meanwhile_is_no_matter(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: [*listdir(folder), "CONFIG.tmp"])
    with Store.open(root, read_only=True) as store:
        assert store.match(names(3)) == 3


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
