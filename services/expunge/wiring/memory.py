"""Memory that is freed goes back to the system: a worker is to be as large as what it does, not as what it once did."""

from __future__ import annotations

import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""Names of mallopt(3) in glibc's malloc.h."""

LARGE_BYTES: Final = 1 << 20
"""Blocks from here on are mapped one by one, and unmapped when they are freed."""
SPARE_BYTES: Final = 8 << 20
"""Free memory at the end of the heap that is kept for what is allocated next."""


def give_back() -> bool:
    """Have the C library return what is freed; whether it can.

    By itself glibc keeps ever larger blocks in its heaps, up to 32 MiB, once some were freed, and every thread has a heap:
    columns of an order would leave hundreds of MiB that nothing uses.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGE_BYTES) and mallopt(_TRIM_THRESHOLD, SPARE_BYTES))
