"""Benchmarks: ``make bench`` runs all and writes the figures of docs/benchmarks.md and docs/policies.md.
One file a suite.

No thresholds are tested here. Arms that are compared alternate within one run; "cold" means that the pages
of the files in question were dropped from memory just before, and the report says by what means.
"""
