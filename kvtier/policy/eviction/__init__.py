"""Eviction policies, one algorithm a file."""
