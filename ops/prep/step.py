"""Step: one preparation of some columns, which a fit gives what it must know; Chain, steps in a row.

A step says what it wants to know of the rows it is fitted on (`statistics`, `counted`); how that is
found stands in ``fit.py``. Given it, a step changes rows one by one (it is a `TransformStep`).
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import HeadwaterError, ParameterError, TypeMismatchError, column_not_found, did_you_mean
from ..aggregate import Aggregation
from ..node import Node

if TYPE_CHECKING:
    from .fit import FittedNodes


class Step:
    """Base of the preparation steps.

    Subclasses take columns and options in ``__init__``, hand both to this one's, and give `accepts`,
    `fields`, `prepare` and `convert`, and what they want to know: `statistics` or `counted`.

    Attributes:
        columns: the columns it changes.
        options: all options by name, as given or by default.
    """

    #: what `accepts` takes, for errors
    takes = "numbers"

    def __init__(self, columns: Sequence[str], **options: Any):
        self.columns = tuple(columns)
        self.options = options
        if not columns or not all(isinstance(name, str) for name in columns):
            raise ParameterError(
                f"{self.name}({', '.join(map(repr, columns))}): give the names of columns, "
                f"as {self.name}('distance', 'fare')."
            )
        if len(set(columns)) < len(columns):
            raise ParameterError(f"{self.name}({', '.join(map(repr, columns))}): a column is named twice.")

    @property
    def name(self) -> str:
        """The step's name, as a user writes it."""
        return type(self).__name__

    # -- what a subclass gives -----------------------------------------------------------------------

    def accepts(self, type: pa.DataType) -> bool:
        """Whether the step can take a column of this type; numbers, unless a subclass says otherwise."""
        return is_number(type)

    def statistics(self) -> tuple[Aggregation, ...]:
        """What to aggregate of its columns, as numbers without NaN; made by `statistic`."""
        return ()

    def counted(self) -> tuple[str, ...]:
        """The columns whose values it wants counted."""
        return ()

    def fields(self, field: pa.Field) -> list[pa.Field]:
        """What a column becomes, in its place."""
        raise NotImplementedError

    def prepare(self, state: pa.Table) -> Any:
        """Turn the fitted state into what `convert` wants; once a process."""
        return None

    def convert(
        self, name: str, column: pa.ChunkedArray, prepared: Any
    ) -> Sequence[pa.Array | pa.ChunkedArray]:
        """Compute the columns that a column becomes, typed as `fields` says."""
        raise NotImplementedError

    # -- the TransformStep protocol --------------------------------------------------------------------

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """Return the schema after the step, or raise what is wrong with its columns."""
        for name in self.columns:
            if name not in schema.names:
                raise column_not_found(name, schema.names, str(self))
            if not self.accepts(schema.field(name).type):
                raise TypeMismatchError(
                    f"{self}: the column {name!r} is {schema.field(name).type}, and {self.name} takes "
                    f"{self.takes}. {self.advice(schema.field(name).type)}"
                )
        fields = [out for f in schema for out in (self.fields(f) if f.name in self.columns else [f])]
        names = [field.name for field in fields]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ParameterError(
                f"{self}: the output would have the column {duplicates[0]!r} twice. Rename or drop one first."
            )
        return pa.schema(fields)

    def apply(self, table: pa.Table, prepared: Any) -> pa.Table:
        """Change the step's columns in a table, row by row."""
        columns: list[pa.Array | pa.ChunkedArray] = []
        for name, column in zip(table.column_names, table.columns):
            columns += self.convert(name, column, prepared) if name in self.columns else [column]
        return pa.Table.from_arrays(columns, schema=self.output_schema(table.schema))

    def parameters(self) -> Any:
        return (self.columns, self.options)

    def describe(self) -> str:
        return str(self)

    # -- chains ------------------------------------------------------------------------------------------

    def __or__(self, other: Step | Chain) -> Chain:
        return Chain((self,)) | other

    def fit(self, dataset: Any) -> Any:
        """Fit the step on a dataset, lazily; see `Chain.fit`."""
        return Chain((self,)).fit(dataset)

    def fit_nodes(self, input: Node) -> FittedNodes:
        """Declare the fit of this step alone; see `Chain.fit_nodes`."""
        return Chain((self,)).fit_nodes(input)

    # -- for subclasses ------------------------------------------------------------------------------------

    def advice(self, type: pa.DataType) -> str:
        """What to write for a column of a type that the step doesn't take."""
        return "Cast it to a number first, or encode it with OneHot or Ordinal."

    def choice(self, option: str, valid: Collection[str]) -> None:
        """Raise ParameterError if an option isn't one of the valid choices."""
        value = self.options[option]
        if value not in valid:
            raise ParameterError(f"{self.name}({option}={value!r}): {did_you_mean(str(value), valid)}")

    def refuse_missing(self, name: str, column: pa.ChunkedArray, instead: str) -> None:
        """Raise if a column has nulls or NaNs, naming how many and what to write instead."""
        count = pc.sum(missing(column)).as_py()
        if count:
            raise HeadwaterError(
                f"{self}: {count} of {len(column)} rows have no value in {name!r}, and nulls='error'. "
                f"{instead}"
            )

    def writes(self) -> set[str]:
        """The columns that may differ after the step; a subclass adds the ones it makes."""
        return set(self.columns)

    def __str__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        said = [f"{k}={v!r}" for k, v in self.options.items() if v != defaults[k].default]
        return f"{self.name}({', '.join([*map(repr, self.columns), *said])})"

    __repr__ = __str__


