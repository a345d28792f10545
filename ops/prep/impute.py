"""Impute: values in place of missing ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import HeadwaterError, ParameterError, TypeMismatchError
from ..aggregate import Aggregation
from .categories import Categories
from .fit import kind_of
from .step import Step, float_type, is_number, missing, quantile, statistic


class Impute(Step):
    """Replace nulls, and NaN in floats, by a value learned from the rows or given.

    As scikit-learn's ``SimpleImputer``; but the median is off by up to a thousandth of itself, as an exact one can't
    be merged from the parts of a distributed dataset, and of an even number of values it is the lower middle one.

    Args:
        columns: the columns to fill.
        strategy: "mean" or "median" (of numbers; integers become float64), "most_frequent" (the smallest of the
            commonest values) or "constant".
        fill_value: for "constant": one value, or a dict of column to value.
        indicator: add, after each column ``x``, a boolean column ``x_missing``.

    Raises:
        ParameterError: an unknown strategy; a constant without its value, or a value without "constant".

    Example:
        >>> import headwater as hw
        >>> rows = hw.from_arrow({"x": [1.0, 3.0, None]})
        >>> hw.prep.Impute("x").fit(rows).transform(rows).compute(hw.Session("inline")).to_pydict()
        {'x': [1.0, 3.0, 2.0]}
    """

    def __init__(
        self,
        *columns: str,
        strategy: Literal["mean", "median", "most_frequent", "constant"] = "mean",
        fill_value: Any = None,
        indicator: bool = False,
    ):
        super().__init__(columns, strategy=strategy, fill_value=fill_value, indicator=indicator)
        self.choice("strategy", ("mean", "median", "most_frequent", "constant"))
        if (strategy == "constant") != (fill_value is not None):
            raise ParameterError(
                f"{self}: strategy='constant' and fill_value go together, as "
                "Impute('x', strategy='constant', fill_value=0)."
            )
        for name in columns if isinstance(fill_value, Mapping) else ():
            if fill_value.get(name) is None:
                raise ParameterError(f"{self}: fill_value lacks {name!r}. Give each column a value.")

    @property
    def takes(self) -> str:  # type: ignore[override]
        if self._numeric:
            return "numbers"
        return "numbers, strings and dates" if self._strategy == "most_frequent" else "any type"

    def accepts(self, type: pa.DataType) -> bool:
        if self._numeric:
            return is_number(type)
        return self._strategy == "constant" or kind_of(type) is not None

    def advice(self, type: pa.DataType) -> str:
        return "Write strategy='constant' with a fill_value" + (
            ", or strategy='most_frequent'." if kind_of(type) else "."
        )

    def statistics(self) -> tuple[Aggregation, ...]:
        return tuple(self._middle(name) for name in self.columns) if self._numeric else ()

    def counted(self) -> tuple[str, ...]:
        return self.columns if self._strategy == "most_frequent" else ()

    def fields(self, field: pa.Field) -> list[pa.Field]:
        type = float_type(field.type) if self._numeric else field.type
        if self._strategy == "constant":
            self._constant(field.name, type)
        indicator = [pa.field(f"{field.name}_missing", pa.bool_())] if self.options["indicator"] else []
        return [pa.field(field.name, type), *indicator]

    def writes(self) -> set[str]:
        return {*self.columns, *(f"{name}_missing" for name in self.columns)}

    def prepare(self, state: pa.Table) -> Any:
        if self._numeric:
            return state.to_pylist()[0]
        return Categories.of_counts(state) if self._strategy == "most_frequent" else None

    def convert(
        self, name: str, column: pa.ChunkedArray, prepared: Any
    ) -> Sequence[pa.Array | pa.ChunkedArray]:
        absent = missing(column)
        type = float_type(column.type) if self._numeric else column.type
        filled = column if column.type == type else column.cast(type, safe=False)
        if pc.any(absent).as_py():
            filled = pc.if_else(absent, self._value(name, type, prepared), filled)
        return [filled, absent] if self.options["indicator"] else [filled]

    @property
    def _strategy(self) -> str:
        return self.options["strategy"]

    @property
    def _numeric(self) -> bool:
        """Whether what is filled in is computed from numbers."""
        return self._strategy in ("mean", "median")

    def _middle(self, name: str) -> Aggregation:
        return statistic("mean", name) if self._strategy == "mean" else quantile(name, 0.5)

    def _value(self, name: str, type: pa.DataType, prepared: Any) -> pa.Scalar:
        if self._strategy == "constant":
            return self._constant(name, type)
        if self._numeric:
            value = pa.scalar(prepared[self._middle(name).name], pa.float64()).cast(type)
        else:
            value = prepared.most_frequent(name, type, str(self))
        if not value.is_valid:
            raise HeadwaterError(
                f"{self}: the rows it was fitted on have no value in {name!r}, so there is none to fill in. "
                "Write strategy='constant' with a fill_value, or drop the column."
            )
        return value

    def _constant(self, name: str, type: pa.DataType) -> pa.Scalar:
        given = self.options["fill_value"]
        value = given[name] if isinstance(given, Mapping) else given
        try:
            return pa.scalar(value, type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise TypeMismatchError(
                f"{self}: the column {name!r} is {type}, and can't hold {value!r}. Give a value of its type."
            ) from error
