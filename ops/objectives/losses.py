"""Losses of a predictor's value, row by row, with their derivatives; and what such a value predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import ParameterError
from ..backend import Array, array_namespace
from ..device.arrays.gradients import residuals
from ..device.arrays.tile_sums import column_sums
from ..training.program import Batch


def squared_error(z: Array, y: Array) -> tuple[Array, Array]:
    """Return half the squared error of each row and its derivative by z.

    Args:
        z: predicted, shape (rows,).
        y: targets, shape (rows,).
    """
    error = z - y.astype(z.dtype, copy=False)
    return 0.5 * error * error, error


def log_loss(z: Array, y: Array) -> tuple[Array, Array]:
    """Return ``log(1 + exp(z)) - y z`` of each row and its derivative ``sigmoid(z) - y``, without overflow.

    Args:
        z: logits, shape (rows,).
        y: 0 or 1, shape (rows,).

    Example:
        >>> losses, slope = log_loss(np.array([0.0, 1000.0]), np.array([1, 1]))
        >>> losses.round(4).tolist(), slope.tolist()
        ([0.6931, 0.0], [-0.5, 0.0])
    """
    xp = array_namespace()
    y = y.astype(z.dtype)
    small = xp.exp(-xp.abs(z))
    losses = xp.maximum(z, 0) - y * z + xp.log1p(small)
    return losses, xp.where(z >= 0, 1, small) / (1 + small) - y


def cross_entropy(z: Array, y: Array) -> tuple[Array, Array]:
    """Return ``log sum exp(z) - z[y]`` of each row and its derivative ``softmax(z) - onehot(y)``.

    Args:
        z: logits, shape (rows, K).
        y: classes, 0 to K - 1, shape (rows,).

    Example:
        >>> losses, slope = cross_entropy(np.array([[0.0, 0.0]]), np.array([1]))
        >>> losses.round(4).tolist(), slope.tolist()
        ([0.6931], [[0.5, -0.5]])
    """
    xp = array_namespace()
    y = whole_classes(y)
    rows = xp.arange(len(z))
    shifted = z - z.max(axis=1, keepdims=True)
    own = shifted[rows, y]
    slope = xp.exp(shifted)
    total = slope.sum(axis=1)
    slope /= total[:, None]
    slope[rows, y] -= 1
    return xp.log(total) - own, slope


def whole_classes(y: Array) -> Array:
    """Return classes as int64.

    Raises:
        ParameterError: one isn't a whole number.
    """
    classes = y.astype(np.int64)
    if y.dtype.kind in "iub":
        return classes
    wrong = classes != y
    if wrong.any():
        raise ParameterError(
            f"the target holds {float(y[wrong][0]):g}, and must be the number of a class, a whole number. "
            "Is it the right column? For numbers of any kind take a regression."
        )
    return classes


def sigmoid(z: Array) -> Array:
    """Return ``1 / (1 + exp(-z))`` without overflow."""
    xp = array_namespace()
    small = xp.exp(-xp.abs(z))
    return xp.where(z >= 0, 1, small) / (1 + small)


def softmax(z: Array) -> Array:
    """Return ``exp(z) / sum exp(z)`` along the last axis, without overflow."""
    xp = array_namespace()
    p = xp.exp(z - z.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return p


def mean_and_scale(losses: Array, slope: Array, weight: Array | None) -> tuple[float, Array]:
    """Return the weighted mean of rows' losses, and their derivatives times each row's share of it.

    Args:
        losses: shape (rows,).
        slope: shape (rows,) or (rows, K); None is left alone.
        weight: shape (rows,), or None for equal ones.

    Returns:
        The mean, summed in float64; and the scaled derivatives, of the dtype of ``slope``.
    """
    xp = array_namespace()
    if weight is None:
        if slope is not None:
            slope = slope / len(losses)
        return (float(losses.mean(dtype=np.float64)) if xp is np else sum_all(losses) / len(losses)), slope
    share = weight / (weight.sum(dtype=np.float64) if xp is np else sum_rows(weight))
    if slope is not None:
        share_like = share.astype(slope.dtype)
        slope = slope * (share_like if slope.ndim == 1 else share_like[:, None])
    return sum_all(losses * share), slope


def mean_and_slope(
    row_losses: Callable[[Array, Array], tuple[Array, Array]], z: Array, y: Array, weight: Array | None
) -> tuple[float, Array]:
    """Return the weighted mean of rows' losses, and its derivative by each predictor; on a device in one pass.

    Args:
        row_losses: from predictors and targets to losses and derivatives, as `log_loss`.
        z: shape (rows,) or (rows, K).
        y: targets, shape (rows,).
        weight: shape (rows,), or None for equal ones.
    """
    xp = array_namespace()
    kind = _KINDS.get(row_losses)
    if xp is np or kind is None or z.dtype.name not in ("float32", "float64"):
        return mean_and_scale(*row_losses(z, y), weight)
    return residuals(kind, z, whole_classes(y) if kind == "softmax" else y, weight, xp)


def sum_rows(values: Array) -> Array:
    """Return the sum of a vector, or of each column of a matrix, on a device in float64 and in a fixed order."""
    xp = array_namespace()
    if xp is np or values.dtype.name not in ("float32", "float64"):
        return values.sum(axis=0)
    return column_sums(values, xp)


def features(batch: Batch, dtype: object) -> Array:
    """Return a batch's x in the parameters' dtype, shape (rows, d)."""
    x = batch["x"]
    if x.ndim > 2:
        x = x.reshape(len(x), -1)
    return x.astype(dtype, copy=False)


def sum_all(values: Array) -> float:
    """Return the sum of all elements, in float64; on a device in a fixed order."""
    xp = array_namespace()
    return float(values.sum(dtype=np.float64) if xp is np else sum_rows(values.reshape(-1)))


#: losses that a device has a kernel for
_KINDS: dict[Any, str] = {squared_error: "squared", log_loss: "logistic", cross_entropy: "softmax"}


def binary_fields() -> list[pa.Field]:
    """Return the fields of `binary_columns`."""
    return [pa.field("prediction", pa.int64()), pa.field("probability", pa.float32())]


def binary_columns(z: Array) -> dict[str, Array]:
    """Turn logits into the likelier of 0 and 1, and the probability of 1."""
    return {"prediction": (z > 0).astype(np.int64), "probability": sigmoid(z).astype(np.float32)}


def class_fields(classes: int) -> list[pa.Field]:
    """Return the fields of `class_columns`."""
    return [pa.field("prediction", pa.int64()), pa.field("probabilities", pa.list_(pa.float32(), classes))]


def class_columns(z: Array) -> dict[str, Array]:
    """Turn logits, shape (rows, K), into the likeliest class and the probabilities of all."""
    return {"prediction": z.argmax(axis=1).astype(np.int64), "probabilities": softmax(z).astype(np.float32)}