class Chain:
    """Preparation steps, one after another; made by ``|``.

    Attributes:
        steps: the steps, in order.

    Example:
        >>> from headwater.ops.prep import OneHot, Standardize
        >>> Standardize("distance") | OneHot("borough")
        Standardize('distance') | OneHot('borough')
    """

    def __init__(self, steps: Iterable[Step]):
        self.steps = tuple(steps)

    def __or__(self, other: Step | Chain) -> Chain:
        if not isinstance(other, Step | Chain):
            raise TypeMismatchError(
                f"{self} | {other!r}: a chain is made of steps, as Standardize('x') | OneHot('y')."
            )
        return Chain(self.steps + (other.steps if isinstance(other, Chain) else (other,)))

    def fit(self, dataset: Any) -> Any:
        """Fit the steps on a dataset, lazily: nothing runs until a result is asked for.

        Args:
            dataset: the rows to fit on; each step is fitted on what the steps before it make of them.

        Returns:
            A `headwater.FittedPrep`, whose ``transform(dataset)`` prepares any rows with these columns.

        Raises:
            ColumnNotFoundError, TypeMismatchError: a step names a column that it can't take.
        """
        fit = getattr(dataset, "_fit", None)
        if fit is None:
            raise TypeMismatchError(
                f"fit() takes a Dataset, not {type(dataset).__name__}. Write hw.from_pandas(df) and the like."
            )
        return fit(self)

    def fit_nodes(self, input: Node) -> FittedNodes:
        """Declare the fit.

        Args:
            input: the rows to fit on.

        Returns:
            For each step the node of its state. Steps that don't depend on each other share one pass
            over the rows for all their statistics, and one for all their value counts.
        """
        from .fit import fit_nodes

        return fit_nodes(self.steps, input)

    def __repr__(self) -> str:
        return " | ".join(map(str, self.steps))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and repr(self) == repr(other)

    __hash__ = None  # type: ignore[assignment]


#: relative error of quantiles that steps are fitted by
QUANTILE_ACCURACY = 0.001


def quantile(column: str, q: float) -> Aggregation:
    """Name a quantile; all those of a column come from one state.

    Example:
        >>> quantile("fare", 0.5).name
        'approx_quantile(fare, accuracy=0.001, q=0.5)'
    """
    return statistic("approx_quantile", column, accuracy=QUANTILE_ACCURACY, q=float(q))


def statistic(function: str, column: str, **options: Any) -> Aggregation:
    """Name an aggregation by what it is, so that steps that want the same one share it.

    Example:
        >>> statistic("var", "fare", ddof=0).name
        'var(fare, ddof=0)'
    """
    said = "".join(f", {k}={v!r}" for k, v in options.items())
    return Aggregation(f"{function}({column}{said})", function, column, tuple(options.items()))


def is_number(type: pa.DataType) -> bool:
    """Whether a type is one of numbers: integers, floats, decimals; booleans count as 0 and 1."""
    t = pa.types
    return t.is_integer(type) or t.is_floating(type) or t.is_decimal(type) or t.is_boolean(type)


def missing(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which rows have no value: null, or NaN in a column of floats."""
    return pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))


def numbers(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return a numeric column as float64."""
    if pa.types.is_float64(column.type):
        return column
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return column.cast(pa.float64(), safe=False)


def float_type(type: pa.DataType) -> pa.DataType:
    """The type of a numeric column once scaled: its own if it is a float, else float64."""
    return type if pa.types.is_floating(type) else pa.float64()
