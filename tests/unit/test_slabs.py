"""Read buffers are used again exactly when nobody can see them any more."""

from __future__ import annotations

import threading

from kvtier.background.slabs import Slabs


def address(view: memoryview) -> int:
    return id(view.obj)


def test_a_buffer_is_used_again_once_every_view_of_it_is_gone() -> None:
    slabs = Slabs(1000, 1)
    view = slabs.take(600)
    first, part = address(view), view[10:20]
    del view
    assert address(slabs.take(600)) != first, "a part of it is still seen"
    del part
    assert address(slabs.take(600)) == first


def test_a_view_keeps_its_bytes_for_as_long_as_it_lives() -> None:
    slabs = Slabs(64, 2)
    held = []
    for n in range(20):
        view = slabs.take(64)
        view[:] = bytes([n]) * 64
        held.append(view.toreadonly()[::2])
        del view
    assert [bytes(v) for v in held] == [bytes([n]) * 32 for n in range(20)]


def test_a_read_only_cast_view_counts_as_seen_too() -> None:
    slabs = Slabs(64, 1)
    kept = slabs.take(64).toreadonly().cast("I")
    other = slabs.take(64)
    assert kept.obj is not other.obj


def test_views_have_the_size_that_was_asked_for_and_are_writable() -> None:
    slabs = Slabs(100, 2)
    for size in (0, 1, 100, 5000, 7):
        view = slabs.take(size)
        assert (view.nbytes, view.readonly) == (size, False)


def test_what_is_kept_for_reuse_is_bounded_and_fits_what_is_read_now() -> None:
    slabs = Slabs(100, 2)
    for size in (50, 300, 700, 20, 900):
        slabs.take(size)
    assert len(slabs._slabs) <= 2
    first = address(slabs.take(900))
    assert address(slabs.take(900)) == first


def test_warming_makes_the_buffers_that_are_then_used() -> None:
    slabs = Slabs(100, 3)
    slabs.warm()
    made = {id(s) for s in slabs._slabs}
    views = [slabs.take(100) for _ in range(3)]
    assert {address(v) for v in views} == made


def test_threads_never_share_a_buffer() -> None:
    slabs = Slabs(4096, 4)
    wrong = []

    def work(mark: int) -> None:
        for _ in range(500):
            view = slabs.take(4096)
            view[:] = bytes([mark]) * 4096
            if bytes(view) != bytes([mark]) * 4096:
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
