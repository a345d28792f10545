"""Comparison and boolean kernels: ``== != < <= > >=``, ``& | ^ ~``, membership, null and NaN tests."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from .call import register
from .types import NoCommonTypeError, Value, adopt, common_type, meet, retype

_BOOLEANS = "Write a comparison on each side, in parentheses, as (col('x') > 0) & (col('y') < 1)."


def align_compared(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Bring both sides to one type without rounding integers or decimals."""
    return [_comparable(value) for value in meet(values, weak, exact=True)]


def _comparable(value: Value) -> Value:
    """Arrow compares neither half floats nor bare nulls."""
    if pa.types.is_null(value.type):
        return value.cast(pa.bool_())
    return retype(value, pa.float32()) if pa.types.is_float16(value.type) else value


def align_logical(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Bring booleans, or integers, to one type; a bare null is a boolean."""
    values = meet(values, weak)
    if pa.types.is_null(values[0].type):
        return [value.cast(pa.bool_()) for value in values]
    if not pa.types.is_boolean(values[0].type) and not pa.types.is_integer(values[0].type):
        raise NoCommonTypeError("it takes booleans, or integers for their bits")
    return values


def align_members(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Bring a column and a list of values to one type."""
    value, members = values[0], values[1].values
    if weak[1] and not pa.types.is_null(value.type):
        members = adopt(members, value.type, exact=True)
    target = common_type([value.type, members.type], exact=True)
    value, members = (_comparable(retype(v, target)) for v in (value, members))
    return [value, pa.ListArray.from_arrays([0, len(members)], members)[0]]


for _name, _symbol in {
    "equal": "==",
    "not_equal": "!=",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
}.items():
    register(_name, align=align_compared, symbol=_symbol)(getattr(pc, _name))


@register("and", align=align_logical, symbol="&", strict=False, hint=_BOOLEANS)
def and_(a: Value, b: Value) -> Value:
    """Kleene's and; for integers, of bits."""
    return pc.and_kleene(a, b) if pa.types.is_boolean(a.type) else pc.bit_wise_and(a, b)


@register("or", align=align_logical, symbol="|", strict=False, hint=_BOOLEANS)
def or_(a: Value, b: Value) -> Value:
    """Kleene's or; for integers, of bits."""
    return pc.or_kleene(a, b) if pa.types.is_boolean(a.type) else pc.bit_wise_or(a, b)


@register("xor", align=align_logical, symbol="^", hint=_BOOLEANS)
def xor(a: Value, b: Value) -> Value:
    """Exclusive or; for integers, of bits."""
    return pc.xor(a, b) if pa.types.is_boolean(a.type) else pc.bit_wise_xor(a, b)


@register("not", align=align_logical, symbol="~", hint="Write ~ before a comparison, as ~(col('x') > 0).")
def not_(a: Value) -> Value:
    """The opposite; for integers, of bits."""
    return pc.invert(a) if pa.types.is_boolean(a.type) else pc.bit_wise_not(a)


@register("is_in", align=align_members)
def is_in(value: Value, members: pa.Scalar) -> Value:
    """Whether the value equals one of the members; nulls and NaN among them match nothing."""
    wanted = members.values.drop_null()
    if pa.types.is_floating(wanted.type):
        wanted = pc.add(wanted.filter(pc.invert(pc.is_nan(wanted))), 0.0)  # -0.0 is 0.0
        value = pc.add(value, 0.0)
    found = pc.is_in(value, value_set=wanted)
    return pc.if_else(pc.is_valid(value), found, pa.scalar(None, pa.bool_())) if value.null_count else found


@register("is_null", strict=False)
def is_null(value: Value) -> Value:
    """Whether the value is null."""
    return pc.is_null(value)


@register("is_not_null", strict=False)
def is_not_null(value: Value) -> Value:
    """Whether the value isn't null."""
    return pc.is_valid(value)


_NUMBERS = "Cast it to a number first, as {0}.cast('float64')."


@register("is_nan", hint=_NUMBERS)
def is_nan(value: Value) -> Value:
    """Whether the number is NaN."""
    return pc.is_nan(_comparable(value))


@register("is_not_nan", hint=_NUMBERS)
def is_not_nan(value: Value) -> Value:
    """Whether the number isn't NaN."""
    return pc.invert(pc.is_nan(_comparable(value)))


@register("is_finite", hint=_NUMBERS)
def is_finite(value: Value) -> Value:
    """Whether the number is finite."""
    return pc.is_finite(_comparable(value))
