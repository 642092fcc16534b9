"""The outside world: one folder per port, one file per technology, always a `memory.py`. Siblings of `stages`."""
