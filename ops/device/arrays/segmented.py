"""Segmented reductions: sums, extremes and counts of a column by group, each with the same bits on every run.

Integers may be added in any order, and are, by atomics. Floats are added as float64 in an order that the rows alone
give, for as many groups as there are:

- at most `FEW` groups: rows are cut into tiles of 4096. Of a tile, lane l of 256 adds rows l, l + 256, … from the
  first to the last; lanes are added in halves (0 and 128, 1 and 129, …; then 0 and 64, …). Tiles likewise: lane l of
  256 adds tiles l, l + 256, …, and lanes are added in halves.
- at most `MANY` groups: of a tile, each of its 8 runs of 512 rows is added from the first row to the last; runs are
  added in halves (0 and 4, …). Of the tiles, lane l of 32 adds tiles l, l + 32, …, and lanes are added in halves.
- more groups: the rows of each group, as they stand, are cut into chunks of 32, which are added from the first to the
  last; the sums of chunks likewise, until each group has one.

Each sum begins with 0.0, so it is never -0.0; hence a null, whose value is 0, adds nothing.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from ...backend import Array
from ..column import DeviceColumn
from ..modules import kernel, launch, on_device
from .grouping import TILE, DeviceGroups
from .key_words import C_NAMES, one_form

#: groups whose sums the lanes of a tile have each for themselves
FEW = 16
#: groups whose sums the runs of a tile have each for themselves
MANY = 2048
#: rows that are added one after another where groups are more
CHUNK = 32

_LANES = 256
_RUNS = 8
#: groups of one block of `sum_many`, as in the source
_WIDE = 512
#: means and validity, for distances
_About = tuple[Array, Array | None]
_LEAST = np.int64(np.iinfo(np.int64).min)
_SIGN = np.uint64(1 << 63)


def sums(values: Array, groups: DeviceGroups) -> Array:
    """Sum each group's values.

    Moves the values and 4 bytes a row, once for each 512 of up to `MANY` groups; beyond these, floats take about 100
    bytes a row more, to be put in order.

    Args:
        values: shape (rows,), integers, booleans or floats; 0 where null.
        groups: of the rows.

    Returns:
        Shape (count,): float64 for floats, uint64 for uint64, else int64; integers modulo 2**64.

    Example:
        >>> import pyarrow as pa
        >>> from headwater.ops.device.column import to_device
        >>> from headwater.ops.device.arrays.grouping import group
        >>> groups = group([to_device(pa.array(["b", "a", "b"]), np)], 3, np)
        >>> sums(np.array([1, 2, 3], np.int8), groups).tolist()
        [4, 2]
    """
    xp, count = groups.xp, groups.count
    if values.dtype.kind == "f":
        return _float_sums(values, groups)
    signed = np.dtype(np.uint64 if values.dtype == np.uint64 else np.int64)
    if not on_device(xp):
        totals = np.zeros(count, dtype=signed)
        np.add.at(totals, groups.codes, values.astype(signed, copy=False))
        return totals
    bits = xp.zeros(count, dtype=np.uint64)
    args = (values, groups.codes, np.int64(len(groups)), np.int32(count), bits)
    _launch_tiles("add_integers", values, len(groups), args, xp)
    return bits.view(signed)


def spreads(values: Array, valid: Array | None, means: Array, groups: DeviceGroups) -> Array:
    """Sum the squares of the distances of each group's values from a number, in the order of `sums`.

    Moves what `sums` moves, and the mask.

    Args:
        values: shape (rows,), floats.
        valid: shape (rows,), bool; None if no row is null.
        means: the number of each group; shape (count,), float64.
        groups: of the rows.

    Returns:
        Shape (count,), float64; 0 for a group without values.
    """
    return _float_sums(values, groups, (means, valid))


def extremes(values: Array, valid: Array | None, groups: DeviceGroups, largest: bool) -> Array:
    """Return each group's smallest or largest value that isn't null; NaN is larger than every number.

    Moves the values, their mask, and 4 bytes a row.

    Args:
        values: shape (rows,), of any dtype that columns have.
        valid: shape (rows,), bool; None if no row is null.
        groups: of the rows.
        largest: which of the two.

    Returns:
        Shape (count,), dtype of ``values``; without -0.0; of no meaning for a group without values.
    """
    xp = groups.xp
    best = xp.full(groups.count, _LEAST, dtype=np.int64)
    if on_device(xp):
        mask = values if valid is None else valid
        rows, count = np.int64(len(groups)), np.int32(groups.count)
        args = (values, mask, np.int32(valid is not None), groups.codes, rows, count, np.int32(largest), best)
        _launch_tiles("extremes", values, len(groups), args, xp)
    else:
        codes, numbers = groups.codes, _ordered(values)
        if valid is not None:
            codes, numbers = codes[valid], numbers[valid]
        np.maximum.at(best, codes, numbers if largest else ~numbers)
    return _unordered(best if largest else ~best, values.dtype, xp)


def any_true(values: Array, valid: Array | None, groups: DeviceGroups) -> Array:
    """Return whether a value of each group is true, nulls left out; shape (count,), bool."""
    return extremes(values, valid, groups, largest=True) & (groups.count_valid(valid) > 0)


def all_true(values: Array, valid: Array | None, groups: DeviceGroups) -> Array:
    """Return whether every value of each group is true, nulls left out; shape (count,), bool."""
    return extremes(values, valid, groups, largest=False) | (groups.count_valid(valid) == 0)


def last_rows(groups: DeviceGroups) -> Array:
    """Return the last row of each group, each of which has rows; shape (count,), int64."""
    rows = groups.xp.arange(len(groups), dtype=np.int32)
    return extremes(rows, None, groups, largest=True).astype(np.int64)


def first_values(column: DeviceColumn, groups: DeviceGroups) -> DeviceColumn:
    """Return the first value of each group, null or not."""
    return column.take(groups.first_rows)


def last_values(column: DeviceColumn, groups: DeviceGroups) -> DeviceColumn:
    """Return the last value of each group, null or not."""
    return column.take(last_rows(groups))


def _launch_tiles(name: str, values: Array, rows: int, args: tuple, xp: ModuleType) -> None:
    function = kernel(xp, "exact_reductions", name, T=C_NAMES[values.dtype])
    launch(function, rows, args, each=TILE // 256)


def _float_sums(values: Array, groups: DeviceGroups, about: _About | None = None) -> Array:
    if not len(groups) or not groups.count:
        return groups.xp.zeros(groups.count, dtype=np.float64)
    if about is not None and not on_device(groups.xp):
        means, valid = about
        with np.errstate(invalid="ignore", over="ignore"):
            distances = values - means[groups.codes]
            values, about = distances * distances, None
        if valid is not None:
            values[~valid] = 0
    return (_dense_sums if groups.count <= MANY else _sorted_sums)(values, groups, about)


def _build(values: Array, about: _About | None) -> dict[str, Any]:
    """The macros of a source of sums."""
    return {"T": C_NAMES[values.dtype]} | ({} if about is None else {"SPREAD": 1})


def _distances(values: Array, about: _About | None) -> tuple[Array, Array, np.int32]:
    """The arguments that say what distances are from; without them, any array, which is not read."""
    if about is None:
        return values, values, np.int32(0)
    means, valid = about
    return means, means if valid is None else valid, np.int32(valid is not None)


def _dense_sums(values: Array, groups: DeviceGroups, about: _About | None) -> Array:
    xp, rows, count = groups.xp, len(groups), groups.count
    tiles, few = -(-rows // TILE), count <= FEW
    width = _LANES if few else 32
    if not on_device(xp):
        return _lane_sums(_tile_sums(values, groups.codes, tiles, count, few), width)
    partials, totals = xp.empty((count, tiles), dtype=np.float64), xp.empty(count, dtype=np.float64)
    function = kernel(xp, "dense_sums", "sum_few" if few else "sum_many", **_build(values, about))
    shape = np.int64(rows), np.int32(count)
    grid = (tiles,) if few else (tiles, -(-count // _WIDE))
    function(grid, (_LANES,), (values, groups.codes, *shape, *_distances(values, about), partials))
    args = (partials, np.int64(tiles), np.int32(count), np.int32(width), totals)
    launch(kernel(xp, "dense_sums", "sum_tiles", **_build(values, about)), count * width, args)
    return totals


def _tile_sums(values: np.ndarray, codes: np.ndarray, tiles: int, count: int, few: bool) -> np.ndarray:
    """The sum of each group in each tile; shape (count, tiles)."""
    places = np.arange(len(codes), dtype=np.int64)
    lanes = _LANES if few else _RUNS
    owners = places // TILE * _LANES + places % _LANES if few else places // (TILE // _RUNS)
    owned = np.bincount(owners * count + codes, weights=values, minlength=tiles * lanes * count)
    return _in_halves(owned.reshape(tiles, lanes, count).transpose(2, 0, 1))


def _lane_sums(partials: np.ndarray, width: int) -> np.ndarray:
    """The sum of the tiles of each group, added by ``width`` lanes and then in halves; shape (count,)."""
    count, tiles = partials.shape
    turns = -(-tiles // width)
    padded = np.zeros((count, turns * width))
    padded[:, :tiles] = partials
    lanes = np.zeros((count, width))
    with np.errstate(invalid="ignore", over="ignore"):
        for turn in range(turns):
            lanes += padded[:, turn * width : (turn + 1) * width]
    return _in_halves(lanes)


def _in_halves(sums: np.ndarray) -> np.ndarray:
    """Add the last axis up: its second half to its first, until one is left."""
    with np.errstate(invalid="ignore", over="ignore"):
        while (half := sums.shape[-1] // 2) > 0:
            sums = sums[..., :half] + sums[..., half:]
    return sums[..., 0]


def _sorted_sums(values: Array, groups: DeviceGroups, about: _About | None) -> Array:
    xp, count = groups.xp, groups.count
    order: Array | None = groups.order
    starts, sizes = groups.starts, groups.sizes
    while True:
        chunks = xp.maximum((sizes + (CHUNK - 1)) // CHUNK, 1)
        ends = xp.cumsum(chunks)
        firsts, total = ends - chunks, int(ends[-1])
        values = _chunk_sums(values, order, (starts, sizes, firsts), total, about, xp)
        order = about = None
        if total == count:
            return values
        starts, sizes = firsts, chunks


def _chunk_sums(
    values: Array,
    order: Array | None,
    segments: tuple[Array, Array, Array],
    total: int,
    about: _About | None,
    xp: ModuleType,
) -> Array:
    """The sum of each chunk; segments: each group's start and size, and the number of its first chunk."""
    starts, sizes, firsts = segments
    count = int(sizes.shape[0])
    if on_device(xp):
        found = xp.empty(total, dtype=np.float64)
        function = kernel(xp, "segmented", "sum_chunks", **_build(values, about))
        places = (starts, np.int32(0)) if order is None else (order, np.int32(1))
        counts = np.int64(count), np.int64(total)
        launch(function, total, (values, *places, *segments, *counts, *_distances(values, about), found))
        return found
    ordered = values if order is None else values[order]
    owners = np.repeat(np.arange(count), sizes)
    ranks = np.arange(len(ordered)) - starts[owners]
    return np.bincount(firsts[owners] + ranks // CHUNK, weights=ordered, minlength=total)


def _ordered(values: np.ndarray) -> np.ndarray:
    """Values as int64 of the same order; those of floats as in the source."""
    if values.dtype.kind == "f":
        bits = one_form(values, np).view(f"i{values.dtype.itemsize}")
        return np.where(bits < 0, bits ^ np.iinfo(bits.dtype).max, bits).astype(np.int64)
    return (values ^ _SIGN).view(np.int64) if values.dtype == np.uint64 else values.astype(np.int64)


def _unordered(numbers: Array, dtype: np.dtype, xp: ModuleType) -> Array:
    """Values from the integers that stand for them."""
    if dtype.kind == "f":
        bits = numbers.astype(f"i{dtype.itemsize}")
        return xp.where(bits < 0, bits ^ bits.dtype.type(np.iinfo(bits.dtype).max), bits).view(dtype)
    return numbers.view(np.uint64) ^ _SIGN if dtype == np.uint64 else numbers.astype(dtype)
