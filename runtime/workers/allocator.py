"""allocator: what NumPy's arrays free stays with the process, to be used again.

Dask's nanny has the C library hand freed memory back to the system at once (``MALLOC_TRIM_THRESHOLD_=65536``), so
that each new array of a morsel is mapped and zeroed page by page again. Arrow's memory comes from a pool of
its own and isn't touched.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

#: from malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
#: bytes of freed memory that the process keeps at the end of each arena
_KEPT = 128 << 20
#: bytes that an arena grows by at least
_STEP = 16 << 20
#: bytes from which an allocation is mapped for itself; the most that the library takes
_MAPPED = 32 << 20

_VARIABLE, _DASKS = "MALLOC_TRIM_THRESHOLD_", "65536"


def keep_freed_memory() -> bool:
    """Have this process keep some of the memory that it frees, unless its environment says how much.

    Returns:
        Whether it will: not if the variable is set to something other than Dask's default, or the C library
        isn't glibc.
    """
    if os.environ.get(_VARIABLE, _DASKS) != _DASKS:
        return False
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return all(
            [mallopt(_MMAP_THRESHOLD, _MAPPED), mallopt(_TRIM_THRESHOLD, _KEPT), mallopt(_TOP_PAD, _STEP)]
        )
    return False
