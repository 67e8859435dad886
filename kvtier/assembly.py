"""Putting a store's disk half together from its configuration: folders, lock, identity, index, tiers.

This is where every refusal to open comes from.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kvtier import access, running, vaults
from kvtier.clock import Clock
from kvtier.config import SAVED_BYTES_MAX, SAVED_FILE, Config, TierConfig
from kvtier.errors import ConfigError, LimitError, NotAStore, StoreLocked, StoreUnwritable, TierMissing
from kvtier.events import AccessNarrowed, FolderExposed, Signals
from kvtier.fs import FileSystem
from kvtier.identity import (
    STORE_FILE,
    TIER_FILE,
    TIERS_MAX,
    Identity,
    check_tier,
    dump_identity,
    dump_tier,
    load_identity,
)
from kvtier.index.data_file import DATA_FILE, looks_cut
from kvtier.index.errors import IndexBusy, IndexCorrupt, IndexUnusable
from kvtier.index.following import FollowingIndex
from kvtier.index.lmdb_index import ENGINE, LmdbIndex, is_sound
from kvtier.index.schema import IndexDamaged
from kvtier.keys import KeyProvider
from kvtier.policy import registry
from kvtier.recovery import Recovery, Report
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.ladder import Ladder
from kvtier.tiers.ledger import Ledger
from kvtier.tiers.limits import Limits, NamespaceOrders
from kvtier.tiers.making import disk_tiers
from kvtier.tiers.quotas import Quotas
from kvtier.vault import Vault

log = logging.getLogger("kvtier")

LOCK_FILE, INDEX_FOLDER = "LOCK", "index"
_WRITE_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_MAP_BYTES = (64 << 20) if os.name == "nt" else (1 << 30)  # grown as needed; sparse but on Windows


@dataclass
class Parts:
    """The open disk half of a store, and how to close it."""

    identity: Identity
    vault: Vault
    index: LmdbIndex
    ladder: Ladder
    report: Report
    on_close: list[Callable[[], None]] = field(default_factory=list)
    reseal: Callable[[], None] = lambda: None

    def close(self) -> None:
        """Close in reverse order of opening."""
        _run_all(self.on_close)


def _run_all(closers: list[Callable[[], None]]) -> None:
    """From last to first, each even if another one fails."""
    with ExitStack() as stack:
        for closer in closers:
            stack.callback(closer)
        closers.clear()


def config_of(source: Config | str | os.PathLike[str]) -> Config:
    """The configuration that :meth:`kvtier.Store.open` was given, in any of its forms."""
    if isinstance(source, Config):
        return source
    path = Path(source)
    if path.suffix == ".toml":
        return Config.from_toml(path)
    try:
        os.lstat(path / SAVED_FILE)
        access.secure(str(path), narrow=False)  # before it is believed where the tiers are
    except (FileNotFoundError, NotADirectoryError):
        pass
    except PermissionError as e:
        raise StoreUnwritable(f"{e.filename}: {e.strerror}") from e
    return Config.of_store(path)


def open_parts(
    config: Config,
    fs: FileSystem,
    clock: Clock,
    signals: Signals,
    keys: KeyProvider | None,
    *,
    read_only: bool,
    rebuild: bool = False,
) -> Parts:
    """Open (creating what is missing, unless ``read_only``) the store that ``config`` describes.

    ``rebuild``: make the index anew from the segments, whatever it says.

    Raises the errors of :class:`kvtier.StoreError`; nothing stays open or locked then.
    """
    assert config.store.path is not None
    root = str(config.store.path)
    closers: list[Callable[[], None]] = []
    try:
        if read_only:
            return _open_read_only(config, root, fs, clock, signals, keys, closers)
        try:
            return _open(config, root, fs, clock, signals, keys, closers, rebuild)
        except IndexCorrupt:
            _run_all(closers)  # which removes it
            return _open(config, root, fs, clock, signals, keys, closers, rebuild)
    except BaseException as e:
        _run_all(closers)
        if isinstance(e, OSError) and e.errno in _WRITE_REFUSED:
            raise StoreUnwritable(f"{e.filename or root}: {e.strerror}") from e
        raise


def _open(
    config: Config,
    root: str,
    fs: FileSystem,
    clock: Clock,
    signals: Signals,
    keys: KeyProvider | None,
    closers: list[Callable[[], None]],
    rebuild: bool,
) -> Parts:
    is_new = _is_new(fs, root)
    fs.make_dir(root)
    _secure(root, signals, narrow=True)
    closers.append(_locked(fs, os.path.join(root, LOCK_FILE)))
    is_new = is_new and _is_new(fs, root)  # another process may have made it meanwhile
    identity = vaults.new_identity(ENGINE, keys) if is_new else _known(fs, root, keys)
    known = identity.written_to(t.name for t in config.tier)
    vault = vaults.vault_of(known, keys)
    if len(known.tiers) > TIERS_MAX:
        raise LimitError(f"{root}: a store can know {TIERS_MAX} tier names in its life, no more")
    if is_new or known != identity:
        fs.write_file_durably(os.path.join(root, STORE_FILE), dump_identity(known))
    for tier in config.tier:
        _tier_folder(fs, tier, known, signals, create=False)  # refused before anything is touched
    if fs.exists(index_folder := os.path.join(root, INDEX_FOLDER)):
        _secure(index_folder, signals, narrow=True, follow=False)
    crashes = running.crashes(fs, root)
    audit = rebuild or crashes >= running.CRASHES_MAX
    running.start(fs, root, crashes)  # first: to open a damaged index can end this process
    if not crashes:
        closers.append(partial(running.end, fs, root))  # also if this opening is refused
    index, is_new_index = _open_index(fs, root, audit=audit)
    closers.append(index.close)
    for tier in config.tier:
        _check_mounted(fs, root, tier, known, index)
    closers.insert(-1, partial(_remove_if_damaged, index, root))  # runs once it is closed
    if rebuild:
        with index.write() as txn:
            txn.clear()  # recovery makes an index anew that is not complete, in this opening or a later one
    folders = [_tier_folder(fs, t, known, signals, create=True) for t in config.tier]
    _warn_if_exposed([root, *folders], signals)
    _save_config(fs, root, config)
    if is_new_index:
        fs.sync_dir(os.path.join(root, INDEX_FOLDER))
        fs.sync_dir(root)
    if audit:
        running.start(fs, root, 0)
    tiers = disk_tiers(config, folders, known, vault, fs, clock, signals)
    closers += [t.close for t in tiers]
    ladder = _ladder(config, index, tiers, signals, clock, known)
    recovery = Recovery(fs, index, tiers, ladder.ledger, signals, known.block_id, known.store_id)
    report = recovery.run()
    # Closing runs backwards: tiers, then the index, then the mark of a clean end, then the lock.
    if crashes:
        closers.insert(1, partial(running.end, fs, root))
    return Parts(known, vault, index, ladder, report, closers, partial(_reseal, fs, root, known, keys))


def _open_read_only(
    config: Config,
    root: str,
    fs: FileSystem,
    clock: Clock,
    signals: Signals,
    keys: KeyProvider | None,
    closers: list[Callable[[], None]],
) -> Parts:
    if _is_new(fs, root):
        raise NotAStore(f"{root}: there is no store here")
    _secure(root, signals, narrow=False)
    identity = _known(fs, root, keys)
    vault = vaults.vault_of(identity, keys)
    present = [t for t in config.tier if t.name in identity.tiers]
    folders = [_tier_folder(fs, t, identity, signals, create=False, narrow=False) for t in present]
    folder = os.path.join(root, INDEX_FOLDER)
    if fs.exists(folder):
        _secure(folder, signals, narrow=False, follow=False)
    try:
        index = index_to_read(root)
    except IndexUnusable as e:
        raise NotAStore(f"{folder}: the index cannot be read ({e}); open the store for writing to rebuild it") from e
    closers.append(index.close)
    tiers = disk_tiers(config.model_copy(update={"tier": tuple(present)}), folders, identity, vault, fs, clock, signals)
    closers += [t.close for t in tiers]
    with index.read() as view:
        for tier in tiers:
            try:
                known = view.segments(tier.tier_no)
            except IndexDamaged:  # only for the figures in stats: reading does not need it
                continue
            for number in tier.list_segments():
                if number in known:
                    with suppress(FileNotFoundError):  # the writer has just dropped it
                        tier.know(number, known[number].live_bytes)
    return Parts(identity, vault, index, _ladder(config, index, tiers, signals, clock, identity), Report(), closers)


def _ladder(
    config: Config, index: LmdbIndex, tiers: list[DiskTier], signals: Signals, clock: Clock, identity: Identity
) -> Ladder:
    limits = Limits({q.namespace: q.bytes_max for q in config.quota})
    orders = NamespaceOrders(limits.has, registry.EVICTION["leaf-lru"])
    ledger = Ledger(index, tiers, orders, signals, clock)
    quotas = Quotas(index, ledger, orders, limits, signals)
    return Ladder(index, tiers, ledger, quotas, signals, identity.block_id)


def index_to_read(root: str) -> LmdbIndex:
    """The index of the store in ``root``, for reading. Raises :class:`kvtier.StoreLocked`, :class:`IndexUnusable`."""
    folder = os.path.join(root, INDEX_FOLDER)
    can_lock = os.access(folder, os.W_OK) and os.access(os.path.join(folder, "lock.mdb"), os.W_OK)
    try:
        return FollowingIndex(folder, map_bytes=_MAP_BYTES, lock=can_lock)
    except IndexBusy as e:
        raise StoreLocked(f"{root} is open in this process, or was when it was forked: {e}") from e


def _reseal(fs: FileSystem, root: str, identity: Identity, keys: KeyProvider | None) -> None:
    """Encrypt the store's secret with the store's current key."""
    if keys is not None:
        fs.write_file_durably(os.path.join(root, STORE_FILE), dump_identity(vaults.resealed(identity, keys)))


def _known(fs: FileSystem, root: str, keys: KeyProvider | None) -> Identity:
    """The identity of a store that is there, with its secret."""
    return vaults.unlocked(load_identity(fs, os.path.join(root, STORE_FILE), ENGINE), keys, root)


def _is_new(fs: FileSystem, root: str) -> bool:
    """Whether there is no store yet; NotAStore if there is something else."""
    if fs.exists(os.path.join(root, STORE_FILE)):
        return False
    if not fs.exists(root):
        return True
    try:
        names = set(fs.list_dir(root))
    except NotADirectoryError as e:
        raise NotAStore(f"{root} is not a folder") from e
    if names - {LOCK_FILE, STORE_FILE + ".tmp"}:
        raise NotAStore(f"{root} holds other files and no {STORE_FILE} file; give an empty folder or a store")
    return True


def _locked(fs: FileSystem, path: str) -> Callable[[], None]:
    try:
        fd = fs.lock(path)
    except BlockingIOError as e:
        holder = fs.lock_holder(path)
        who = f"process {holder}" if holder else "another process"
        raise StoreLocked(f"{os.path.dirname(path)} is open for writing in {who}") from e
    return lambda: fs.unlock(fd)


def _check_mounted(fs: FileSystem, root: str, tier: TierConfig, identity: Identity, index: LmdbIndex) -> None:
    """Refuse to begin a tier anew whose blocks the index still names: its disk may just not be mounted. Where the index
    cannot say, a tier of the last session's counts as one with blocks."""
    if fs.exists(os.path.join(str(tier.path), TIER_FILE)):
        return
    try:
        with index.read() as view:
            is_known = bool(view.segments(identity.tier_no(tier.name)))
            is_unsure = not view.is_complete()
    except (IndexDamaged, IndexCorrupt):
        is_known = is_unsure = True
    if is_known or (is_unsure and tier.name in _tiers_before(root)):
        raise TierMissing(
            f"{tier.path}: tier {tier.name!r} of this store holds blocks and is not there; mount its disk, or take it "
            "out of the configuration (under another name it can begin anew)"
        )


