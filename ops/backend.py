"""Backend: the array namespace that numeric kernels are written against, NumPy or CuPy.

Kernels take ``xp``, the namespace, and arrays of it. A worker uses what its stage was placed on (`stage_backend`). CuPy
is imported only where there is a device, or where it was asked for, by ``HEADWATER_BACKEND=cupy`` in a worker's
environment or by `use_backend`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import ParameterError, TypeMismatchError, did_you_mean

#: an array of the namespace in use
Array = Any

BACKENDS = ("numpy", "cupy")
_chosen: ContextVar[str | None] = ContextVar("headwater_backend", default=None)


def array_namespace() -> ModuleType:
    """Return the array module that kernels of this process use: ``numpy``, or ``cupy`` on a GPU worker.

    Raises:
        ParameterError: HEADWATER_BACKEND names no backend, or CuPy isn't installed.

    Example:
        >>> array_namespace().__name__
        'numpy'
    """
    name = _known(_chosen.get() or os.environ.get("HEADWATER_BACKEND") or "numpy")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ParameterError(
            f"the backend {name!r} was asked for, and isn't installed here ({error}). "
            "Install headwater[gpu], or unset HEADWATER_BACKEND."
        ) from error


def device_backend() -> str:
    """Return the name of the backend for what is placed on a device: "cupy" where this process has one, else "numpy".

    ``HEADWATER_BACKEND`` decides if it is set. Otherwise it is found out once; without a driver, CuPy isn't imported.

    Raises:
        ParameterError: HEADWATER_BACKEND names no backend.

    Example:
        >>> device_backend() in BACKENDS
        True
    """
    forced = os.environ.get("HEADWATER_BACKEND")
    if forced:
        return _known(forced)
    return "cupy" if _has_device() else "numpy"


@contextmanager
def stage_backend(device: str) -> Iterator[ModuleType]:
    """Use the backend of a stage in this thread or task.

    Args:
        device: where the planner has put the stage: "cpu" is NumPy whatever the process has; "gpu" is `device_backend`.
    """
    with use_backend(device_backend() if device == "gpu" else "numpy") as xp:
        yield xp


@cache
def _has_device() -> bool:
    from .device.discovery import has_cupy, visible_devices

    if not visible_devices() or not has_cupy():
        return False
    try:
        return importlib.import_module("cupy").cuda.runtime.getDeviceCount() > 0
    except Exception:  # CuPy's own errors; a library that it needs may be missing too
        return False


def _known(name: str) -> str:
    if name not in BACKENDS:
        raise ParameterError(f"HEADWATER_BACKEND={name!r}: {did_you_mean(name, BACKENDS)}")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[ModuleType]:
    """Use a backend in this thread or task, over what the environment says.

    Args:
        name: "numpy" or "cupy".

    Example:
        >>> with use_backend("numpy") as xp:
        ...     xp.zeros(2).tolist()
        [0.0, 0.0]
    """
    token = _chosen.set(name)
    try:
        yield array_namespace()
    finally:
        _chosen.reset(token)


def to_arrays(column: pa.Array | pa.ChunkedArray, xp: ModuleType = np) -> tuple[Array, Array | None]:
    """Turn a column into an array and a mask.

    Args:
        column: numbers, booleans, or fixed-size lists of them; with NumPy also times (as datetime64 or
            timedelta64) and, as arrays of Python objects, anything else.
        xp: the namespace.

    Returns:
        The values, of shape (rows,) or for lists (rows, width), read-only where nothing was copied,
        with 0 (for objects None, for times NaT) in place of nulls; and the mask, of shape (rows,), dtype
        bool, True where the column is null, or None if it never is.

    Raises:
        TypeMismatchError: a type that CuPy has no arrays of.

    Example:
        >>> values, mask = to_arrays(pa.array([1, None, 3]))
        >>> values.tolist(), mask.tolist()
        ([1, 0, 3], [False, True, False])
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    mask = None
    if array.null_count:
        mask = array.is_null().to_numpy(zero_copy_only=False)
    values = _numpy_values(array, mask)
    if xp is np:
        return values, mask
    if values.dtype.kind not in "biuf":
        raise TypeMismatchError(
            f"a column of {array.type} has no form on the GPU. Select the numeric columns first, or cast it."
        )
    return xp.asarray(values), None if mask is None else xp.asarray(mask)


