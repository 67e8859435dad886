"""A disk that is full, read-only or gone for a while: reads are misses, writes are lost and said to be so once, and the
store comes back by itself, without being opened again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import episodes
from tests.faults.namespace import run_apart
from tests.faults.needs import why_no_loop, why_no_mounts

pytestmark = pytest.mark.skipif(why_no_mounts() is not None, reason=str(why_no_mounts()))


@pytest.mark.parametrize(
    "episode",
    [
        episodes.full_tier,
        episodes.full_index,
        episodes.squeezed_tier,
        episodes.read_only,
        episodes.renamed_away,
        episodes.unmounted,
    ],
    ids=lambda episode: episode.__name__,
)
def test_an_episode(episode: Callable[[Path], None], tmp_path: Path) -> None:
    trouble = run_apart(episode, tmp_path)
    assert trouble is None, trouble


@pytest.mark.parametrize(
    "episode", [episodes.read_only_index, episodes.full_tier_of_long_blocks], ids=lambda episode: episode.__name__
)
def test_an_episode_of_a_disk(episode: Callable[[Path], None], tmp_path: Path) -> None:
    if why := why_no_loop():
        pytest.skip(why)
    trouble = run_apart(episode, tmp_path)
    assert trouble is None, trouble
