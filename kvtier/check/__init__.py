"""For operators: looking a store over, and putting it in order. See ``docs/operations.md``."""

from kvtier.check.repair import Repair, rebuild_index, repair
from kvtier.check.report import Finding, Kind, Report
from kvtier.check.verify import verify

__all__ = ["Finding", "Kind", "Repair", "Report", "rebuild_index", "repair", "verify"]
