"""Conditional kernels: when/then/otherwise, coalesce, least and greatest, filling, clipping, row hashes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .call import as_is, register
from .comparison import align_compared
from .types import NoCommonTypeError, Value, meet, retype, type_name


def align_together(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Bring all values to one type."""
    return meet(values, weak)


def align_branches(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Bring the values of a when to one type; its conditions are booleans."""
    for condition in values[:-1:2]:
        if not pa.types.is_boolean(condition.type) and not pa.types.is_null(condition.type):
            raise NoCommonTypeError(f"when() takes a boolean condition, not {type_name(condition.type)}")
    places = [*range(1, len(values), 2), len(values) - 1]
    branches = meet([values[i] for i in places], [weak[i] for i in places])
    aligned = [value.cast(pa.bool_()) if pa.types.is_null(value.type) else value for value in values]
    for i, branch in zip(places, branches):
        aligned[i] = branch
    return aligned


def _display_when(texts: Sequence[str], operands: Sequence[str]) -> str:
    branches = ".".join(
        f"when({condition}).then({value})" for condition, value in zip(texts[:-1:2], texts[1::2])
    )
    return branches if texts[-1] == "None" else f"{branches}.otherwise({texts[-1]})"


@register("when", align=align_branches, strict=False, display=_display_when)
def when(*values: Value) -> Value:
    """The value of the first condition that is true (condition, value, …, otherwise)."""
    result = values[-1]
    for condition, value in reversed(list(zip(values[:-1:2], values[1::2]))):
        result = pc.if_else(pc.fill_null(condition, False), value, result)
    return result


@register("coalesce", align=align_together, notation="function", strict=False)
def coalesce(*values: Value) -> Value:
    """The first value that isn't null."""
    return pc.coalesce(*values)


@register("fill_null", align=align_together, strict=False)
def fill_null(value: Value, other: Value) -> Value:
    """The value, or another where it is null."""
    return pc.coalesce(value, other) if isinstance(value, pa.Scalar) or value.null_count else value


@register("fill_nan", align=align_together, strict=False)
def fill_nan(value: Value, other: Value) -> Value:
    """The value, or another where it is NaN."""
    if not pa.types.is_floating(value.type):
        return value
    return pc.if_else(pc.fill_null(pc.is_nan(value), False), other, value)


@register("least", align=align_compared, notation="function", strict=False)
def least(*values: Value) -> Value:
    """The least value that is neither null nor NaN, if there is one."""
    return _extreme(pc.min_element_wise, values)


@register("greatest", align=align_compared, notation="function", strict=False)
def greatest(*values: Value) -> Value:
    """The greatest value that is neither null nor NaN, if there is one."""
    return _extreme(pc.max_element_wise, values)


def _extreme(function: Callable[..., Value], values: Sequence[Value]) -> Value:
    if not pa.types.is_boolean(values[0].type):
        return function(*values, skip_nulls=True)
    return function(*(value.cast(pa.int8()) for value in values), skip_nulls=True).cast(pa.bool_())


def _display_clip(bound: str) -> Callable[[Sequence[str], Sequence[str]], str]:
    return lambda texts, operands: f"{operands[0]}.clip({bound}={texts[1]})"


@register("clip_lower", align=align_together, display=_display_clip("lower"))
def clip_lower(value: Value, bound: Value) -> Value:
    """The bound where the value is below it."""
    return pc.if_else(pc.less(value, bound), bound, value)


@register("clip_upper", align=align_together, display=_display_clip("upper"))
def clip_upper(value: Value, bound: Value) -> Value:
    """The bound where the value is above it."""
    return pc.if_else(pc.greater(value, bound), bound, value)


def _align_texts(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    return [value if pa.types.is_string(value.type) else retype(value, pa.string()) for value in values]


@register("concat_str", align=_align_texts, notation="function", strict=False)
def concat_str(*values: Value, separator: str = "", skip_nulls: bool = False) -> Value:
    """Texts one after the other."""
    if not skip_nulls:
        return pc.binary_join_element_wise(*values, separator)
    # Arrow's own null_handling="skip" loses rows in which all values are null
    pieces = [pc.fill_null(pc.binary_join_element_wise(separator, value, ""), "") for value in values]
    return pc.utf8_slice_codeunits(pc.binary_join_element_wise(*pieces, ""), start=len(separator))


@register("hash_unit", align=as_is, notation="function", strict=False)
def hash_unit(*values: Value, seed: int = 0) -> Value:
    """A uniform number in [0, 1) drawn from the hash of the values."""
    from ...lineage.hashing import hash_columns

    rows = next(len(value) for value in values if not isinstance(value, pa.Scalar))
    columns = [pa.repeat(value, rows) if isinstance(value, pa.Scalar) else value for value in values]
    return pa.array((hash_columns(columns, seed) >> np.uint64(11)) * 2.0**-53)
