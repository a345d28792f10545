"""Concatenation: columns of tables behind each other, all of them copied by one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np

from ...backend import Array
from ..column import SKETCH, DeviceColumn, joined, unified
from ..modules import kernel, on_device

#: bytes that a block copies, and its threads, as in the source
_BLOCK, _THREADS = 16384, 256
#: blocks of a launch
_MOST = (1 << 31) - 1


def joined_columns(parts: Sequence[Sequence[DeviceColumn]], xp: ModuleType) -> list[DeviceColumn]:
    """Put the columns of each part behind those of the one before.

    Traffic: each value, and each mark of a null, is read once and written once.

    Args:
        parts: columns of the same types in each, at least one part; strings may have other dictionaries.
        xp: NumPy or CuPy.

    Returns:
        As many columns as each part has.

    Example:
        >>> import pyarrow as pa
        >>> from ..column import to_device
        >>> numbers = [[to_device(pa.array([1, None]), np)], [to_device(pa.array([3]), np)]]
        >>> [(column.values.tolist(), column.valid.tolist()) for column in joined_columns(numbers, xp=np)]
        [([1, 0, 3], [True, False, True])]
    """
    across = [list(columns) for columns in zip(*parts)]
    if not on_device(xp) or len(parts) == 1:
        return [joined(columns, xp) for columns in across]
    pieces: list[tuple[int, int, int]] = []
    kept: list[Array] = []
    whole = []
    for columns in across:
        if columns[0].type == SKETCH:
            whole.append(joined(columns, xp))
            continue
        columns = unified(columns, xp)
        rows = sum(map(len, columns))
        values, valid = xp.empty(rows, dtype=columns[0].values.dtype), None
        _add(pieces, kept, [column.values for column in columns], values, xp)
        if any(column.valid is not None for column in columns):
            valid = xp.empty(rows, dtype=bool)
            _add(pieces, kept, [c.valid if c.valid is not None else len(c) for c in columns], valid, xp)
        whole.append(replace(columns[0], values=values, valid=valid))
    _copy(pieces, xp)
    return whole


def _add(
    pieces: list[tuple[int, int, int]],
    kept: list[Array],
    arrays: Sequence[Array | int],
    target: Array,
    xp: ModuleType,
) -> None:
    """Say where arrays go; a number stands for so many ones of one byte."""
    place = int(target.data.ptr)
    for array in arrays:
        if isinstance(array, int):
            source, size = 0, array
        else:
            kept.append(xp.ascontiguousarray(array))
            source, size = int(kept[-1].data.ptr), int(array.nbytes)
        if size:
            pieces.append((source, place, size))
        place += size


def _copy(pieces: Sequence[tuple[int, int, int]], xp: ModuleType) -> None:
    if not pieces:
        return
    words = np.empty((len(pieces), 5), np.uint64)
    words[:, :3] = pieces
    together = words[:, 0] | words[:, 1] | words[:, 2] | np.uint64(16)
    words[:, 3] = together & (~together + np.uint64(1))  # the lowest bit that is set
    blocks = (words[:, 2] + np.uint64(_BLOCK - 1)) // np.uint64(_BLOCK)
    words[:, 4] = np.cumsum(blocks) - blocks
    total = int(blocks.sum())
    if total > _MOST:
        raise ValueError(f"{total * _BLOCK} bytes are copied at once; give fewer than {_MOST * _BLOCK}")
    copy = kernel(xp, "concatenation", "copy_pieces")
    copy((total,), (_THREADS,), (xp.asarray(words), np.int32(len(pieces))))
