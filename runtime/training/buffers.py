"""Buffers: where batches are put together, so that equal rows lie alike in memory, and how they get to a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from ...ops.training.aligned import ALIGNMENT, aligned_empty
from ...ops.training.program import Batch


def aligned(size: int) -> int:
    """Round a number of bytes up to the alignment.

    Example:
        >>> aligned(65)
        128
    """
    return -(-size // ALIGNMENT) * ALIGNMENT


def empty(shape: tuple[int, ...], dtype: Any, xp: ModuleType = np) -> np.ndarray:
    """Return a new aligned array on the host; for CuPy it is pinned, so that it copies fast to the device."""
    if xp is np or 0 in shape:
        return aligned_empty(shape, dtype)
    import cupyx

    return cupyx.empty_pinned(shape, dtype)


def to_device(arrays: Mapping[str, np.ndarray], xp: ModuleType) -> Batch:
    """Give arrays of the host as arrays of a namespace; NumPy's stay what they are.

    Under CuPy the copy is done when this returns, so that pinned memory may be used again.
    """
    if xp is np:
        return arrays
    # The stream that kernels run on: memory that a kernel still reads is then never handed out for a copy.
    moved = {}
    for name, array in arrays.items():
        moved[name] = xp.empty(array.shape, array.dtype)
        if array.size:
            moved[name].set(np.ascontiguousarray(array))
    xp.cuda.get_current_stream().synchronize()
    return moved
