"""Gradients: rows' losses and their derivatives in one pass, and for narrow linear models the whole gradient in one.

Sums are as `headwater.ops.device.arrays.tile_sums` makes them. Exponentials and logarithms are a device's own, so
that losses are a host's but for a few units in the last place.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np

from ...backend import Array
from ..modules import THREADS, kernel, launch, on_device
from .tile_sums import STRIPES, TILE, TileSums, column_sums, striped

#: losses of one predictor a row, by name
KINDS = {"squared": 0, "logistic": 1}
#: features that `linear_gradient` takes
MOST_FEATURES = 128
#: bytes of a block's rows in shared memory
_ROOM = 34816


class Sums(NamedTuple):
    """What a linear model's rows add up to, float64; divided by ``weight`` they are means.

    Attributes:
        weights: the gradient by the weights, shape (d,).
        intercept, loss, weight: of the intercept; the losses; the rows' weights. No axes.
    """

    weights: Array
    intercept: Array
    loss: Array
    weight: Array


def linear_gradient(
    kind: str,
    x: Array,
    y: Array,
    weight: Array | None,
    coefficients: Array,
    intercept: Array | None,
    xp: ModuleType,
) -> Sums:
    """Sum the losses and gradients of ``x @ coefficients + intercept`` over rows.

    Traffic, in bytes a row: d * w for x and 1 or 2 times w for y and weight, all read once; and (d + 3) / 256 for
    partial sums. Products by matrix libraries read x twice.

    Args:
        kind: "squared" or "logistic".
        x: shape (rows, d), float32 or float64, d at most `MOST_FEATURES`.
        y: shape (rows,), of any number type.
        weight: shape (rows,), or None for 1 each.
        coefficients: shape (d,), of the dtype of x. A row's product is summed in it from the first column to the last.
        intercept: of no axes, of the same dtype; None is none.
        xp: NumPy or CuPy.

    Example:
        >>> x, y = np.array([[1.0], [2.0]]), np.array([0.0, 1.0])
        >>> sums = linear_gradient("squared", x, y, None, np.array([1.0]), None, np)
        >>> sums.weights.tolist(), float(sums.loss)
        ([3.0], 1.0)
    """
    rows, d = x.shape
    dtype = x.dtype
    y = y.astype(dtype, copy=False)
    weight = None if weight is None else weight.astype(dtype, copy=False)
    sums = TileSums(d + 3, xp)
    if rows and on_device(xp):
        size = dtype.itemsize
        part = next(part for part in (256, 128, 64, 32) if (part + 1) * (d + 3) * size <= _ROOM)
        partial = xp.empty((-(-rows // TILE), d + 3), dtype=np.float64)
        x, y = xp.ascontiguousarray(x), xp.ascontiguousarray(y)
        args = [
            np.int32(KINDS[kind]),
            x,
            np.int64(rows),
            np.int32(d),
            y,
            y if weight is None else xp.ascontiguousarray(weight),
            np.int32(weight is not None),
            xp.ascontiguousarray(coefficients),
            coefficients if intercept is None else intercept.reshape(1),
            np.int32(intercept is not None),
            np.int32(part),
            partial,
        ]
        kernel(xp, "gradients", "linear_gradient", REAL=_real(dtype))(
            (len(partial),), (THREADS,), tuple(args)
        )
        sums.add(partial)
    elif rows:
        sums.add(striped(_terms(kind, x, y, weight, coefficients, intercept), STRIPES))
    total = sums.total()
    return Sums(total[:d], total[d], total[d + 1], total[d + 2])


def residuals(kind: str, z: Array, y: Array, weight: Array | None, xp: ModuleType) -> tuple[float, Array]:
    """Return the mean loss, and each row's derivative times its share of the mean.

    Traffic, in items of z's type a row: z and the derivatives once each, and y, weight and loss.

    Args:
        kind: "squared", "logistic" or "softmax".
        z: predictors, shape (rows,), or (rows, classes) for "softmax"; float32 or float64; at least one row.
        y: targets, shape (rows,); for "softmax" int64. A class that isn't there makes the loss NaN.
        weight: shape (rows,), or None for equal ones.
        xp: NumPy or CuPy.

    Returns:
        The mean, and an array of the shape and dtype of z.
    """
    rows, dtype = len(z), z.dtype
    weight = None if weight is None else weight.astype(dtype, copy=False)
    total = float(rows if weight is None else column_sums(weight, xp))
    if not on_device(xp):
        losses, slope = _softmax(z, y) if kind == "softmax" else _losses(kind, z, y.astype(dtype))
        if weight is None:
            slope = slope / dtype.type(total)
        else:
            share = (weight.astype(np.float64) / total).astype(dtype)
            slope = slope * (share if slope.ndim == 1 else share[:, None])
        return float(column_sums(losses, xp, weight)) / total, slope
    z = xp.ascontiguousarray(z)
    y = xp.ascontiguousarray(y.astype(np.int64 if kind == "softmax" else dtype, copy=False))
    weights = z if weight is None else xp.ascontiguousarray(weight)
    losses, slope = xp.empty(rows, dtype=dtype), xp.empty(z.shape, dtype=dtype)
    shared = [z, y, weights, np.int32(weight is not None), np.float64(total), np.int64(rows)]
    if kind == "softmax":
        classes = z.shape[1]
        lanes = _lanes(classes)
        run = kernel(xp, "gradients", "softmax_residuals", REAL=_real(dtype))
        launch(run, rows * lanes, [*shared, np.int32(classes), np.int32(lanes), losses, slope])
    else:
        run = kernel(xp, "gradients", "residuals", REAL=_real(dtype))
        launch(run, rows, [np.int32(KINDS[kind]), *shared, losses, slope])
    return float(column_sums(losses, xp, weight)) / total, slope


def _lanes(classes: int) -> int:
    """Lanes of a warp that share a row."""
    return min(32, 1 << (classes - 1).bit_length())


def _real(dtype: np.dtype) -> str:
    return "float" if dtype == np.float32 else "double"


# the twins


def _losses(kind: str, z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if kind == "squared":
        error = z - y
        return z.dtype.type(0.5) * error * error, error
    small = np.exp(-np.abs(z))
    losses = np.where(z < 0, 0, z) - y * z + np.log1p(small)
    return losses, np.where(z >= 0, 1, small) / (1 + small) - y


def _softmax(z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, classes = z.shape
    lanes = _lanes(classes)
    shifted = z - z.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    padded = np.zeros((rows, -(-classes // lanes) * lanes), z.dtype)
    padded[:, :classes] = powers
    sums = np.zeros((rows, lanes), z.dtype)
    for part in padded.reshape(rows, -1, lanes).transpose(1, 0, 2):
        sums += part
    while lanes > 1:
        lanes //= 2
        sums = sums[:, :lanes] + sums[:, lanes:]
    known = (y >= 0) & (y < classes)
    own, every = np.where(known, y, 0), np.arange(rows)
    losses = np.where(known, np.log(sums[:, 0]) - shifted[every, own], np.nan).astype(z.dtype)
    slope = powers / sums
    slope[every[known], own[known]] -= 1
    return losses, slope


def _terms(
    kind: str,
    x: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray | None,
    coefficients: np.ndarray,
    intercept: np.ndarray | None,
) -> np.ndarray:
    z = np.zeros(len(x), x.dtype)
    for column, factor in zip(x.T, coefficients):
        z += column * factor
    if intercept is not None:
        z += intercept
    losses, slope = _losses(kind, z, y)
    by_weight = np.ones(len(x)) if weight is None else weight.astype(np.float64)
    by_slope = slope.astype(np.float64) * by_weight
    ends = [by_slope, losses.astype(np.float64) * by_weight, by_weight]
    return np.concatenate([x.astype(np.float64) * by_slope[:, None], *(end[:, None] for end in ends)], axis=1)
