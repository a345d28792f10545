"""Prepared: what preparation steps do to a column, as expressions that fuse into one kernel a step.

A step's fitted state is prepared by the step itself, as on the host; scaling is its own function, given an
expression in the place of an array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ....errors import HeadwaterError
from ...expressions.call import call
from ...expressions.expr import Column, Expr, Literal
from ...expressions.functions import when
from ...expressions.types import Value
from ...prep import Bucketize, Impute, MinMax, OneHot, Ordinal, RobustScale, Standardize, Step
from ...prep.step import float_type
from ..column import physical_type
from ..fused.emitter import Emitter, Term
from ..fused.lowering import Special
from ..fused.words import Constants, ConstantWords


@dataclass
class Prepared:
    """What a column becomes.

    Attributes:
        exprs: as many as the step's fields.
        checks: conditions under which the step raises, if they hold in a row.
    """

    exprs: list[Expr]
    checks: list[Expr] = field(default_factory=list)


class Place(Special):
    """The place of a value among some that differ, from 0; null where it isn't one of them. Option ``values``."""

    def type_of(self, types: Sequence[pa.DataType]) -> pa.DataType:
        return pa.int64()

    def value_of(self, values: Sequence[Value]) -> Value:
        return pc.index_in(values[0], value_set=self.option("values")).cast(pa.int64())

    def lower(self, emit: Emitter, args: list[Term], type: pa.DataType) -> Term:
        members = self.option("values")
        order = pc.sort_indices(members)
        place = emit.let("int", emit.place(args[0].value, args[0].type, members.take(order)))
        found = emit.every([args[0].valid, emit.let("bool", f"{place} >= 0")])
        places = emit.table((Constants(order.cast(pa.int32())), "values"), "int")
        return emit.term(
            type, f"{found} ? (long long){places}[{place}] : 0LL" if len(members) else "0LL", found
        )


class InRow(Special):
    """The value itself, looked up once where many things are asked of it."""

    in_row = True

    def type_of(self, types: Sequence[pa.DataType]) -> pa.DataType:
        return types[0]

    def value_of(self, values: Sequence[Value]) -> Value:
        return values[0]

    def lower(self, emit: Emitter, args: list[Term], type: pa.DataType) -> Term:
        return args[0]


class Bucket(Special):
    """How many ascending boundaries are at most a float64. Option ``edges``, a tuple."""

    def type_of(self, types: Sequence[pa.DataType]) -> pa.DataType:
        return pa.int64()

    def value_of(self, values: Sequence[Value]) -> Value:
        column = values[0].combine_chunks() if isinstance(values[0], pa.ChunkedArray) else values[0]
        plain = column.fill_null(0.0).to_numpy(zero_copy_only=False)
        index = np.searchsorted(np.array(self.option("edges"), np.float64), plain, side="right")
        return pa.array(index.astype(np.int64), mask=column.is_null().to_numpy(zero_copy_only=False))

    def lower(self, emit: Emitter, args: list[Term], type: pa.DataType) -> Term:
        edges = pa.array(self.option("edges"), pa.float64())
        if not len(edges):
            return Term(type, "0LL", args[0].valid)
        table = emit.table((Constants(edges), "values"), "double")
        return emit.strict(type, f"(long long)count_up_to({table}, {len(edges)}, {args[0].value})", args)


class Label(Special):
    """The label of a number from 0. Option ``labels``, a tuple."""

    def type_of(self, types: Sequence[pa.DataType]) -> pa.DataType:
        return pa.string()

    def value_of(self, values: Sequence[Value]) -> Value:
        return pc.take(pa.array(self.option("labels"), pa.string()), values[0])

    def lower(self, emit: Emitter, args: list[Term], type: pa.DataType) -> Term:
        labels = self.option("labels")
        words = tuple(dict.fromkeys(labels))
        codes = emit.table(
            (Constants(pa.array([words.index(label) for label in labels], pa.int32())), "values"), "int"
        )
        index = args[0].value if args[0].valid == "true" else f"{args[0].valid} ? {args[0].value} : 0LL"
        code = emit.let("int", f"{codes}[{index}]")
        return Term(type, code, args[0].valid, None, ConstantWords(words))


def unprepared(step: object, field: pa.Field) -> str | None:
    """Return why a step has no form on a device for a column, or None if it has one."""
    type, options = field.type, getattr(step, "options", {})
    if _FORMS.get(step.__class__) is None:
        return f"{step.__class__.__name__} has no kernel there"
    if physical_type(type) is None:
        return f"the column {field.name!r} of {type} has no form there"
    imputed = isinstance(step, Impute) and options["strategy"] in ("mean", "median")
    numeric = imputed or isinstance(step, Standardize | MinMax | RobustScale | Bucketize)
    if numeric and pa.types.is_decimal(type):
        return f"{step}: decimals become floats on the host"
    if isinstance(step, OneHot) and options["categories"] is None:
        return f"{step}: without declared categories it makes lists, which have no form there"
    if isinstance(step, OneHot) and options["dtype"] == "float16":
        return f"{step}: float16 has no form there"
    if isinstance(step, OneHot | Ordinal) and pa.types.is_floating(type):
        return f"{step}: floats are encoded on the host"
    return None


