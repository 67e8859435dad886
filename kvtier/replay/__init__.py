"""Replay of traces against the policies that the store uses, without any bytes: ``kvtier replay``."""
