"""Feature values: one column as an array of numbers, without holes, or an error that names the row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ...errors import HeadwaterError


def is_number(type: pa.DataType) -> bool:
    """Whether a type is one of numbers: integers, floats, decimals; booleans count as 0 and 1."""
    t = pa.types
    return t.is_integer(type) or t.is_floating(type) or t.is_decimal(type) or t.is_boolean(type)


def is_vector(type: pa.DataType) -> bool:
    """Whether a type is one of lists of numbers, fixed in size or not."""
    t = pa.types
    lists = t.is_list(type) or t.is_large_list(type) or t.is_fixed_size_list(type)
    return lists and is_number(type.value_type)


def column_values(
    table: pa.Table,
    name: str,
    role: str = "feature",
    width: int | None = None,
    first_row: int = 0,
    allow_nan: bool = False,
) -> np.ndarray:
    """Return a column of numbers, or of vectors of numbers, as an array of its own dtype.

    Args:
        table: the rows.
        name: of the column.
        role: "feature", "target" or "weight", for errors.
        width: how long its vectors are; None takes the first row's.
        first_row: number of the first row, for errors.
        allow_nan: let NaN pass.

    Returns:
        Shape (rows,), or (rows, width); no copy where the layout allows it. Decimals become float64.

    Raises:
        HeadwaterError: a null, NaN, or vector of another length.
    """
    column = table[name]
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    missing = _Missing(name, role, first_row)
    if chunk.null_count:
        raise missing.error(_first(chunk.is_null()), "is null")
    if not is_vector(chunk.type):
        values = _numbers(chunk)
    else:
        items, width = _items(chunk, name, width, first_row)
        if items.null_count:
            row, place = divmod(_first(items.is_null()), width)
            raise missing.error(row, "is null", place)
        values = _numbers(items).reshape(len(chunk), width)
    if not allow_nan and (hole := _first_nan(values)) is not None:
        raise missing.error(hole[0], "is NaN", *hole[1:])
    return values


class _Missing:
    """Tells of a row that has no value."""

    def __init__(self, name: str, role: str, first_row: int):
        self._name, self._role, self._first_row = name, role, first_row

    def error(self, row: int, what: str, place: int | None = None) -> HeadwaterError:
        name, where = self._name, f"row {self._first_row + row}"
        keep = f"col({name!r}).is_not_null()" if what == "is null" else f"~col({name!r}).is_nan()"
        drop = f"leave such rows out with filter({keep})"
        if place is not None:
            return HeadwaterError(
                f"train: {where} of the feature '{name}[{place}]' {what}, and arithmetic needs a value. "
                f"Fill it where {name!r} is made."
            )
        if self._role != "feature":
            return HeadwaterError(
                f"train({self._role}={name!r}): {where} {what}. {drop[0].upper()}{drop[1:]}."
            )
        return HeadwaterError(
            f"train: {where} of the feature {name!r} {what}, and arithmetic needs a value. "
            f"Fill it, as with hw.prep.Impute({name!r}), or {drop}."
        )


def _items(chunk: pa.Array, name: str, width: int | None, first_row: int) -> tuple[pa.Array, int]:
    """The numbers of all vectors in a row, and how long each vector is."""
    rows = len(chunk)
    if pa.types.is_fixed_size_list(chunk.type):
        given = chunk.type.list_size
        if rows and width is not None and width != given:
            raise _uneven(name, first_row, given, width)
        return chunk.values.slice(chunk.offset * given, rows * given), given
    lengths = np.diff(chunk.offsets.to_numpy())
    if width is None:
        width = int(lengths[0]) if rows else 0
    if (lengths != width).any():
        row = int(np.argmax(lengths != width))
        raise _uneven(name, first_row + row, int(lengths[row]), width)
    return chunk.flatten(), width


def _uneven(name: str, row: int, given: int, width: int) -> HeadwaterError:
    return HeadwaterError(
        f"train: the vectors of {name!r} are {width} long, and that of row {row} is {given} long. "
        "A feature has one length: pad or cut it where it is made, or leave the row out."
    )


def _numbers(array: pa.Array) -> np.ndarray:
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    return array.to_numpy(zero_copy_only=False)


def _first(mask: pa.Array) -> int:
    return int(np.argmax(mask.to_numpy(zero_copy_only=False)))


def _first_nan(values: np.ndarray) -> tuple[int, ...] | None:
    """Index of the first NaN."""
    if values.dtype.kind != "f" or not values.size:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        if not np.isnan(
            values.sum()
        ):  # a sum is NaN if a value is, or if infinities cancel out; takes no memory
            return None
    holes = np.isnan(values)
    return tuple(map(int, np.unravel_index(np.argmax(holes), holes.shape))) if holes.any() else None
