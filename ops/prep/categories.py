"""Categories: the values of columns that a fit counted, in order, typed as the rows they meet."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import TypeMismatchError
from .fit import kind_of


class Categories:
    """For each column its values and how often each came; built once a process.

    Args:
        columns: name to (kind, values as text, counts).
    """

    def __init__(self, columns: dict[str, tuple[str, pa.Array, pa.Array]]):
        self._columns = columns
        self._typed: dict[tuple[str, pa.DataType], tuple[pa.Array, pa.Array]] = {}

    @classmethod
    def of_counts(cls, state: pa.Table) -> Categories:
        """Read a state of value counts (see ``fit.py``)."""
        columns = {}
        for name in pc.unique(state.column("column")).to_pylist():
            rows = state.filter(pc.equal(state.column("column"), name)).combine_chunks()
            kind = rows.column("kind")[0].as_py()
            columns[name] = (
                kind,
                rows.column("value").combine_chunks(),
                rows.column("count").combine_chunks(),
            )
        return cls(columns)

    def values(self, name: str, type: pa.DataType, step: str) -> pa.Array:
        """The values of a column in ascending order, as an array of a type.

        Args:
            name: the column.
            type: of the same kind as the column it was fitted on.
            step: for errors.

        Raises:
            TypeMismatchError: a type of another kind.
        """
        return self._sorted(name, type, step)[0]

    def most_frequent(self, name: str, type: pa.DataType, step: str) -> pa.Scalar:
        """The commonest value, the smallest of several; null if there is none."""
        values, counts = self._sorted(name, type, step)
        if not len(values):
            return pa.scalar(None, type)
        return values[pc.index(counts, pc.max(counts)).as_py()]

    def _sorted(self, name: str, type: pa.DataType, step: str) -> tuple[pa.Array, pa.Array]:
        if name not in self._columns:
            return pa.array([], type), pa.array([], pa.int64())
        if (name, type) not in self._typed:
            kind, texts, counts = self._columns[name]
            try:
                values = texts.cast(type) if kind == kind_of(type) else None
            except pa.ArrowInvalid:  # as 1000 in a column of int8
                values = None
            if values is None:
                raise TypeMismatchError(
                    f"{step}: it was fitted on {name!r} as {kind}, and those values don't fit the column "
                    f"here, which is {type}. Cast it first."
                )
            order = pc.sort_indices(values)
            self._typed[name, type] = (values.take(order), counts.take(order))
        return self._typed[name, type]
