"""Buffers: where batches are put together, so that equal rows lie alike in memory, and how they get to a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...ops.backend import array_namespace
from ...ops.training.program import Batch

#: bytes that arrays are aligned to: a cache line, and the widest vector register
ALIGNMENT = 64


def aligned(size: int) -> int:
    """Round a number of bytes up to the alignment.

    Example:
        >>> aligned(65)
        128
    """
    return -(-size // ALIGNMENT) * ALIGNMENT


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return a new array on the host whose first element is aligned, so that sums don't depend on where it lies.

    Under CuPy it is pinned: the device copies from it by itself.
    """
    if array_namespace() is not np:
        import cupyx

        return cupyx.empty_pinned(shape, dtype)
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def copied(array: np.ndarray) -> np.ndarray:
    """Copy an array into a new one made by `empty`."""
    copy = empty(array.shape, array.dtype)
    np.copyto(copy, array)
    return copy


def to_device(arrays: Mapping[str, np.ndarray]) -> Batch:
    """Give arrays of the host as arrays of the namespace in use; with NumPy they are the same.

    Under CuPy the copy is done when this returns, so that pinned memory may be used again.
    """
    xp = array_namespace()
    if xp is np:
        return arrays
    # The stream that kernels run on: memory that a kernel still reads is then never handed out for a copy.
    moved = {}
    for name, array in arrays.items():
        moved[name] = xp.empty(array.shape, array.dtype)
        moved[name].set(np.ascontiguousarray(array))
    xp.cuda.get_current_stream().synchronize()
    return moved
