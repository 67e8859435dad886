"""The index: block and content entries in LMDB, always rebuildable from the segments."""
