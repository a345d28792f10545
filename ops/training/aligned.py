"""Aligned arrays: they begin at a cache line, so that what is computed of equal values depends on nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

#: bytes that arrays are aligned to: a cache line, and the widest vector register
ALIGNMENT = 64


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return a new array, not filled, whose first element is aligned.

    Example:
        >>> aligned_empty((3, 5), "float32").shape
        (3, 5)
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    return np.ndarray(shape, dtype, raw, -_address(raw) % ALIGNMENT)


def aligned_array(values: np.ndarray, dtype: Any) -> np.ndarray:
    """Return values as a contiguous, aligned array of a dtype; no copy if they are that."""
    if values.dtype == dtype and values.flags.c_contiguous and _address(values) % ALIGNMENT == 0:
        return values
    copy = aligned_empty(values.shape, dtype)
    copy[...] = values
    return copy


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
