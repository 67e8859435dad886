"""The power fails: whatever was not synced is lost, page by page and name by name, as chance has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.operations import LOW_BYTES
from tests.crash.power import LOST, lose_power, run_until

SEEDS = 50


@pytest.mark.parametrize("low_bytes", LOW_BYTES.values(), ids=LOW_BYTES)
@pytest.mark.parametrize("lost", LOST)
def test_power_loss(fresh_folder: Callable[[], Path], low_bytes: int, lost: str) -> None:
    """The power may fail again while the store recovers."""
    calls = run_until(0, fresh_folder(), low_bytes)[1].calls
    for seed in range(SEEDS):
        try:
            lose_power(fresh_folder(), seed, low_bytes, lost, calls)
        except Exception as e:
            raise AssertionError(f"seed {seed}") from e
