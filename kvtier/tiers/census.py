"""How much each namespace has: kept with every change of the index, or counted from its blocks."""

from __future__ import annotations

from kvtier.index.lmdb_index import LmdbIndex, View, WriteTxn
from kvtier.index.schema import IndexDamaged, NamespaceEntry

_COUNTED = "counted"  # the counter that holds the number of the last commit that has counted


class Census:
    """What one transaction changes in it. Where it was not exact before, it is left alone."""

    def __init__(self, txn: WriteTxn) -> None:
        self._txn = txn
        self._changes: dict[bytes, tuple[int, int]] = {}
        self.is_exact = txn.counter(_COUNTED) == txn.number - 1
        if not (self.is_exact or txn.count_blocks()):
            txn.clear_namespaces()
            self.is_exact = True

    def add(self, namespace: bytes, blocks: int, nbytes: int) -> None:
        """Count blocks that came (or, less than 0, went), and the length of their values."""
        old = self._changes.get(namespace, (0, 0))
        self._changes[namespace] = old[0] + blocks, old[1] + nbytes

    def save(self) -> None:
        """Write what has changed."""
        if self.is_exact:
            try:
                for namespace, (blocks, nbytes) in self._changes.items():
                    entry = self._txn.namespace(namespace)
                    self._txn.put_namespace(namespace, NamespaceEntry(entry.blocks + blocks, entry.nbytes + nbytes))
            except IndexDamaged:
                self.is_exact = False
        self._txn.set_counter(_COUNTED, self._txn.number if self.is_exact else 0)


def is_exact(view: View) -> bool:
    """Whether what the index says of namespaces is so: who made its last commit has counted."""
    return view.counter(_COUNTED) == view.number


def read_census(index: LmdbIndex, count_max: int) -> dict[bytes, NamespaceEntry] | None:
    """What namespaces have, of at most so many; None if it is not known. :class:`OSError` as reading does."""
    with index.read() as view:
        try:
            return view.namespaces(count_max) if is_exact(view) else None
        except IndexDamaged:
            return None


def take_census(index: LmdbIndex, *, anew: bool = False) -> None:
    """Count all blocks, unless what the index says of namespaces is exact (and not ``anew``): it was made, or changed,
    by a kvtier that did not count them, or something in it was damaged. :class:`IndexFull` if it does not fit."""
    with index.read() as view:
        if is_exact(view) and not anew:
            return
    with index.write() as txn:
        txn.clear_namespaces()
        census = Census(txn)
        for _, entry in txn.blocks():
            census.add(entry.namespace, 1, entry.nbytes)
        census.is_exact = True
        census.save()
