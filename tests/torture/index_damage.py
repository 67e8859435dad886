"""An index whose file was tampered with, by seed. LMDB has no checksums: a damaged page can end the process that reads
it, or hide blocks. Each session is therefore a process; after a few of them all is well, or ``verify`` finds the damage
and ``repair`` mends it. No byte is ever wrong."""

from __future__ import annotations

import multiprocessing
import random
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from kvtier import FlushError, Hit, running
from kvtier.check import repair, verify
from kvtier.events import Event
from kvtier.fs import OsFileSystem
from kvtier.index.data_file import DATA_FILE
from tests.crash.oracle import LostBlock, WrongBytes
from tests.stores import settle, value_of
from tests.torture.damage import KEYS, Damaged, again, signs
from tests.torture.stage import Case

_PAGE, _META_BYTES, _HEAD_BYTES = 4096, 152, 64
_SESSIONS = running.CRASHES_MAX + 2
_HANGS_S = 120
_WELL, _UNWELL, _DIED = "well", "unwell", "died"


# -- harm --------------------------------------------------------------------------------------------


def flip_any(raw: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 8])):
        _flip(raw, rng.randrange(len(raw)), rng)


def flip_meta(raw: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 4])):
        _flip(raw, rng.choice([0, _PAGE]) + rng.randrange(_META_BYTES), rng)


def flip_heads(raw: bytearray, rng: random.Random) -> None:
    """Heads of pages, and where their entries are."""
    for _ in range(rng.choice([1, 1, 4])):
        _flip(raw, rng.randrange(2, len(raw) // _PAGE) * _PAGE + rng.randrange(_HEAD_BYTES), rng)


def replace_page(raw: bytearray, rng: random.Random) -> None:
    """By zeros, noise, or another page of the file."""
    pages = len(raw) // _PAGE
    at, other = rng.randrange(pages) * _PAGE, rng.randrange(pages) * _PAGE
    raw[at : at + _PAGE] = rng.choice([bytes(_PAGE), rng.randbytes(_PAGE), bytes(raw[other : other + _PAGE])])


def cut(raw: bytearray, rng: random.Random) -> None:
    del raw[rng.randrange(len(raw)) :]


def empty_end(raw: bytearray, rng: random.Random) -> None:
    """Of its full length, but the end was never written."""
    at = rng.randrange(len(raw))
    raw[at:] = bytes(len(raw) - at)


def _flip(raw: bytearray, at: int, rng: random.Random) -> None:
    raw[at] ^= 1 << rng.randrange(8)


HARMS: list[Callable[[bytearray, random.Random], None]] = [
    flip_any,
    flip_meta,
    flip_heads,
    replace_page,
    cut,
    empty_end,
]

# -- sessions ----------------------------------------------------------------------------------------


def run_index_damage(case: Case) -> Counter[str]:
    rng = random.Random(case.seed)
    damaged = Damaged(case.folder, rng)
    damaged.keys = None
    damaged.index_is_spoilt = True
    damaged.live()
    harm = HARMS[case.seed % len(HARMS)]
    _spoil(damaged.folder / "index" / DATA_FILE, harm, rng)
    if rng.random() < 0.5:  # as if the last session had been killed
        running.start(OsFileSystem(), str(damaged.folder), 0)
    try:
        return _heal(damaged, is_found=not verify(damaged.settings).is_sound) + Counter([harm.__name__])
    except Exception as e:
        raise AssertionError(f"after {harm.__name__}") from e


def _spoil(file: Path, harm: Callable[[bytearray, random.Random], None], rng: random.Random) -> None:
    raw = bytearray(file.read_bytes())
    harm(raw, rng)
    file.write_bytes(raw)


def _heal(damaged: Damaged, *, is_found: bool) -> Counter[str]:
    """Sessions until all is well. ``is_found``: ``verify`` sees the damage."""
    counts: Counter[str] = Counter()
    for _ in range(_SESSIONS):
        how = _run_session(damaged, is_found)
        counts[how] += 1
        if how == _WELL:
            return counts
    assert is_found, f"{counts}, and nothing sees why"
    assert repair(damaged.settings).left.is_sound
    assert _run_session(damaged, is_found) == _WELL
    return counts + Counter(repairs=1)


def _run_session(damaged: Damaged, is_found: bool) -> str:
    """In a process of its own: how it ended."""
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(damaged, is_found, there), daemon=True)
    process.start()
    there.close()
    try:
        assert here.poll(_HANGS_S), "a session hangs"
        how: str = here.recv()
    except EOFError:
        how = _DIED
    finally:
        process.kill()
        process.join()
    if how not in (_WELL, _UNWELL, _DIED):
        raise (
            WrongBytes if WrongBytes.__name__ in how else LostBlock if LostBlock.__name__ in how else AssertionError
        )(how)
    return how


def _main(damaged: Damaged, is_found: bool, pipe: Connection) -> None:
    try:
        pipe.send(_session(damaged, is_found))
    except Exception:
        pipe.send(traceback.format_exc())


def _session(damaged: Damaged, is_found: bool) -> str:
    """Read all, store all again, and read that: whether this could be done. What is missing must be known."""
    events: list[Event] = []
    with damaged.open(events) as store:
        missing = [
            key for key in KEYS if not isinstance(store.get(key), Hit) and None not in damaged.oracle.may_be[key]
        ]
        for key in KEYS:
            hit = store.get(key)
            if isinstance(hit, Hit) and value_of(hit) not in {*damaged.oracle.ever[key], again(key)}:
                raise WrongBytes(f"{key!r}: {hit.nbytes} bytes")
        settle(store)
        if missing and not signs(store, events) and not is_found:
            raise LostBlock(f"{missing} went without a sign")
        try:
            damaged.store_again(store)
        except (FlushError, LostBlock):
            return _UNWELL
    with damaged.open() as store:
        try:
            damaged.check_stored_again(store)
        except LostBlock:
            return _UNWELL
    return _WELL
