"""Features: which columns of a dataset become which arrays of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import ParameterError, SchemaMismatchError, TypeMismatchError, column_not_found, did_you_mean
from .aligned import aligned_array, aligned_empty
from .feature_values import column_values, is_number, is_vector

#: (shape of a row, dtype) of each array of a batch
Layout = dict[str, tuple[tuple[int, ...], str]]

#: rows that are turned from columns into rows at once, so that what is written stays in the processor's cache
_TURNED_ROWS = 4096
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Features:
    """Which columns of a dataset become which arrays of a batch.

    Features are stacked into one array ``x``: a column for each number, as many as it is long for each vector.
    Where an objective declares ``columns``, each of these becomes an array of its own name instead.

    Attributes:
        names: of the features, in the order of ``x``; None takes all columns that nothing else names (see
            `resolved`).
        target: column that becomes ``y``; None if there is none.
        weight: column that becomes ``weight``, what each row counts; None counts all alike.
        columns: columns that an objective wants as arrays of their own; None stacks the features.
        dtype: of ``x``, ``y`` and ``weight``, and of columns of floats or decimals: "float32" or "float64".
            Whole numbers and booleans that are arrays of their own keep their type.
        allow_nan: let NaN pass, instead of raising where there is one. Nulls never pass.

    Example:
        >>> table = pa.table({"a": [1, 2], "v": [[3.0, 4.0], [5.0, 6.0]], "label": [0, 1]})
        >>> features = Features(target="label").resolved(table.schema)
        >>> features.names
        ('a', 'v')
        >>> features.to_arrays(table)["x"].tolist()
        [[1.0, 3.0, 4.0], [2.0, 5.0, 6.0]]
    """

    names: tuple[str, ...] | None = None
    target: str | None = None
    weight: str | None = None
    columns: tuple[str, ...] | None = None
    dtype: str = "float32"
    allow_nan: bool = False

    # -- at declaration --------------------------------------------------------------------------------

    def resolved(self, schema: pa.Schema, where: str = "train") -> Features:
        """Check against a schema, and name the features if nobody has.

        Args:
            schema: of the training rows.
            where: the method, for errors.

        Raises:
            HeadwaterError: see `check`.
        """
        chosen = self
        if self.columns is not None:
            chosen = replace(self, names=self.columns)
        elif self.names is None:
            taken = (self.target, self.weight)
            chosen = replace(self, names=tuple(name for name in schema.names if name not in taken))
        chosen.check(schema, where)
        return chosen

    def check(self, schema: pa.Schema, where: str = "train") -> None:
        """Raise what is wrong with the columns of a dataset.

        Args:
            schema: of the rows.
            where: the method, for errors.

        Raises:
            ColumnNotFoundError: a column that isn't there.
            TypeMismatchError: a column that can't be an array.
            ParameterError: the same column twice or in two roles, no features, an unknown dtype.
        """
        if self.dtype not in DTYPES:
            raise ParameterError(f"{where}(dtype={self.dtype!r}): {did_you_mean(self.dtype, DTYPES)}")
        names = self._feature_columns(schema)
        option = "features" if self.columns is None else "columns"
        for role, name in [
            *((option, name) for name in names),
            ("target", self.target),
            ("weight", self.weight),
        ]:
            if name is not None and name not in schema.names:
                raise column_not_found(name, schema.names, f"{where}({role}={name!r})")
        self._check_roles(names, option, where)
        for name in names:
            if is_vector(schema.field(name).type):
                continue
            self._check_number(schema.field(name), option, where)
        for role, name in (("target", self.target), ("weight", self.weight)):
            if name is not None:
                self._check_number(schema.field(name), role, where)

    def parameters(self) -> Any:
        """For the lineage key."""
        return (self.names, self.target, self.weight, self.columns, self.dtype, self.allow_nan)

    @property
    def required(self) -> tuple[str, ...]:
        """Every column that is read, once each; the names have to be resolved."""
        names = (*(self.columns or self.names or ()), self.target, self.weight)
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def inputs(self) -> Features:
        """What prediction needs: the same features, without target and weight."""
        return replace(self, target=None, weight=None)

    # -- shapes ---------------------------------------------------------------------------------------

    def widths(self, table: pa.Table, known: Mapping[str, int] | None = None) -> dict[str, int]:
        """Find how long the vectors of each vector column are, by its first row.

        Args:
            table: rows.
            known: what was found before.

        Returns:
            Width by column. A column of which nothing is known yet, as there are no rows, is left out.
        """
        found = dict(known or {})
        for name in self._feature_columns(table.schema):
            type = table.schema.field(name).type
            if name in found or not is_vector(type):
                continue
            if pa.types.is_fixed_size_list(type):
                found[name] = type.list_size
            else:
                first = next((len(value) for value in table[name] if value.is_valid), None)
                if first is not None:
                    found[name] = first
        return found

    def layout(self, schema: pa.Schema, widths: Mapping[str, int]) -> Layout:
        """Tell the shape of a row and the dtype of each array.

        Args:
            schema: of the rows.
            widths: of vector columns, as `widths` found them.

        Returns:
            By the array's name, as ``{"x": ((14,), "float32"), "y": ((), "float32")}``.

        Raises:
            ParameterError: a width isn't known.
        """
        layout: Layout = {}
        if self.columns is None:
            layout["x"] = ((len(self.feature_names(schema, widths)),), self.dtype)
        else:
            for name in self.columns:
                type = schema.field(name).type
                shape = (_width(name, type, widths),) if is_vector(type) else ()
                layout[name] = (shape, self._own_dtype(type))
        if self.target is not None:
            layout["y"] = ((), self.dtype)
        if self.weight is not None:
            layout["weight"] = ((), self.dtype)
        return layout

    def feature_names(self, schema: pa.Schema, widths: Mapping[str, int]) -> tuple[str, ...]:
        """Name each column of ``x``, or each number of the columns: ``fare``, ``pixels[0]``, ``pixels[1]``, …"""
        names: list[str] = []
        for name in self._feature_columns(schema):
            type = schema.field(name).type
            if is_vector(type):
                names += [f"{name}[{i}]" for i in range(_width(name, type, widths))]
            else:
                names.append(name)
        return tuple(names)

    # -- values ---------------------------------------------------------------------------------------

    def to_arrays(
        self, table: pa.Table, widths: Mapping[str, int] | None = None, first_row: int = 0
    ) -> dict[str, np.ndarray]:
        """Turn rows into the arrays of a batch.

        Args:
            table: the rows.
            widths: of vector columns; what isn't given is found in the rows.
            first_row: number of the first row, for errors.

        Returns:
            By name: ``x`` (rows, d), ``y`` and ``weight`` (rows,); or an array a column. They are contiguous and
            aligned, and read-only where nothing had to be copied. A vector column of unknown width, in a table
            without rows, has width 0.

        Raises:
            HeadwaterError: a null, NaN, vector of another length or negative weight; it names column and row.
        """
        found = self.widths(table, widths)
        if not table.num_rows:
            found = {**dict.fromkeys(table.column_names, 0), **found}
        schema, rows = table.schema, table.num_rows
        arrays: dict[str, np.ndarray] = {}
        if self.columns is None:
            arrays["x"] = self._stacked(table, found, first_row)
        else:
            for name in self.columns:
                values = self._values(table, name, found, first_row)
                arrays[name] = aligned_array(values, self._own_dtype(schema.field(name).type))
        for key, column in (("y", self.target), ("weight", self.weight)):
            if column is not None:
                arrays[key] = aligned_array(self._values(table, column, found, first_row), self.dtype)
        if self.weight is not None and rows and float(arrays["weight"].min()) < 0:
            row = int(np.argmax(arrays["weight"] < 0))
            raise ParameterError(
                f"train(weight={self.weight!r}): row {first_row + row} has the weight "
                f"{arrays['weight'][row]:g}, and weights are 0 or more."
            )
        return arrays

    # -- insides --------------------------------------------------------------------------------------

    def _feature_columns(self, schema: pa.Schema) -> tuple[str, ...]:
        if self.columns is not None:
            return self.columns
        if self.names is None:
            return tuple(name for name in schema.names if name not in (self.target, self.weight))
        return self.names

    def _own_dtype(self, type: pa.DataType) -> str:
        """The dtype of a column that is an array of its own."""
        item = type.value_type if is_vector(type) else type
        if pa.types.is_boolean(item) or pa.types.is_integer(item):
            return str(np.dtype(item.to_pandas_dtype()))
        return self.dtype

    def _stacked(self, table: pa.Table, widths: Mapping[str, int], first_row: int) -> np.ndarray:
        """Lay columns side by side. Blocks of rows, as a column's values lie a whole row apart in the result."""
        parts: list[tuple[slice | int, np.ndarray]] = []
        start = 0
        for name in self._feature_columns(table.schema):
            values = self._values(table, name, widths, first_row)
            width = values.shape[1] if values.ndim == 2 else 1
            parts.append((slice(start, start + width) if values.ndim == 2 else start, values))
            start += width
        if len(parts) == 1 and isinstance(parts[0][0], slice):
            return aligned_array(parts[0][1], self.dtype)
        x = aligned_empty((table.num_rows, start), self.dtype)
        for first in range(0, table.num_rows, _TURNED_ROWS):
            block, last = x[first : first + _TURNED_ROWS], first + _TURNED_ROWS
            for place, values in parts:
                block[:, place] = values[first:last]
        return x

    def _values(self, table: pa.Table, name: str, widths: Mapping[str, int], first_row: int) -> np.ndarray:
        role = "target" if name == self.target else "weight" if name == self.weight else "feature"
        return column_values(table, name, role, widths.get(name), first_row, self.allow_nan)

    def _check_roles(self, names: Sequence[str], option: str, where: str) -> None:
        if not names:
            raise ParameterError(f"{where}({option}=[]): no feature is left. Name at least one column.")
        if twice := [name for name in names if list(names).count(name) > 1]:
            raise ParameterError(f"{where}({option}={list(names)}): {twice[0]!r} is named twice.")
        if self.target is not None and self.target == self.weight:
            raise ParameterError(
                f"{where}(target={self.target!r}, weight={self.weight!r}): one column can't be both."
            )
        for role, name in (("target", self.target), ("weight", self.weight)):
            if name is not None and name in names:
                others = [other for other in names if other != name]
                raise ParameterError(
                    f"{where}({role}={name!r}): it is among the features too. Write {option}={others}."
                )
        if self.columns is not None and (reserved := {"y", "weight"} & set(names)):
            taken = [key for key, role in (("y", self.target), ("weight", self.weight)) if role is not None]
            if clash := sorted(reserved & set(taken)):
                raise ParameterError(
                    f"{where}(columns={list(names)}): the array {clash[0]!r} is the "
                    f"{'target' if clash[0] == 'y' else 'weight'}. Rename the column."
                )

    def _check_number(self, field: pa.Field, role: str, where: str) -> None:
        type = field.type
        if is_number(type):
            return
        said = f"{where}({role}=…): the column {field.name!r} is {type}"
        raise TypeMismatchError(f"{said}, and {_takes(role)}. {_advice(field, role, self.names is None)}")


