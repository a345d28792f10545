"""Shape: how many arrays travel in an operation, how long they are, and where each lies in one stretch of memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ...errors import ParameterError
from .arena import offsets


class Shape:
    """Lengths and types of arrays, and their places in a stretch of memory.

    Args:
        lengths: of the arrays, in elements.
        dtypes: of the arrays, as NumPy's short texts, for example "<f4".

    Attributes:
        starts: where each array begins, in bytes.
        stride: bytes of all of them with gaps.
        nbytes: bytes of all of them without gaps.
    """

    def __init__(self, lengths: Sequence[int], dtypes: Sequence[str]):
        self.lengths = tuple(lengths)
        self.dtypes = tuple(np.dtype(dtype) for dtype in dtypes)
        sizes = [length * dtype.itemsize for length, dtype in zip(self.lengths, self.dtypes)]
        self.nbytes = sum(sizes)
        self.starts, self.stride = offsets(sizes)
        self.key = (self.lengths, tuple(dtypes))

    @lru_cache(maxsize=64)  # noqa: B019 - shapes are few, and kept anyway
    def digest(self, *what: object) -> int:
        """A number that members who do the same with the same arrays have in common."""
        return zlib.crc32(repr((what, self.key)).encode())

    def views(self, room: np.ndarray) -> list[np.ndarray]:
        """The arrays in a stretch of memory of ``stride`` bytes."""
        return [
            room[start : start + length * dtype.itemsize].view(dtype)
            for start, length, dtype in zip(self.starts, self.lengths, self.dtypes)
        ]


@lru_cache(maxsize=64)
def shape_of(lengths: tuple[int, ...], dtypes: tuple[str, ...]) -> Shape:
    """Return the shape of arrays; the same object for the same ones."""
    return Shape(lengths, dtypes)


def check_arrays(arrays: Sequence[np.ndarray], where: str) -> Shape:
    """Return the shape of arrays that a caller gave.

    Raises:
        ParameterError: one of them isn't a 1-d NumPy array of numbers.
    """
    for number, array in enumerate(arrays):
        if not isinstance(array, np.ndarray) or array.ndim != 1:
            dimensions = getattr(array, "shape", None)
            raise ParameterError(
                f"{where}: array {number} is a {type(array).__name__} of shape {dimensions}; "
                "collectives take 1-d NumPy arrays, so give array.reshape(-1)"
            )
        if array.dtype.kind not in "biufc" or not array.dtype.isnative:
            raise ParameterError(
                f"{where}: array {number} is of {array.dtype}; collectives take native numbers"
            )
    return shape_of(tuple(len(array) for array in arrays), tuple(array.dtype.str for array in arrays))


def check_device_arrays(arrays: Sequence[Any], where: str) -> Shape:
    """Return the shape of arrays of a device that a caller gave.

    Raises:
        ParameterError: one of them isn't a 1-d array of a device, of numbers.
    """
    for number, array in enumerate(arrays):
        there = hasattr(array, "__cuda_array_interface__")
        if not there or array.ndim != 1 or np.dtype(array.dtype).kind not in "biufc":
            raise ParameterError(
                f"{where}: array {number} is a {type(array).__name__} of shape {getattr(array, 'shape', None)}; 1-d "
                "arrays of numbers on the device are needed"
            )
    return shape_of(
        tuple(int(array.shape[0]) for array in arrays), tuple(np.dtype(array.dtype).str for array in arrays)
    )


def check_parts(
    parts: dict, start: int, stop: int, where: str, check: Callable[[Any, str], Shape] = check_arrays
) -> Shape:
    """Return the shape of the parts that a member carries; ``check`` returns that of one part.

    Raises:
        ParameterError: parts are missing or too many, or differ in lengths or types.
    """
    if len(parts) != stop - start or any(index not in parts for index in range(start, stop)):
        raise ParameterError(
            f"{where}: this member carries the indices {start} … {stop - 1}, and got parts for {sorted(parts)}"
        )
    shape = check(parts[start], where)
    for index in range(start + 1, stop):
        if check(parts[index], where) is not shape:
            raise ParameterError(f"{where}: part {index} has other lengths or types than part {start}")
    return shape
