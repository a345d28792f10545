"""GroupedDataset: what group_by gives, which agg makes a dataset of again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .desugaring import aggregate_node, named_expressions
from .ops.expressions import Expr
from .ops.expressions.aggregates import Aggregations

if TYPE_CHECKING:
    from .pipeline import Dataset


class GroupedDataset:
    """Rows grouped by keys; `agg` gives one row for each group."""

    def __init__(self, dataset: Dataset, keys: tuple[tuple[str, Expr], ...]):
        self._dataset = dataset
        self._keys = keys

    def agg(self, *aggregations: Expr, **named: Expr) -> Dataset:
        """Aggregate each group to one row.

        Args:
            aggregations: as ``col("x").sum()``; takes its column's name unless aliased.
            named: the same by output name; arithmetic on aggregations is allowed.

        Returns:
            A dataset with the keys, then the aggregations. Order is defined but not sorted.

        Raises:
            TypeMismatchError: a column whose type has no such aggregation.
        """
        exprs = named_expressions(aggregations, named, "agg")
        return type(self._dataset)(aggregate_node(self._dataset._readable(), self._keys, exprs))

    def __getattr__(self, name: str) -> Any:
        if name in Aggregations.__dict__:
            raise AttributeError(
                f"GroupedDataset has no {name}(). Write group_by(...).agg(col('x').{name}()), or hw.count() for rows."
            )
        raise AttributeError(f"GroupedDataset has no attribute {name!r}. Write group_by(...).agg(...) first.")

    def __repr__(self) -> str:
        return f"GroupedDataset by {[name for name, _ in self._keys]} of {self._dataset!r}"
