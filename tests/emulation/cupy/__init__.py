"""A stand-in for CuPy, to test device code where there is no device.

Arrays are NumPy's behind a wrapper that refuses what CuPy refuses; kernels are compiled for the CPU and run
thread by thread (``emulator.h``). Only names that CuPy has are found, and of these those that NumPy has too.
To use it, put this folder's parent at the front of the module path.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cuda as cuda
from .api import API
from .arrays import ndarray as ndarray
from .arrays import transfers as transfers
from .arrays import unwrap, wrap, wrapped
from .kernels import RawModule as RawModule

__version__ = "14.0.0"


def asarray(a: Any, dtype: Any = None, order: str | None = None, *, blocking: bool = False) -> ndarray:
    """Copy to the device, unless it is there."""
    if isinstance(a, ndarray):
        return ndarray(np.asarray(a._data, dtype))
    if isinstance(a, list | tuple) and any(isinstance(item, ndarray) for item in a):
        return ndarray(np.asarray(unwrap(a), dtype))
    host = np.asarray(a, dtype)
    if host.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    transfers["to_device"] += host.nbytes
    return ndarray(host.copy())


def array(obj: Any, dtype: Any = None, copy: bool = True) -> ndarray:
    """Copy to the device."""
    made = asarray(obj, dtype)
    return ndarray(made._data.copy()) if copy else made


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    """As NumPy's, on the device."""
    return ndarray(np.ascontiguousarray(asarray(a, dtype)._data))


def asnumpy(
    a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True
) -> np.ndarray:
    """Copy to the host."""
    return a.get(out=out) if isinstance(a, ndarray) else np.asarray(a)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """Memory as it may lie there: not zeros."""
    return _soiled(np.empty(shape, dtype))


def empty_like(
    prototype: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    """Likewise."""
    return _soiled(np.empty_like(unwrap(prototype), dtype, shape=shape))


def _soiled(made: np.ndarray) -> ndarray:
    made.fill(np.nan if made.dtype.kind in "fc" else True if made.dtype.kind == "b" else 0x5A)
    return ndarray(made)


def get_array_module(*args: Any) -> Any:
    """Return this module for arrays of the device, else NumPy."""
    import cupy

    return cupy if any(isinstance(arg, ndarray) for arg in args) else np


def get_default_memory_pool() -> cuda.MemoryPool:
    """The pool of this process."""
    return cuda.default_pool


def get_default_pinned_memory_pool() -> cuda.PinnedMemoryPool:
    """The pool of page-locked memory of this process."""
    return cuda.default_pinned_pool


def from_dlpack(array: Any) -> ndarray:
    """Take an array over without a copy."""
    return ndarray(np.from_dlpack(array))


def lexsort(keys: ndarray) -> ndarray:
    """Order by the last row of a matrix first; CuPy takes no tuples here."""
    if not isinstance(keys, ndarray):
        raise TypeError("keys must be an array")
    return ndarray(np.lexsort(keys._data))


def argsort(a: ndarray, axis: int = -1, kind: str | None = None) -> ndarray:
    """As CuPy's, stable."""
    return ndarray(np.argsort(unwrap(a), axis=axis, kind="stable"))


def repeat(a: Any, repeats: int | list[int], axis: int | None = None) -> Any:
    """Counts come from the host, in CuPy."""
    if isinstance(repeats, ndarray):
        raise TypeError("repeats must be an int or a list")
    return wrap(np.repeat(unwrap(a), repeats, axis))


def unique(
    ar: ndarray, return_index: bool = False, return_inverse: bool = False, return_counts: bool = False
) -> Any:
    """As NumPy's."""
    return wrap(np.unique(unwrap(ar), return_index, return_inverse, return_counts))


def __getattr__(name: str) -> Any:
    if name not in API or not hasattr(np, name):
        raise AttributeError(f"cupy has no {name!r} here")
    value = getattr(np, name)
    if API[name][0] == "-":
        return value
    return wrapped(value, name)


newaxis = None
