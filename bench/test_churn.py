"""What compaction writes and keeps, in a small tier; ``python -m bench churn`` counts it in a larger one."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.churn import ENDS, FILE_SYSTEMS, churn
from bench.workloads import MIB


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("system", FILE_SYSTEMS)
def test_churn(tmp_path: Path, end: str, system: str) -> None:
    figures = churn(tmp_path, FILE_SYSTEMS[system](), end, "copy", 32 * MIB, 1)
    assert figures["written_to_admitted"] <= 1.15
    assert figures["disk_to_live"] <= 1.2
    assert figures["live_to_cap"] >= 0.8
