"""What all tests share. Hypothesis has no deadline: no test depends on how long anything takes.

Where ``CI`` is set, the same code gives the same tests: Hypothesis draws the same there by itself, the Makefile sets
the order, and the ids of a test's stores, on which it depends what is evicted first, follow from its name.

Idle threads of llama.cpp do not spin: tests of several processes share the cores.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.torture.simulated import identities_from

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
settings.register_profile("kvtier", deadline=None, print_blob=True)
settings.load_profile("kvtier")


@pytest.fixture(autouse=True)
def same_identities(request: pytest.FixtureRequest) -> Iterator[None]:
    if os.environ.get("CI"):
        with identities_from(random.Random(request.node.nodeid)):
            yield
    else:
        yield
