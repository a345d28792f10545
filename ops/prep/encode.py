"""Encoding categories: OneHot as indicators, Ordinal as their numbers in sorted order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import HeadwaterError, ParameterError, TypeMismatchError
from ..backend import Array, array_namespace, from_arrays, one_hot, to_host
from .categories import Categories
from .fit import kind_of
from .step import Step, missing

#: codes that stand for no category
_UNSEEN, _MISSING = -1, -2
_FLOATS = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64(), "int8": pa.int8()}


class _Encode(Step):
    """Finds the code of each value: its place among the categories, then others, then nulls."""

    takes = "strings, integers, booleans, dates, decimals and floats"

    def accepts(self, type: pa.DataType) -> bool:
        return kind_of(type) is not None

    def advice(self, type: pa.DataType) -> str:
        return "Cast it to a string first."

    def counted(self) -> tuple[str, ...]:
        return () if self.options["categories"] is not None else self.columns

    def prepare(self, state: pa.Table) -> Categories | None:
        return None if self.options["categories"] is not None else Categories.of_counts(state)

    def _check_categories(self) -> None:
        declared = self.options["categories"]
        if declared is None:
            return
        if not isinstance(declared, Mapping) or set(declared) != set(self.columns):
            raise ParameterError(
                f"{self.name}(categories=...): give a dict with the values of every column, as "
                f"categories={{{self.columns[0]!r}: ['a', 'b']}}. The columns are {list(self.columns)}, "
                f"and this is {declared!r}."
            )
        for name, values in declared.items():
            if len(set(values)) < len(values) or not values or None in values:
                raise ParameterError(
                    f"{self.name}(categories=...): {name!r} needs values that differ, none of them None; "
                    f"this is {list(values)}. What nulls become is said by nulls=..."
                )
        self.options["categories"] = {name: list(values) for name, values in declared.items()}

    def _values(self, name: str, type: pa.DataType, prepared: Categories | None) -> pa.Array:
        if prepared is not None:
            return prepared.values(name, type, str(self))
        values = self.options["categories"][name]
        try:
            return pa.array(values, type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise TypeMismatchError(
                f"{self}: the column {name!r} is {type}, and its categories {values!r} aren't. "
                "Give values of its type."
            ) from error

    def _codes(self, name: str, column: pa.ChunkedArray, values: pa.Array) -> np.ndarray:
        """The code of each row, shape (rows,), int64; _UNSEEN or _MISSING where the policy gives none."""
        codes = pc.index_in(column, value_set=values).cast(pa.int64()).fill_null(_UNSEEN).to_numpy()
        absent = missing(column).to_numpy()
        if (codes == _UNSEEN).any():
            codes = np.where(absent, self._missing_code(len(values)), codes)
            self._check_unseen(name, column, codes, values)
            if self.options["unseen"] == "other":
                codes = np.where(codes == _UNSEEN, len(values), codes)
        if absent.any() and self.options["nulls"] == "error":
            self.refuse_missing(name, column, "Impute it first, or write nulls='category'.")
        return codes

    def _missing_code(self, count: int) -> int:
        if self.options["nulls"] == "category":
            return count + (self.options["unseen"] == "other")
        return _MISSING

    def _check_unseen(self, name: str, column: pa.ChunkedArray, codes: np.ndarray, values: pa.Array) -> None:
        unseen = codes == _UNSEEN
        if self.options["unseen"] != "error" or not unseen.any():
            return
        row = int(np.flatnonzero(unseen)[0])
        known = ", ".join(map(repr, values[:10].to_pylist())) + (", ..." if len(values) > 10 else "")
        where = (
            "in the rows it was fitted on" if self.options["categories"] is None else "among its categories"
        )
        raise HeadwaterError(
            f"{self}: the value {column[row].as_py()!r} of {name!r} isn't {where} ({known or 'none'}). "
            f"{int(unseen.sum())} of {len(column)} rows have such values. Write "
            f"unseen={self._unseen_choices[1]!r} or unseen='other' to let them pass."
        )

    _unseen_choices: tuple[str, ...] = ()


class OneHot(_Encode):
    """Encode categories as indicators: 1 where a row has the value, else 0.

    As scikit-learn's ``OneHotEncoder``. With ``categories`` declared, a column becomes one column for
    each value, named ``borough=Queens``, and what is known of the output is known before anything
    runs. Without, the values are those of the rows fitted on, in ascending order, and the column
    becomes one column of vectors (lists, all of one length), as in Spark ML.

    Args:
        columns: columns of strings, integers, booleans, dates, decimals or floats.
        categories: dict of column to its values, in the order the output shall have.
        unseen: what other values become: "error", "ignore" (all zeros) or "other" (one more indicator).
        nulls: what null and NaN become: "error", "ignore" (all zeros) or "category" (one more
            indicator, the last).
        drop_first: leave the first value's indicator out.
        dtype: of the indicators: "float32", "float64", "float16" or "int8".

    Raises:
        ParameterError: an unknown policy or dtype, or categories that aren't a dict of distinct values.

    Example:
        >>> import headwater as hw
        >>> rows = hw.from_arrow({"x": ["b", "a", "b"]})
        >>> prep = hw.prep.OneHot("x", categories={"x": ["a", "b"]})
        >>> prep.fit(rows).transform(rows).columns
        ['x=a', 'x=b']
    """

    _unseen_choices = ("error", "ignore", "other")

    def __init__(
        self,
        *columns: str,
        categories: Mapping[str, Sequence[Any]] | None = None,
        unseen: Literal["error", "ignore", "other"] = "error",
        nulls: Literal["error", "ignore", "category"] = "error",
        drop_first: bool = False,
        dtype: str = "float32",
    ):
        super().__init__(
            columns, categories=categories, unseen=unseen, nulls=nulls, drop_first=drop_first, dtype=dtype
        )
        self.choice("unseen", self._unseen_choices)
        self.choice("nulls", ("error", "ignore", "category"))
        self.choice("dtype", tuple(_FLOATS))
        self._check_categories()

    def fields(self, field: pa.Field) -> list[pa.Field]:
        if self.options["categories"] is None:
            return [pa.field(field.name, pa.list_(self._dtype))]
        self._values(field.name, field.type, None)
        return [pa.field(name, self._dtype) for name in self._names(field.name)]

    def writes(self) -> set[str]:
        declared = self.options["categories"] or {}
        return {*self.columns, *(made for name in declared for made in self._names(name))}

    def convert(self, name: str, column: pa.ChunkedArray, prepared: Categories | None) -> Sequence[pa.Array]:
        values = self._values(name, column.type, prepared)
        xp = array_namespace()
        codes = xp.asarray(self._codes(name, column, values))
        width = len(values) + self._extra
        if prepared is None:
            return [self._indicator(codes == code) for code in range(self._skip, width)]
        width = max(0, width - self._skip)
        matrix = one_hot(codes - self._skip, width, self._dtype.to_pandas_dtype(), xp)
        offsets = pa.array(np.arange(len(column) + 1, dtype=np.int32) * np.int32(width))
        return [pa.ListArray.from_arrays(offsets, from_arrays(matrix.reshape(-1), type=self._dtype))]

    @property
    def _dtype(self) -> pa.DataType:
        return _FLOATS[self.options["dtype"]]

    @property
    def _extra(self) -> int:
        return (self.options["unseen"] == "other") + (self.options["nulls"] == "category")

    @property
    def _skip(self) -> int:
        return int(self.options["drop_first"])

    def _names(self, name: str) -> list[str]:
        labels = [str(value) for value in self.options["categories"][name]]
        labels += ["other"] if self.options["unseen"] == "other" else []
        labels += ["null"] if self.options["nulls"] == "category" else []
        return [f"{name}={label}" for label in labels[self._skip :]]

    def _indicator(self, hits: Array) -> pa.Array:
        return from_arrays(to_host(hits).astype(self._dtype.to_pandas_dtype()), type=self._dtype)


class Ordinal(_Encode):
    """Encode categories as integers: 0 for the first value in ascending order, 1 for the next, …

    As scikit-learn's ``OrdinalEncoder``, but int64.

    Args:
        columns: columns of strings, integers, booleans, dates, decimals or floats.
        categories: dict of column to its values, in order; None takes those of the rows fitted on,
            ascending.
        unseen: what other values become: "error", "null", or "other" (the number of values).
        nulls: what null and NaN become: "keep" (null), "error", or "category" (the highest code, after
            that of "other").

    Raises:
        ParameterError: an unknown policy, or categories that aren't a dict of distinct values.

    Example:
        >>> import headwater as hw
        >>> rows = hw.from_arrow({"x": ["b", "a", None]})
        >>> hw.prep.Ordinal("x").fit(rows).transform(rows).compute(hw.Session("inline")).to_pydict()
        {'x': [1, 0, None]}
    """

    _unseen_choices = ("error", "null", "other")

    def __init__(
        self,
        *columns: str,
        categories: Mapping[str, Sequence[Any]] | None = None,
        unseen: Literal["error", "null", "other"] = "error",
        nulls: Literal["keep", "error", "category"] = "keep",
    ):
        super().__init__(columns, categories=categories, unseen=unseen, nulls=nulls)
        self.choice("unseen", self._unseen_choices)
        self.choice("nulls", ("keep", "error", "category"))
        self._check_categories()

    def fields(self, field: pa.Field) -> list[pa.Field]:
        if self.options["categories"] is not None:
            self._values(field.name, field.type, None)
        return [pa.field(field.name, pa.int64())]

    def convert(self, name: str, column: pa.ChunkedArray, prepared: Categories | None) -> Sequence[pa.Array]:
        codes = self._codes(name, column, self._values(name, column.type, prepared))
        return [from_arrays(codes, codes < 0)]
