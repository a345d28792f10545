"""Histogram: how many values lie between ascending edges."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from ....errors import ParameterError
from ...backend import Array
from ..modules import THREADS, kernel, launch, on_device

#: bins up to which counts are kept in shared memory, and of these up to which each warp has its own
MANY, FEW = 2048, 256
#: rows that a thread takes at least, and blocks at most: a block adds its counts to the whole once
_EACH, _BLOCKS = 16, 1024
_C = {"float32": "float", "float64": "double", "int32": "int", "int64": "i64"}


def histogram(values: Array, valid: Array | None, edges: np.ndarray, xp: ModuleType) -> Array:
    """Count values by bins, as `numpy.histogram` does.

    Traffic, in bytes a row: the value's width, and one more where there is a validity.

    Args:
        values: shape (rows,), numbers; they are compared as float64.
        valid: shape (rows,), dtype bool, False where a row doesn't count; None is nowhere.
        edges: on the host, shape (bins + 1,), ascending. A bin holds its lower edge, and the last one its upper too.
        xp: NumPy or CuPy.

    Returns:
        Shape (bins,), dtype int64. Values outside the edges, and NaN, count nowhere. Counts of parts add up to
        those of the whole.

    Raises:
        ParameterError: fewer than two edges, or edges that don't ascend.

    Example:
        >>> histogram(np.array([0.5, 1.0, 2.0, np.nan]), None, np.array([0.0, 1.0, 2.0]), np).tolist()
        [1, 2]
    """
    edges = np.ascontiguousarray(edges, np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all() or not np.isfinite(edges).all():
        raise ParameterError(
            f"histogram(edges={edges.tolist()[:6]}): give at least two finite, ascending numbers."
        )
    if not on_device(xp):
        plain = np.asarray(values if valid is None else values[valid], np.float64)
        inside = plain[(plain >= edges[0]) & (plain <= edges[-1])]
        bins = np.searchsorted(edges[1:-1], inside, side="right")
        return np.bincount(bins, minlength=len(edges) - 1).astype(np.int64)
    if values.dtype.name not in _C:
        values = values.astype(np.float64)
    rows, bins = int(values.shape[0]), len(edges) - 1
    counts = xp.zeros(bins, dtype=np.int64)
    few = bins <= FEW
    function = kernel(
        xp,
        "histogram",
        "histogram_few" if bins <= MANY else "histogram_many",
        VALUE=_C[values.dtype.name],
        BINS=FEW if few else MANY,
        COPIES=THREADS // 32 if few else 1,
    )
    args = [
        xp.ascontiguousarray(values),
        xp.empty(0, dtype=bool) if valid is None else xp.ascontiguousarray(valid),
        np.int32(valid is not None),
        xp.asarray(edges),
        np.int32(bins),
        np.float64(_per_unit(edges)),
        np.int64(rows),
        counts,
    ]
    launch(function, rows, args, each=max(_EACH, -(-rows // (_BLOCKS * THREADS))))
    return counts


def _per_unit(edges: np.ndarray) -> float:
    """Bins a unit where edges are even, so that a bin can be guessed; 0 where they aren't."""
    bins = len(edges) - 1
    width = (edges[-1] - edges[0]) / bins
    if not np.isfinite(width) or width <= 0:
        return 0.0
    strays = np.abs(edges - (edges[0] + width * np.arange(bins + 1)))
    return float(1.0 / width) if strays.max() < width / 4 and np.isfinite(1.0 / width) else 0.0
