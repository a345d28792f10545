"""Sizes: how pieces of a file are packed into partitions, and how wide rows are in memory. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pyarrow as pa

from ..errors import ParameterError

#: guessed bytes of a value of variable length, where nothing better is known
VARIABLE_BYTES = 24


def pack(sizes: Sequence[int], target: int) -> Iterator[tuple[int, int]]:
    """Group consecutive pieces so that no group of several is above the target size.

    Args:
        sizes: bytes of each piece.
        target: bytes that a group aims at.

    Yields:
        (start, stop) of each group.

    Example:
        >>> list(pack([4, 4, 4, 20, 1], 10))
        [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    start = held = 0
    for index, size in enumerate(sizes):
        if index > start and held + size > target:
            yield start, index
            start, held = index, 0
        held += size
    if start < len(sizes):
        yield start, len(sizes)


def even_cuts(total: int, pieces: int) -> list[tuple[int, int]]:
    """Cut ``total`` into ranges whose lengths differ by one at most.

    Example:
        >>> even_cuts(10, 3)
        [(0, 3), (3, 6), (6, 10)]
    """
    bounds = [total * i // pieces for i in range(pieces + 1)]
    return list(pairwise(bounds))


def cut_evenly(total: int, target: int) -> list[tuple[int, int]]:
    """Cut ``total`` into the fewest even ranges no longer than ``target``; none for 0."""
    return even_cuts(total, math.ceil(total / target)) if total else []


def type_bytes(type: pa.DataType) -> float:
    """Bytes that a value of a type takes in memory; a guess where the length varies."""
    try:
        return type.bit_width / 8
    except ValueError:
        return VARIABLE_BYTES


def check_positive(where: str, **arguments: int | None) -> None:
    """Raise ParameterError unless each argument is a positive integer or None."""
    for name, value in arguments.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ParameterError(f"{where}: {name} must be a positive integer, not {value!r}.")
