"""Memory that processes of a node share, and that leaves nothing behind when they are killed.

On Linux it is an anonymous file, which others open through ``/proc``; it goes with the last process that maps it.
Elsewhere it is a file in ``/dev/shm``, or in a given folder, whose name is removed once every other process has it.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress

import numpy as np


class Arena:
    """Bytes that this process made and others map.

    Args:
        size: in bytes.
        shared: False for memory of this process alone.
        folder: where to put a file if neither anonymous files nor ``/dev/shm`` are there.

    Attributes:
        bytes: all of it, as an array of uint8.
        path: what others open; "" if it isn't shared.

    Raises:
        OSError: there is no room.
    """

    def __init__(self, size: int, *, shared: bool, folder: str | None = None):
        size = max(size, mmap.PAGESIZE)
        self._file = -1
        self._name: str | None = None
        self.path = ""
        if not shared:
            self.bytes = np.frombuffer(mmap.mmap(-1, size), np.uint8)
            return
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("headwater", os.MFD_CLOEXEC)
            self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        else:
            where = "/dev/shm" if os.path.isdir("/dev/shm") else folder
            self._file, self._name = tempfile.mkstemp(prefix="headwater-", dir=where)
            self.path = self._name
        try:
            # without it, a full disk or a memory limit would be a signal at the first touch, which kills
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file, 0, size)
            else:
                os.ftruncate(self._file, size)
            self.bytes = np.frombuffer(mmap.mmap(self._file, size), np.uint8)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Drop the name: from now on nobody else can map it. What is mapped stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._name is not None:
            with suppress(OSError):
                os.unlink(self._name)
            self._name = None


def map_arena(path: str, size: int) -> np.ndarray:
    """Map memory that another process of the node made.

    Args:
        path: of its `Arena`.
        size: its bytes.

    Raises:
        OSError: there is no such file here, or it can't be opened.
    """
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(file).st_size < size:
            raise OSError(f"{path} has fewer than {size} bytes")
        return np.frombuffer(mmap.mmap(file, size), np.uint8)
    finally:
        os.close(file)


def offsets(sizes: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Lay arrays out one after the other, large ones at page borders.

    Args:
        sizes: of the arrays, in bytes.

    Returns:
        Where each begins, and the room they take together.

    Example:
        >>> offsets([8, 5000, 8])
        ((0, 4096, 12288), 12352)
    """
    starts = []
    end = 0
    for size in sizes:
        unit = mmap.PAGESIZE if size >= mmap.PAGESIZE else 64
        starts.append(-(-end // unit) * unit)
        end = -(-(starts[-1] + size) // unit) * unit
    return tuple(starts), max(end, 64)
