"""What a restore costs, counted: bytes read from disk, memory beyond the context's, tokens evaluated after it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.adapters import engine

pytest.importorskip("llama_cpp")

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts what Linux counts"),
]

TOKENS = 8000
MIB = 1 << 20

#: The context is filled with rows that llama.cpp takes for evaluated ones: evaluating so many takes minutes.
SAVE = """
import sys
from pathlib import Path
import numpy as np
from kvtier import Store
from kvtier_adapters.llama_cpp import LlamaSession
from kvtier_adapters.llama_cpp.state import blank_rows, parse
from tests.adapters import engine
from tests.adapters.test_restore_costs import TOKENS

llm = engine.load(engine.SMOL, n_ctx=TOKENS + 64)
prompt = [7 + n % 40000 for n in range(TOKENS + 10)]
llm.eval(prompt[:1])
with Store.open(Path(sys.argv[1])) as store:
    session = LlamaSession(llm, store)
    native, layout = session._to.native, session.memory.layout
    like = bytes(native.capture_rows(0, 1))
    random = np.random.default_rng(1)
    for start in range(1, TOKENS, 256):
        count = min(256, TOKENS - start)
        rows = bytearray(blank_rows(memoryview(like), layout, start, count))
        for tensor in parse(memoryview(rows), layout)[0].tensors:
            nbytes = tensor.runs * tensor.cell_bytes * count
            rows[tensor.data : tensor.data + nbytes] = random.integers(0, 60, nbytes, dtype=np.uint8).tobytes()
        with native.appending() as append:
            append(memoryview(rows))
    llm.input_ids[:TOKENS] = prompt[:TOKENS]
    llm.n_tokens = TOKENS
    session.capture()
    store.flush()
    assert session.stats.errors == {}
"""

RESTORE = """
import json, sys
from pathlib import Path
from kvtier import Store
from kvtier_adapters.llama_cpp import attach
from tests.adapters import engine
from tests.adapters.test_restore_costs import TOKENS

def field(file, name):
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

llm = engine.load(engine.SMOL, n_ctx=TOKENS + 64)
prompt = [7 + n % 40000 for n in range(TOKENS + 10)]
llm.eval(prompt[:1])
llm.reset()
with Store.open(Path(sys.argv[1])) as store, attach(llm, store) as cache:
    Path("/proc/self/clear_refs").write_text("5")
    resident, read = field("/proc/self/status", "VmRSS"), field("/proc/self/io", "rchar")
    held = cache.session.position(prompt)
    report = {
        "held": held,
        "resident": (field("/proc/self/status", "VmHWM") - resident) * 1024,
        "read": field("/proc/self/io", "rchar") - read,
        "restored": cache.stats.bytes_restored,
    }
    evaluated = cache.stats.tokens_evaluated
    llm.eval(prompt[held:])
    report["evaluated"] = cache.stats.tokens_evaluated - evaluated
    report["errors"] = dict(cache.stats.errors)
print(json.dumps(report))
"""


def run(script: str, folder: Path) -> str:
    paths = os.pathsep.join([str(models.ROOT), str(models.ROOT / "adapters")])
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        cwd=models.ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of one restore of a long prompt in a new process."""
    folder = tmp_path_factory.mktemp("costs") / "store"
    run(SAVE, folder)
    found: dict[str, Any] = json.loads(run(RESTORE, folder))
    return found


def test_exactly_what_is_behind_the_boundary_is_evaluated(report: dict[str, Any]) -> None:
    assert (report["held"], report["evaluated"], report["errors"]) == (TOKENS, 10, {})


def test_hardly_more_is_read_than_is_needed(report: dict[str, Any]) -> None:
    needed = TOKENS * engine.ROW_BYTES["smollm2"]
    assert needed < report["restored"] <= 1.02 * needed
    assert needed < report["read"] <= 1.02 * needed


def test_a_restore_needs_little_memory_whatever_its_length(report: dict[str, Any]) -> None:
    assert report["restored"] > 2 * 64 * MIB, "the test needs a prompt that would not fit"
    assert report["resident"] <= 64 * MIB
