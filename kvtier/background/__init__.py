"""What runs beside the caller: the worker, the write queue, the prefetcher."""