def from_arrays(values: Array, mask: Array | None = None, type: pa.DataType | None = None) -> pa.Array:
    """Turn an array of either namespace, and a mask, into a column.

    Args:
        values: of shape (rows,), or (rows, width) for fixed-size lists.
        mask: of shape (rows,), dtype bool, True where the column shall be null; None is nowhere.
        type: the column's type; None takes the array's.

    Returns:
        A column of ``rows`` values. NaN stays NaN.

    Example:
        >>> from_arrays(np.array([1.0, np.nan]), np.array([True, False])).to_pylist()
        [None, nan]
    """
    values, mask = to_host(values), None if mask is None else to_host(mask)
    if values.ndim == 1:
        return pa.array(values, type=type, mask=mask, from_pandas=False)
    width = values.shape[1]
    item = None if type is None else type.value_type
    items = pa.array(np.ascontiguousarray(values).reshape(-1), type=item, from_pandas=False)
    nulls = None if mask is None else pa.array(mask)
    return pa.FixedSizeListArray.from_arrays(items, width, mask=nulls)


def to_host(array: Array) -> np.ndarray:
    """Return an array as NumPy's, copying it from the device if it lies there."""
    if not hasattr(array, "get"):
        return np.asarray(array)
    from .device.crossing import fetched

    return fetched(array)


def _numpy_values(array: pa.Array, mask: np.ndarray | None) -> np.ndarray:
    type = array.type
    if pa.types.is_fixed_size_list(type) and _is_number(type.value_type):
        width = type.list_size
        items, holes = to_arrays(array.values.slice(array.offset * width, len(array) * width))
        if holes is not None and mask is None:
            raise TypeMismatchError(f"a column of {type} has nulls inside its lists, and arrays can't.")
        return _blank(items.reshape(len(array), width), mask)
    if _is_number(type):
        if mask is None:
            return array.to_numpy(zero_copy_only=False)
        return array.fill_null(False if pa.types.is_boolean(type) else 0).to_numpy(zero_copy_only=False)
    return array.to_numpy(zero_copy_only=False)


def _blank(values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return values if mask is None else np.where(mask[:, None], values.dtype.type(0), values)


def _is_number(type: pa.DataType) -> bool:
    return pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_boolean(type)


def standardize(values: Array, mean: float, scale: float) -> Array:
    """Return ``(values - mean) / scale``; shape and namespace of ``values``."""
    return (values - mean) / scale


def rescale(values: Array, low: float, scale: float, target: float) -> Array:
    """Return ``(values - low) * scale + target``; shape and namespace of ``values``."""
    return (values - low) * scale + target


def bucket_index(values: Array, boundaries: Array, xp: ModuleType = np) -> Array:
    """Return how many of the ascending boundaries are at most each value.

    Args:
        values: shape (rows,), a float type without NaN.
        boundaries: shape (n,), ascending, same namespace.
        xp: the namespace.

    Returns:
        Shape (rows,), dtype int64, 0 to n.
    """
    return xp.searchsorted(boundaries, values, side="right").astype(xp.int64)


def one_hot(codes: Array, width: int, dtype: Any, xp: ModuleType = np) -> Array:
    """Return the indicator matrix of codes.

    Args:
        codes: shape (rows,), integers; negative ones give a row of zeros.
        width: number of columns; above every code.
        dtype: of the result.
        xp: the namespace.

    Returns:
        Shape (rows, width).

    Example:
        >>> one_hot(np.array([1, -1]), 2, np.int8).tolist()
        [[0, 1], [0, 0]]
    """
    return (codes[:, None] == xp.arange(width)[None, :]).astype(dtype)
