"""The worker: what runs when, by hand and on its thread."""

from __future__ import annotations

import threading
from collections import deque

import pytest

from kvtier.background.worker import Worker


class Log:
    """Jobs and groups that write down that they ran."""

    def __init__(self, groups: int = 0) -> None:
        self.ran: list[str] = []
        self.groups = deque(f"group {i}" for i in range(groups))
        self.worker = Worker(self.write_group)

    def write_group(self) -> bool:
        if not self.groups:
            return False
        self.ran.append(self.groups.popleft())
        return True

    def submit(self, name: str, *, lazy: bool = False) -> None:
        self.worker.submit(lambda: self.ran.append(name), lazy=lazy)


def test_urgent_jobs_then_groups_then_lazy_jobs() -> None:
    log = Log(groups=2)
    log.submit("lazy 1", lazy=True)
    log.submit("urgent 1")
    log.submit("urgent 2")
    log.submit("lazy 2", lazy=True)
    while log.worker.step():
        pass
    assert log.ran == ["urgent 1", "urgent 2", "group 0", "group 1", "lazy 1", "lazy 2"]
    assert not log.worker.step()


def test_the_oldest_lazy_jobs_are_dropped_when_there_are_too_many() -> None:
    log = Log()
    for i in range(3000):
        log.submit(str(i), lazy=True)
    while log.worker.step():
        pass
    assert log.ran == [str(i) for i in range(3000 - 1024, 3000)]


def test_a_job_that_fails_is_logged_and_the_next_one_runs(caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    log.worker.submit(lambda: 1 / 0)  # type: ignore[arg-type]
    log.submit("next")
    assert log.worker.step()
    assert "ZeroDivisionError" in caplog.text
    assert log.worker.step()
    assert log.ran == ["next"]


def assert_(condition: bool) -> None:
    assert condition


@pytest.mark.parametrize("started", [True, False])
def test_stopping_does_what_must_be_done_and_no_more(started: bool) -> None:
    log = Log(groups=50)
    gate = threading.Event()
    if started:
        log.worker.submit(lambda: assert_(gate.wait(60)))
        log.worker.start()
        assert log.worker.is_alive
    for i in range(50):
        log.submit(f"urgent {i}")
        log.submit(f"lazy {i}", lazy=True)
    log.worker.poke()
    gate.set()
    log.worker.stop()
    assert not log.worker.is_alive
    assert {name for name in log.ran if "lazy" not in name} == {
        f"{kind} {i}" for kind in ("urgent", "group") for i in range(50)
    }


def test_the_thread_wakes_for_each_kind_of_work() -> None:
    done = threading.Event()
    queued: list[str] = []

    def write_group() -> bool:
        if not queued:
            return False
        queued.clear()
        done.set()
        return True

    worker = Worker(write_group)
    worker.start()
    for kind in ("urgent", "lazy", "poke"):
        done.clear()
        if kind == "poke":
            queued.append("group")
            worker.poke()
        else:
            worker.submit(done.set, lazy=kind == "lazy")
        assert done.wait(60)
    worker.stop()


def test_jobs_may_bring_jobs() -> None:
    log = Log()
    log.worker.submit(lambda: log.submit("from a job"))
    log.worker.stop()
    assert log.ran == ["from a job"]
