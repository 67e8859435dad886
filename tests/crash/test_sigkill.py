"""Real kills: a process that reads and writes with several threads is killed at some moment, again and again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.kills import kill_again_and_again
from tests.crash.victim import Manner

KILLS = 40

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the platform has no SIGKILL")


def test_kill_again_and_again(fresh_folder: Callable[[], Path]) -> None:
    said = kill_again_and_again(fresh_folder(), 0, KILLS, Manner())
    assert min(said["put"], said["flushed"], said["dropped"]) > KILLS
