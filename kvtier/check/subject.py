"""The store that is looked at: its folders and its index, without its secret."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from kvtier import access
from kvtier.assembly import INDEX_FOLDER, Parts, index_to_read
from kvtier.check.report import Finding, Kind, Report
from kvtier.config import Config
from kvtier.errors import NotAStore, TierMissing
from kvtier.fs import FileSystem
from kvtier.identity import STORE_FILE, TIER_FILE, check_tier, load_identity
from kvtier.index.data_file import DATA_FILE, last_commit, looks_cut
from kvtier.index.errors import IndexUnusable
from kvtier.index.lmdb_index import ENGINE, LmdbIndex, is_sound
from kvtier.segment.names import segment_name, segment_numbers


class TierFolder(NamedTuple):
    """A disk tier, as far as an audit needs it."""

    name: str
    tier_no: int
    folder: str

    def path_of(self, segment_no: int) -> str:
        return os.path.join(self.folder, segment_name(segment_no))

    def segments(self, fs: FileSystem) -> list[int]:
        return segment_numbers(fs.list_dir(self.folder))


@dataclass(frozen=True)
class Subject:
    """``index`` is None if it cannot be used."""

    fs: FileSystem
    root: str
    store_id: bytes
    tiers: Sequence[TierFolder]
    index: LmdbIndex | None

    def check_label(self, tier: TierFolder) -> None:
        """Read a tier's label from its disk. :class:`OSError` or a :class:`kvtier.StoreError` if that disk is not
        there or does not read at all."""
        path = os.path.join(tier.folder, TIER_FILE)
        fd = self.fs.open(path)
        try:
            self.fs.drop_cache(fd)  # what memory still holds says nothing of the disk
        finally:
            self.fs.close(fd)
        check_tier(self.fs, path, self.store_id, tier.name, tier.tier_no)


def folder_of(config: Config, fs: FileSystem) -> str:
    """The store's folder. Raises :class:`kvtier.NotAStore` if there is no store."""
    if not config.tier or config.store.path is None:
        raise NotAStore("a store without a disk tier keeps nothing that could be looked at")
    root = str(config.store.path)
    if not fs.exists(os.path.join(root, STORE_FILE)):
        raise NotAStore(f"{root}: there is no store here")
    return root


def of_parts(parts: Parts, fs: FileSystem, root: str) -> Subject:
    """The store that is open for writing in this process."""
    tiers = [TierFolder(t.name, t.tier_no, t.setup.folder) for t in parts.ladder.tiers]
    return Subject(fs, root, parts.identity.store_id, tiers, parts.index)


def tiers_of(config: Config, fs: FileSystem, root: str) -> tuple[bytes, list[TierFolder]]:
    """The store's id and its tiers. Raises the errors of :class:`kvtier.StoreError`."""
    access.secure(root, narrow=False)
    identity = load_identity(fs, os.path.join(root, STORE_FILE), ENGINE)
    found = []
    for tier in config.tier:
        if tier.name not in identity.tiers:
            continue  # it has never been opened with it
        folder, number = str(tier.path), identity.tier_no(tier.name)
        label = os.path.join(folder, TIER_FILE)
        if not fs.exists(label):
            raise TierMissing(f"{folder}: tier {tier.name!r} of this store is not there; mount its disk")
        access.secure(folder, narrow=False)
        check_tier(fs, label, identity.store_id, tier.name, number)
        found.append(TierFolder(tier.name, number, folder))
    return identity.store_id, found


@contextmanager
def opened(config: Config, fs: FileSystem, root: str, report: Report) -> Iterator[Subject]:
    """The store, to be read beside whoever has it open. What is wrong with the index as a file is reported."""
    store_id, tiers = tiers_of(config, fs, root)
    index = _audited_index(root, report)
    try:
        yield Subject(fs, root, store_id, tiers, index)
    finally:
        if index is not None:
            index.close()


def _audited_index(root: str, report: Report) -> LmdbIndex | None:
    """The index, if it can be used: what is damaged is not opened, for that could end this process."""
    folder = os.path.join(root, INDEX_FOLDER)
    if os.path.exists(folder):
        access.secure(folder, narrow=False, follow=False)
    before = last_commit(folder)
    problem = _file_problem(folder)
    if problem and last_commit(folder) == before:  # nobody wrote to it meanwhile
        report.add(Finding(Kind.INDEX, problem))
        return None
    try:
        index = index_to_read(root)
    except IndexUnusable as e:
        report.add(Finding(Kind.INDEX, f"it cannot be opened: {e}"))
        return None
    if problem:
        with index.read():  # what a reader sees stays as it is, and so does every later commit's part of the file
            problem = _file_problem(folder)
    if problem:
        report.add(Finding(Kind.INDEX, problem))
        index.close()
        return None
    return index


def _file_problem(folder: str) -> str | None:
    if not os.path.exists(os.path.join(folder, DATA_FILE)):
        return "there is none"
    if looks_cut(folder):
        return "its file has been cut"
    return None if is_sound(folder) else "its file is damaged"