def agreed_widths(found: Mapping[int, Mapping[str, int]]) -> dict[str, int]:
    """Put together what was found of vector columns in several parts of the rows.

    Args:
        found: widths by column, of each part by its number.

    Raises:
        SchemaMismatchError: two parts differ.

    Example:
        >>> agreed_widths({0: {"pixels": 4}, 1: {}})
        {'pixels': 4}
    """
    agreed: dict[str, int] = {}
    for part, widths in found.items():
        for name, width in widths.items():
            if agreed.setdefault(name, width) != width:
                other = next(p for p, known in found.items() if known.get(name) == agreed[name])
                raise SchemaMismatchError(
                    f"train: the vectors of {name!r} are {agreed[name]} long in part {other} of the rows, and "
                    f"{width} long in part {part}. A feature has one length: pad or cut it where it is made."
                )
    return agreed


def _width(name: str, type: pa.DataType, widths: Mapping[str, int]) -> int:
    if name in widths:
        return widths[name]
    if pa.types.is_fixed_size_list(type):
        return type.list_size
    raise ParameterError(f"how long the vectors of {name!r} are isn't known, as there are no rows.")


def _takes(role: str) -> str:
    if role in ("target", "weight"):
        return f"a {role} is a number"
    return "a feature is a number or a vector of numbers (a list of one length)"


def _advice(field: pa.Field, role: str, is_default: bool) -> str:
    t, type, name = pa.types, field.type, field.name
    if t.is_string(type) or t.is_large_string(type) or t.is_dictionary(type) or t.is_string_view(type):
        if role == "target":
            return f"Number its classes first with hw.prep.Ordinal({name!r})."
        advice = f"Encode it first with hw.prep.OneHot({name!r}) or hw.prep.Ordinal({name!r})"
    elif t.is_temporal(type):
        advice = f"Take numbers out of it first, as col({name!r}).dt.hour()"
    elif t.is_struct(type):
        advice = "Select its fields as columns first"
    elif t.is_null(type):
        advice = "It has no values at all; cast it or leave it out"
    elif is_vector(type):
        return f"Select one number of it, or declare columns={[name]} and take it as a feature."
    else:
        advice = "Turn it into numbers first, or leave it out"
    if role == "features" and is_default:
        return f"{advice}; or name the columns to use with features=[…]."
    return f"{advice}."
