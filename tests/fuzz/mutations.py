"""Damage to a blob of llama.cpp state, drawn from a seeded generator: the same seed gives the same damage."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from random import Random

#: Values at which a count or a length changes its meaning.
_EDGES = [0, 1, 2, 3, 7, 8, 255, 256, 4096, 4097, 1 << 16, 1 << 27, (1 << 27) + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]

Mutation = Callable[[Random, bytearray, Sequence[bytes], Sequence[int]], None]


def mutate(random: Random, blob: bytes, others: Sequence[bytes], fields: Sequence[int]) -> bytes:
    """Up to three kinds of damage. ``others``: blobs to splice in; ``fields``: where counts and lengths are."""
    damaged = bytearray(blob)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        random.choice(MUTATIONS)(random, damaged, others, fields)
    return bytes(damaged)


def flip(random: Random, blob: bytearray, _others: Sequence[bytes], _fields: Sequence[int]) -> None:
    for _ in range(random.randint(1, 4) if blob else 0):
        blob[random.randrange(len(blob))] ^= random.randint(1, 255)


def edit_field(random: Random, blob: bytearray, _others: Sequence[bytes], fields: Sequence[int]) -> None:
    """A count or length becomes another: one at an edge, or one near what it was."""
    inside = [at for at in fields if at + 4 <= len(blob)]
    if not inside:
        return
    at = random.choice(inside)
    (was,) = struct.unpack_from("=I", blob, at)
    value = random.choice([*_EDGES, was + 1, was - 1, 2 * was, was // 2, random.getrandbits(32)])
    struct.pack_into("=I", blob, at, value % (1 << 32))


def truncate(random: Random, blob: bytearray, _others: Sequence[bytes], _fields: Sequence[int]) -> None:
    del blob[random.randint(0, len(blob)) :]


def extend(random: Random, blob: bytearray, _others: Sequence[bytes], _fields: Sequence[int]) -> None:
    blob += random.randbytes(random.randint(1, 64))


def splice(random: Random, blob: bytearray, others: Sequence[bytes], _fields: Sequence[int]) -> None:
    """The beginning of this blob and the end of another, which may be as long as what it replaces."""
    other = random.choice(others)
    at = random.randint(0, len(blob))
    blob[at:] = other[at:] if random.random() < 0.5 else other[random.randint(0, len(other)) :]


def move(random: Random, blob: bytearray, _others: Sequence[bytes], _fields: Sequence[int]) -> None:
    """A range is written over another of the same length."""
    length = random.randint(0, min(len(blob), 256))
    source, target = random.randint(0, len(blob) - length), random.randint(0, len(blob) - length)
    blob[target : target + length] = blob[source : source + length]


def remove(random: Random, blob: bytearray, _others: Sequence[bytes], _fields: Sequence[int]) -> None:
    start = random.randint(0, len(blob))
    del blob[start : start + random.randint(1, 64)]


#: Flips twice: on most bytes they are all that leaves a blob well-formed.
MUTATIONS: list[Mutation] = [flip, flip, edit_field, edit_field, truncate, extend, splice, move, remove]
