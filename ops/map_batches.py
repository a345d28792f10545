"""MapBatches: a user function over batches of rows, as NumPy or CuPy arrays or an Arrow table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ..errors import TypeMismatchError, UserFunctionError, did_you_mean
from .backend import array_namespace
from .batches import column_type, length_of, to_arrays, to_column
from .expressions.types import parse_type
from .kernel import MORSEL_ROWS, Broadcast, Context, Kernel, Stream
from .morsels import rechunk
from .node import Node
from .schema import canonical_schema, canonical_type
from .user_functions import call, check_picklable, own_traceback, sample_row

#: what a function gets and gives: NumPy arrays, an Arrow table, or arrays of the device the stage runs on
BatchFormat = Literal["numpy", "arrow", "device"]

__all__ = ["BatchFormat", "MapBatches", "MapBatchesKernel", "check_picklable", "infer_output"]


@dataclass(frozen=True, eq=False, repr=False)
class MapBatches(Node):
    """Apply a function to batches of each partition.

    Attributes:
        input: the rows.
        function: takes and returns a dict of arrays, or an Arrow table; may return another number of rows.
        format: "numpy" (a dict of arrays), "device" (a dict of CuPy's arrays where the stage runs on a GPU, of
            NumPy's elsewhere) or "arrow".
        output: the declared or inferred output schema, canonical.
        batch_rows: rows in a batch, the partition's last excepted; None takes 131,072.
        same_length: the function must return as many rows as it got.
        deterministic: False says that the same rows may give other results (see lineage recovery).
    """

    input: Node
    function: Callable[[Any], Any]
    output: pa.Schema
    format: BatchFormat = "numpy"
    batch_rows: int | None = None
    same_length: bool = False
    deterministic: bool = True

    def __post_init__(self) -> None:
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> MapBatches:
        return MapBatches(
            inputs[0],
            self.function,
            self.output,
            self.format,
            self.batch_rows,
            self.same_length,
            self.deterministic,
        )

    def derive_schema(self) -> pa.Schema:
        return self.output

    def parameters(self) -> Any:
        return (self.function, self.output, self.format, self.batch_rows, self.same_length)

    @property
    def name(self) -> str:
        """The user function's name."""
        return getattr(self.function, "__qualname__", type(self.function).__name__)

    def describe(self) -> str:
        return self.name


@dataclass(frozen=True)
class MapBatchesKernel(Kernel):
    """Calls a user function on batches cut at fixed rows, and checks what it gives.

    Attributes:
        function, output, format, batch_rows, same_length, deterministic: as in `MapBatches`.
        name: the function's, for errors.
    """

    function: Callable[[Any], Any]
    output: pa.Schema
    format: BatchFormat
    batch_rows: int | None
    same_length: bool
    name: str
    deterministic: bool = True

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        label = f"map_batches({self.name})"
        for table in rechunk(inputs[0], self.batch_rows or MORSEL_ROWS):
            xp = array_namespace() if self.format == "device" else np
            batch = table if self.format == "arrow" else to_arrays(table, xp)
            result = call(self.function, batch, label, table, context)
            try:
                rows = _checked(result, self.output, self.format)
                if self.same_length and rows.num_rows != table.num_rows:
                    raise _Unfit(
                        f"returned {rows.num_rows} rows for {table.num_rows}, and was declared to keep their "
                        "number. Return one for each, or drop same_length=True."
                    )
            except _Unfit as problem:
                raise UserFunctionError(
                    f"{label} {problem}\nin partition {context.partition}; the batch's first row: "
                    f"{sample_row(table)}"
                ) from problem.__cause__
            yield rows


def declared_output(schema: pa.Schema | Mapping[str, Any]) -> pa.Schema:
    """Return the canonical schema that a user declares a function's output by.

    Args:
        schema: a schema, or column name to Arrow type or its name.

    Raises:
        ParameterError: there is no such type.
        TypeMismatchError: the schema is neither.

    Example:
        >>> declared_output({"total": "float64"}).types
        [DataType(double)]
    """
    if isinstance(schema, pa.Schema):
        return canonical_schema(schema)
    if not isinstance(schema, Mapping):
        raise TypeMismatchError(
            f"map_batches(schema={schema!r}): give an Arrow schema or a dict, as {{'total': 'float64'}}."
        )
    return pa.schema([(name, parse_type(type)) for name, type in schema.items()])


def infer_output(
    function: Callable[[Any], Any],
    schema: pa.Schema,
    format: BatchFormat = "numpy",
    same_length: bool = False,
) -> pa.Schema:
    """Find a function's output schema by calling it on a batch without rows.

    Args:
        function: as in `MapBatches`.
        schema: of its input.
        format: "numpy", "device" or "arrow".
        same_length: whether it must return as many rows.

    Returns:
        The canonical output schema. A column of objects keeps the type of the input column of its name.

    Raises:
        UserFunctionError: the function raised, or its result doesn't tell the types.

    Example:
        >>> infer_output(lambda b: {"y": b["x"] * 0.5}, pa.schema([("x", pa.int64())])).field("y").type
        DataType(double)
    """
    name = getattr(function, "__qualname__", type(function).__name__)
    start = f"map_batches({name}): its output schema isn't declared"
    hint = "Declare it, as map_batches(f, schema={'name': 'string', 'total': 'float64'})."
    empty = schema.empty_table()
    try:
        result = function(empty if format == "arrow" else to_arrays(empty))
    except Exception as error:
        raise UserFunctionError(
            f"{start}, and on a batch without rows, from which it would be inferred, it raised "
            f"{type(error).__name__}: {error}\n{hint}\n{own_traceback(error)}"
        ) from error
    try:
        types = _types(result, schema, format)
        rows = _checked(result, types, format).num_rows
    except _Unfit as problem:
        raise UserFunctionError(f"{start}, and on a batch without rows it {problem}\n{hint}") from None
    if same_length and rows:
        raise UserFunctionError(
            f"map_batches({name}) returned {rows} rows for none; same_length=True forbids that."
        )
    return types


class _Unfit(Exception):
    """What is wrong with a result, to follow the function's name."""


def _types(result: Any, schema: pa.Schema, format: str) -> pa.Schema:
    if format == "arrow" and isinstance(result, pa.Table | pa.RecordBatch):
        return canonical_schema(result.schema)
    fields = []
    for name, value in _columns(result, format).items():
        if not isinstance(name, str):
            raise _Unfit(f"returned the column {name!r}. A column's name is a text.")
        try:
            type = column_type(value)
        except pa.ArrowNotImplementedError:
            raise _Unfit(f"returned {value.dtype} in {name!r}, which Arrow has no type for.") from None
        if type is None and name in schema.names:
            type = schema.field(name).type
        if type is None:
            raise _Unfit(f"returned objects in {name!r}, which don't tell their type.")
        fields.append(pa.field(name, canonical_type(type)))
    return pa.schema(fields)


def _checked(result: Any, schema: pa.Schema, format: str) -> pa.Table:
    """Bring a result to the declared schema, or say what doesn't fit."""
    columns = _columns(result, format)
    for name in schema.names:
        if name not in columns:
            raise _Unfit(f"returned no column {name!r}. {did_you_mean(name, map(str, columns))}")
    for name in columns:
        if name not in schema.names:
            raise _Unfit(
                f"returned the column {name!r}, which isn't declared. {did_you_mean(str(name), schema.names)}"
            )
    arrays = [_fit(name, columns[name], schema.field(name).type) for name in schema.names]
    lengths = {name: len(array) for name, array in zip(schema.names, arrays)}
    if len(set(lengths.values())) > 1:
        raise _Unfit(f"returned columns of different lengths: {lengths}.")
    return pa.Table.from_arrays(arrays, schema=schema)


def _columns(result: Any, format: str) -> Mapping[str, Any]:
    if format == "arrow":
        if isinstance(result, pa.Table | pa.RecordBatch):
            return dict(zip(result.schema.names, result.columns))
        raise _Unfit(f"returned a {type(result).__name__}, not a pyarrow.Table, with format='arrow'.")
    if isinstance(result, Mapping):
        return result
    raise _Unfit(
        f"returned a {type(result).__name__}, not a dict of arrays. Return {{'column': array}}, or use "
        "format='arrow' to return a table."
    )


def _fit(name: str, value: Any, type: pa.DataType) -> pa.Array:
    try:
        return to_column(value, type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        shape = "" if length_of(value) is not None else " (a single value)"
        got = getattr(value, "dtype", None) or getattr(value, "type", None) or value.__class__.__name__
        raise _Unfit(
            f"returned {got}{shape} in {name!r}, where {type} is declared, or was learnt from an empty batch: "
            f"{error}. Declare what it returns with schema=..."
        ) from error