def _tiers_before(root: str) -> set[str]:
    """The tiers of the last session that came as far as to have made them."""
    try:
        return {tier.name for tier in Config.of_store(root).tier} if os.path.exists(_saved(root)) else set()
    except ConfigError:
        return set()


def _secure(folder: str, signals: Signals, *, narrow: bool, follow: bool = True) -> None:
    """Refuse a folder that any user could have written to; keep others from using it, if ``narrow``."""
    if modes := access.secure(folder, narrow=narrow, follow=follow):
        signals.emit(AccessNarrowed(folder, modes))


def _warn_if_exposed(folders: list[str], signals: Signals) -> None:
    exposed = {place: folder for folder in reversed(folders) if (place := access.exposed_at(folder))}
    for place, folder in exposed.items():
        signals.emit(FolderExposed(folder, place))


def _tier_folder(
    fs: FileSystem, tier: TierConfig, identity: Identity, signals: Signals, *, create: bool, narrow: bool = True
) -> str:
    """The tier's folder, checked to be this tier's and ours alone; created and labelled if new."""
    folder = str(tier.path)
    label = os.path.join(folder, TIER_FILE)
    number = identity.tier_no(tier.name)
    if fs.exists(label):
        _secure(folder, signals, narrow=narrow)
        check_tier(fs, label, identity.store_id, tier.name, number)
        return folder
    if fs.exists(folder) and set(fs.list_dir(folder)) - {TIER_FILE + ".tmp"}:
        raise NotAStore(f"{folder} holds other files and no {TIER_FILE} file; give tier {tier.name!r} an empty folder")
    if create:
        fs.make_dir(folder)
        _secure(folder, signals, narrow=True)
        fs.write_file_durably(label, dump_tier(identity.store_id, tier.name, number))
    return folder