def prepared_column(step: Step, column: pa.Field, prepared: Any) -> Prepared:
    """Return what a column becomes, given the step's prepared state."""
    return _FORMS[type(step)](step, column, prepared)


def _absent(column: Expr, type: pa.DataType) -> Expr:
    """Whether there is no value: null, or NaN."""
    if not pa.types.is_floating(type):
        return column.is_null()
    return call("fill_null", column.is_nan(), True)


def _number(column: Expr, type: pa.DataType) -> Expr:
    return column if pa.types.is_float64(type) else column.cast(pa.float64())


def _scaled(step: Step, field: pa.Field, prepared: Any) -> Prepared:
    column, scale = Column(field.name), prepared[field.name]
    absent = _absent(column, field.type)
    checks = [absent] if step.options["nulls"] == "error" else []
    value = _number(column, field.type)
    if scale is None:
        checks.append(~absent)
    else:
        value = scale(value)
    type = float_type(field.type)
    return Prepared([value if pa.types.is_float64(type) else value.cast(type)], checks)


def _bucketized(step: Step, field: pa.Field, prepared: Any) -> Prepared:
    column, nulls = Column(field.name), step.options["nulls"]
    absent = _absent(column, field.type)
    checks = [absent] if nulls == "error" else []
    edges = prepared[field.name]
    if edges is None:
        checks.append(~absent)
        edges = np.zeros(0)
    bucket: Expr = Bucket([_number(column, field.type)], edges=tuple(edges.tolist()))
    if nulls == "category":
        last = step.options["bins"] or len(edges) + 1
        bucket = when(absent).then(last).otherwise(bucket)
    elif pa.types.is_floating(field.type):
        bucket = when(~absent).then(bucket)
    labels = step.options["labels"]
    return Prepared([bucket if labels is None else Label([bucket], labels=tuple(labels))], checks)


def _imputed(step: Impute, field: pa.Field, prepared: Any) -> Prepared:
    column = Column(field.name)
    absent = _absent(column, field.type)
    type = float_type(field.type) if step.options["strategy"] in ("mean", "median") else field.type
    filled: Expr = column if type == field.type else column.cast(type)
    checks = []
    try:
        value = Literal(step._value(field.name, type, prepared), typed=True)
    except HeadwaterError:  # it was fitted on no value; rows without one are refused
        checks.append(absent)
    else:
        if pa.types.is_floating(type):
            filled = call("fill_nan", filled, value)
        filled = call("fill_null", filled, value)
    return Prepared([filled, absent] if step.options["indicator"] else [filled], checks)


def _codes(
    step: OneHot | Ordinal, field: pa.Field, prepared: Any
) -> tuple[Expr, int, Expr, Expr, list[Expr]]:
    """The place among the categories, how many there are, which values are absent or unseen, and what is refused."""
    column = Column(field.name)
    values = step._values(field.name, field.type, prepared)
    place = InRow([Place([column], values=values)])
    absent = column.is_null()
    unseen = place.is_null() & column.is_not_null()
    checks = [unseen] if step.options["unseen"] == "error" else []
    checks += [absent] if step.options["nulls"] == "error" else []
    return place, len(values), absent, unseen, checks


def _one_hot(step: OneHot, field: pa.Field, prepared: Any) -> Prepared:
    place, count, absent, unseen, checks = _codes(step, field, prepared)
    hits: list[Expr] = [call("fill_null", place == code, False) for code in range(count)]
    hits += [unseen] if step.options["unseen"] == "other" else []
    hits += [absent] if step.options["nulls"] == "category" else []
    return Prepared([hit.cast(step._dtype) for hit in hits[step._skip :]], checks)


def _ordinal(step: Ordinal, field: pa.Field, prepared: Any) -> Prepared:
    place, count, absent, unseen, checks = _codes(step, field, prepared)
    other = step.options["unseen"] == "other"
    code: Expr = when(unseen).then(count).otherwise(place) if other else place
    if step.options["nulls"] == "category":
        code = when(absent).then(count + other).otherwise(code)
    return Prepared([code], checks)


_FORMS: dict[type, Callable[..., Prepared]] = {
    Standardize: _scaled,
    MinMax: _scaled,
    RobustScale: _scaled,
    Bucketize: _bucketized,
    Impute: _imputed,
    OneHot: _one_hot,
    Ordinal: _ordinal,
}
