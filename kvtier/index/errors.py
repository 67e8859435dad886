"""Why an index cannot be used, beside what is wrong with one entry of it."""

from __future__ import annotations


class IndexUnusable(Exception):
    """The index cannot be opened. If it ``is_damaged``, it has to be made anew from the segments."""

    def __init__(self, message: str, *, is_damaged: bool = True) -> None:
        super().__init__(message)
        self.is_damaged = is_damaged


class IndexBusy(IndexUnusable):
    """This process has the index open already, or had it when it was forked."""


class IndexCorrupt(OSError):
    """A page of the open index is not what it should be: the index has to be made anew from the segments."""
