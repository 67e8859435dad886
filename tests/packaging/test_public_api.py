"""What users may rely on is a decision: this list changes only together with the change log."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import kvtier
import kvtier.testing
from kvtier import Store

NAMES = {
    "BlockInfo",
    "BlockState",
    "Config",
    "ConfigError",
    "ConfigProblem",
    "CorruptStore",
    "Explanation",
    "FlushError",
    "ForkedStore",
    "Hint",
    "Hit",
    "HitInto",
    "Key",
    "KeyProvider",
    "KvtierError",
    "LimitError",
    "Miss",
    "MissReason",
    "NotAStore",
    "PrefetchConfig",
    "PutItem",
    "PutOutcome",
    "RamConfig",
    "ReadOnlyStore",
    "Store",
    "StoreClosed",
    "StoreConfig",
    "StoreError",
    "StoreLocked",
    "StoreStats",
    "StoreUnwritable",
    "QuotaConfig",
    "TierConfig",
    "TierMissing",
    "UnsafeFolder",
    "UnsupportedFormat",
    "WriteBehindConfig",
    "WrongKeys",
    "key_file",
    "single_key",
}

METHODS = {
    "open": "(source, *, read_only, listeners, fs, clock, background, keys, memory)",
    "close": "(self)",
    "buffer": "(self, nbytes)",
    "put": "(self, key, buffers, *, meta, parent, namespace, give, ttl)",
    "put_many": "(self, items, *, namespace)",
    "get": "(self, key, *, namespace)",
    "get_into": "(self, key, buffers, *, namespace)",
    "get_many": "(self, keys, *, namespace, keep)",
    "get_many_into": "(self, keys, buffers, *, namespace)",
    "match": "(self, keys, *, namespace)",
    "contains": "(self, key, *, namespace)",
    "info": "(self, key, *, namespace)",
    "info_many": "(self, keys, *, namespace)",
    "explain": "(self, key, *, namespace)",
    "prefetch": "(self, keys, *, namespace)",
    "cancel_prefetch": "(self, keys, *, namespace)",
    "answered": "(self, keys, *, namespace)",
    "hint": "(self, keys, hint, *, namespace)",
    "pin": "(self, keys, *, namespace)",
    "unpin": "(self, keys, *, namespace)",
    "delete": "(self, key, *, namespace)",
    "flush": "(self, timeout)",
    "stats": "(self)",
    "derive_key": "(self, purpose)",
    "rotate_keys": "(self)",
    "forget_keys": "(self)",
    "pause_compaction": "(self)",
    "resume_compaction": "(self)",
}


def signature(function: object) -> str:
    """Names and kinds of the parameters, without types and defaults."""
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    plain = [p.replace(annotation=p.empty, default=p.empty) for p in parameters]
    return str(inspect.Signature(plain))


def test_the_public_names_are_pinned() -> None:
    assert set(kvtier.__all__) == NAMES
    assert sorted(kvtier.__all__) == kvtier.__all__
    assert all(hasattr(kvtier, name) for name in NAMES)


def test_nothing_else_looks_public() -> None:
    others = {n for n, v in vars(kvtier).items() if not n.startswith("_") and not inspect.ismodule(v)}
    assert others - {"annotations"} <= NAMES


def test_the_methods_of_the_store_are_pinned() -> None:
    public = {n: getattr(Store, n) for c in Store.__mro__ for n in vars(c) if not n.startswith("_")}
    assert {n: signature(f) for n, f in public.items()} == METHODS


def test_everything_public_says_what_it_is() -> None:
    for name in NAMES:
        assert inspect.getdoc(getattr(kvtier, name)), name
    for name in METHODS:
        assert inspect.getdoc(getattr(Store, name)), name


def test_the_tools_for_tests_import_no_pytest() -> None:
    code = "import sys, kvtier.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(kvtier.testing.__all__) == {"Call", "FaultyFileSystem", "SimulatedCrash"}


def test_the_version_is_one_that_people_can_compare() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", kvtier.__version__)