def _open_index(fs: FileSystem, root: str, *, audit: bool) -> tuple[LmdbIndex, bool]:
    """The index, and whether it is a new one, which recovery will fill, because it was missing or damaged: without an
    ``audit``, a file is looked at that is shorter than it says, since to open that one could end this process."""
    folder = os.path.join(root, INDEX_FOLDER)
    data = os.path.join(folder, DATA_FILE)
    missing = not fs.exists(data)
    if not missing and (audit or looks_cut(folder)) and not is_sound(folder):
        missing = True
    for attempt in (0, 1):
        if missing:
            shutil.rmtree(folder, ignore_errors=True)
        fs.make_dir(folder)
        try:
            return LmdbIndex(folder, map_bytes=_MAP_BYTES, read_only=False), missing
        except IndexUnusable as e:
            if attempt or not e.is_damaged:
                raise OSError(f"{folder}: {e}") from e
            missing = True
    raise AssertionError("unreachable")


def _remove_if_damaged(index: LmdbIndex, root: str) -> None:
    """So that the next opening makes it anew."""
    if index.met_damage:
        log.warning("%s: the index is damaged; the next opening makes it anew from the segments", root)
        shutil.rmtree(os.path.join(root, INDEX_FOLDER), ignore_errors=True)


def _saved(root: str) -> str:
    return os.path.join(root, SAVED_FILE)


def _save_config(fs: FileSystem, root: str, config: Config) -> None:
    """Remember the configuration, so that the folder alone is enough to open the store again."""
    path, text = _saved(root), config.to_json().encode()
    if not fs.exists(path) or fs.read_file(path, SAVED_BYTES_MAX) != text:
        fs.write_file_durably(path, text)
