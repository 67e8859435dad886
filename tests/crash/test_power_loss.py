"""The power fails: whatever was not synced is lost, page by page and name by name, as chance has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.power import LOST, lose_power, run_until
from tests.crash.scale import SHORT, Scale

SEEDS = 50


@pytest.mark.parametrize("scale", SHORT.values(), ids=SHORT)
@pytest.mark.parametrize("lost", LOST)
def test_power_loss(fresh_folder: Callable[[], Path], scale: Scale, lost: str) -> None:
    """The power may fail again while the store recovers."""
    calls = run_until(0, fresh_folder(), scale)[1].calls
    for seed in range(SEEDS):
        try:
            lose_power(fresh_folder(), seed, scale, lost, calls)
        except Exception as e:
            raise AssertionError(f"seed {seed}") from e
