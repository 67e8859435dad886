"""LMCache's adapters that are not measured, and why: of LMCache 0.5.6, on a CPU and a plain disk, without a server.

Imports nothing, so that the tests of LMCache's environment can hold it against the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: By types of ``--l2-adapter``.
LEFT_OUT: Mapping[tuple[str, ...], str] = MappingProxyType(
    {
        ("raw_block",): "its Rust extension is not in LMCache's package",
        ("nixl_native",): "its native connector is not in LMCache's package",
        ("nixl_store_dynamic",): (
            "runs with NIXL's `POSIX` plug-in, but loads only what its own process has stored or looked up, which the "
            "benchmark's loads in a new process have not"
        ),
        ("nixl_store", "dax"): "what they have is known to the process that stored it alone: there is nothing to load",
        ("hf3fs",): "needs a 3FS cluster",
        (
            "aerospike",
            "bigtable",
            "hfbucket",
            "mooncake_store",
            "p2p",
            "resp",
            "s3",
            "sagemaker_hyperpod",
            "valkey",
        ): "need a server",
        ("mock",): "keeps objects in memory, for tests",
        ("fault_inject", "native_connector", "native_plugin"): "have no storage of their own",
    }
)
