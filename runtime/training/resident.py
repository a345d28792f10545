"""Resident rows: a shard's arrays kept on the device between passes, as far as its memory allows."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import ModuleType

import numpy as np

from ...ops.training.program import Batch
from .buffers import to_device

#: of the device's free memory, what one more shard may take; the rest is for what is computed
SHARE = 0.5


class ResidentRows:
    """A shard's arrays, copied to the device when they are first asked for, if there is room.

    Whether they are there changes no result: blocks and batches have the same rows either way.

    Args:
        arrays: on the host, name to shape (rows, ...).
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._host = arrays
        self._there: Batch | None = None
        self._refused = False
        self._lock = threading.Lock()

    def arrays(self, xp: ModuleType) -> Batch | None:
        """Return the arrays on the device; None if there isn't room, which is decided once."""
        with self._lock:
            if self._there is None and not self._refused:
                size = sum(array.nbytes for array in self._host.values())
                self._refused = size > SHARE * _free(xp)
                if not self._refused:
                    try:
                        self._there = to_device(self._host, xp)
                    except xp.cuda.memory.OutOfMemoryError:
                        self._refused = True
            return self._there


def _free(xp: ModuleType) -> int:
    """Bytes of the device that this process may still use; what CuPy's pool holds for later is among them."""
    free, _ = xp.cuda.runtime.memGetInfo()
    pool = xp.get_default_memory_pool()
    room = int(free) + int(pool.free_bytes())
    limit = int(pool.get_limit())
    return min(room, limit - int(pool.used_bytes())) if limit else room
