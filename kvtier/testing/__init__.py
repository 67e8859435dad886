"""Tools for testing code that stores through kvtier, and third parties' parts of kvtier itself.

The contract suite for file systems is :mod:`kvtier.testing.fs_contract`; it needs pytest, so it is not
imported here.
"""

from kvtier.testing.faulty_fs import Call, FaultyFileSystem, SimulatedCrash

__all__ = ["Call", "FaultyFileSystem", "SimulatedCrash"]
