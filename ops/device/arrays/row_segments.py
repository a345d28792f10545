"""Row segments: sums of a matrix's rows that stand side by side, each from its first row to its last."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from ...backend import Array
from ..modules import kernel, launch, on_device


def segment_rows(values: Array, starts: Array, xp: ModuleType) -> Array:
    """Sum the rows of each segment.

    Traffic: the matrix is read once, and the sums written.

    Args:
        values: shape (rows, m), float64.
        starts: shape (segments,), int64, ascending from 0, each below ``rows``: where segments begin.
        xp: NumPy or CuPy.

    Returns:
        Shape (segments, m), float64.

    Example:
        >>> segment_rows(np.array([[1.0], [2.0], [4.0]]), np.array([0, 2]), np).tolist()
        [[3.0], [4.0]]
    """
    if not on_device(xp):
        sums = np.zeros((len(starts), values.shape[1]))
        np.add.at(sums, np.repeat(np.arange(len(starts)), np.diff(starts, append=len(values))), values)
        return sums
    segments, width = len(starts), values.shape[1]
    sums = xp.empty((segments, width), dtype=np.float64)
    bounds = xp.concatenate([starts, xp.full(1, len(values), dtype=np.int64)])
    args = [xp.ascontiguousarray(values), bounds, np.int64(segments), np.int32(width), sums]
    launch(kernel(xp, "row_segments", "segment_rows"), segments * width, args)
    return sums
