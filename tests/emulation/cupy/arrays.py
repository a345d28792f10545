"""ndarray: an array that stands for one on a device; NumPy's arrays and it don't mix, as with CuPy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import ipc
from .api import API, check_call


class ndarray:
    """Wraps a NumPy array; what CuPy refuses is refused: implicit copies to the host, and NumPy operands.

    ``transfers`` counts what crossed between host and device, as bytes by direction.
    """

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, data: np.ndarray):
        self._data = data

    def get(
        self, stream: Any = None, order: str = "C", out: np.ndarray | None = None, blocking: bool = True
    ) -> np.ndarray:
        transfers["to_host"] += self._data.nbytes
        if out is not None:
            if (out.shape, out.dtype) != (self._data.shape, self._data.dtype) or not out.flags.c_contiguous:
                raise TypeError("get() writes to an array of the same shape and dtype, without gaps")
            out[...] = self._data
            return out
        return self._data.copy()

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray) or (arr.shape, arr.dtype) != (self._data.shape, self._data.dtype):
            raise TypeError("set() takes a NumPy array of the same shape and dtype")
        transfers["to_device"] += arr.nbytes
        self._data[...] = arr

    def item(self) -> Any:
        return self._data.item()

    def tolist(self) -> Any:
        return self._data.tolist()

    @property
    def device(self) -> Any:
        from .cuda import Device

        return Device(0)

    @property
    def data(self) -> Any:
        return _Pointer(ipc.remember(self._data))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return dict(self._data.__array_interface__, version=3)

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__":
            raise TypeError(f"cupy.{ufunc.__name__} has no {method!r} here")
        return wrapped(ufunc, ufunc.__name__)(*inputs, **kwargs)

    def __array_function__(self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        return wrapped(function, function.__name__)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if f"ndarray.{name}" not in API:
            raise AttributeError(f"arrays of CuPy have no {name!r}")
        value = getattr(self._data, name)
        if callable(value):
            return wrapped(value, f"ndarray.{name}")
        return wrap(value) if isinstance(value, np.ndarray) else value

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "shape":
            self._data.shape = value
        else:
            object.__setattr__(self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return wrap(self._data[unwrap(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._data[unwrap(key)] = unwrap(value)

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Any:
        return (wrap(item) for item in self._data)

    def __repr__(self) -> str:
        return repr(self._data)

    def __bool__(self) -> bool:
        return bool(self._data)

    def __int__(self) -> int:
        return int(self._data)

    def __index__(self) -> int:
        return self._data.__index__()

    def __float__(self) -> float:
        return float(self._data)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._data.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self._data.__dlpack_device__()

    def __reduce__(self) -> Any:
        return (ndarray, (self._data,))


class _Pointer:
    def __init__(self, address: int):
        self.ptr = address


#: functions that CuPy compiles at run time, for which tiny floats of 32 bits are zero
FLUSHING = {name for name, (kind, *_) in API.items() if kind == "u"} | {"searchsorted", "digitize"}
#: bytes that crossed, by direction
transfers = {"to_host": 0, "to_device": 0}


def wrap(value: Any) -> Any:
    """Put results of NumPy onto the device; scalars become arrays without axes, as in CuPy."""
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    if isinstance(value, tuple) and type(value) is not tuple:
        return type(value)(*map(wrap, value))
    if isinstance(value, tuple | list):
        return type(value)(map(wrap, value))
    return value


def unwrap(value: Any) -> Any:
    """Take arguments from the device; an array of the host among them is an error."""
    if isinstance(value, ndarray):
        return value._data
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: this array is on the host")
    if isinstance(value, tuple | list):
        return type(value)(map(unwrap, value))
    if isinstance(value, dict):
        return {key: unwrap(item) for key, item in value.items()}
    return value


def wrapped(function: Callable[..., Any], name: str = "") -> Callable[..., Any]:
    """Make a function of NumPy one of device arrays, which takes what CuPy's of that name takes."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if name:
            check_call(name, args, kwargs)
        given, named = [unwrap(arg) for arg in args], unwrap(kwargs)
        if name and name in FLUSHING:
            return wrap(_flushed(function(*map(_flushed, given), **named)))
        return wrap(function(*given, **named))

    return call


def _flushed(value: Any) -> Any:
    """Take tiny floats of 32 bits for zero, as all of CuPy's own arithmetic does, comparisons included."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype == np.float32:
        tiny = np.abs(value) < np.finfo(np.float32).smallest_normal
        if np.any(tiny):
            return np.where(tiny, np.copysign(np.float32(0), value), value)
    return value


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: ndarray, *others: Any) -> Any:
        if name.startswith("__i") and name != "__invert__":
            if self._data.dtype == np.float32:
                self._data[...] = _flushed(self._data)
            getattr(self._data, name)(*(_flushed(unwrap(other)) for other in others))
            if self._data.dtype == np.float32:
                self._data[...] = _flushed(self._data)
            return self
        result = getattr(_flushed(self._data), name)(*(_flushed(unwrap(other)) for other in others))
        return result if result is NotImplemented else wrap(_flushed(result))

    return apply


for _name in [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
    "divmod",
]:
    for _form in (f"__{_name}__", f"__r{_name}__", f"__i{_name}__"):
        if hasattr(np.ndarray, _form):
            setattr(ndarray, _form, _operator(_form))
for _name in ["lt", "le", "eq", "ne", "gt", "ge", "neg", "pos", "abs", "invert"]:
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
