"""Bucketize: numbers to the bucket they fall in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ...errors import HeadwaterError, ParameterError
from ..aggregate import Aggregation
from ..backend import array_namespace, bucket_index, from_arrays, to_arrays, to_host
from .step import Step, missing, numbers, quantile, statistic


class Bucketize(Step):
    """Replace numbers by the bucket they fall in: an index, or a label.

    With ``boundaries`` b0 < b1 < … bucket 0 holds values below b0, bucket 1 those from b0 to below
    b1, and so on, as ``numpy.digitize``. With ``bins`` the boundaries cut the fitted minimum to
    maximum into that many equal parts, as scikit-learn's ``KBinsDiscretizer`` with strategy
    "uniform", or with ``strategy="quantile"`` into parts with about as many rows each; values beyond fall in the
    outermost bins. Numbers are compared as float64.

    Quantiles are off by up to a thousandth of themselves, see `approx_quantile`. Where many values are equal, so are
    some of the boundaries, and there are fewer buckets than asked for.

    Args:
        columns: columns of numbers.
        boundaries: ascending; n of them make n + 1 buckets.
        bins: how many buckets to cut what was fitted on into; either this or ``boundaries``.
        strategy: how ``bins`` are cut: "uniform", of equal width, or "quantile", of equally many rows.
        labels: a label for each bucket; the columns become strings. None gives int64 indices.
        nulls: what null and NaN become: "keep" (null), "error", or "category" (one more bucket, the last).

    Raises:
        ParameterError: boundaries that don't ascend, both or neither of boundaries and bins, or a wrong
            number of labels.

    Example:
        >>> import headwater as hw
        >>> rows = hw.from_arrow({"age": [7, 18, 70]})
        >>> prep = hw.prep.Bucketize("age", boundaries=[18, 65], labels=["child", "adult", "senior"])
        >>> prep.fit(rows).transform(rows).compute(hw.Session("inline")).to_pydict()
        {'age': ['child', 'adult', 'senior']}
    """

    def __init__(
        self,
        *columns: str,
        boundaries: Sequence[float] | None = None,
        bins: int | None = None,
        strategy: Literal["uniform", "quantile"] = "uniform",
        labels: Sequence[str] | None = None,
        nulls: Literal["keep", "error", "category"] = "keep",
    ):
        boundaries = None if boundaries is None else [float(edge) for edge in boundaries]
        labels = None if labels is None else list(labels)
        super().__init__(
            columns, boundaries=boundaries, bins=bins, strategy=strategy, labels=labels, nulls=nulls
        )
        self.choice("nulls", ("keep", "error", "category"))
        self.choice("strategy", ("uniform", "quantile"))
        if (boundaries is None) == (bins is None):
            raise ParameterError(f"{self}: give either boundaries=[...] or bins=n.")
        if bins is not None and (not isinstance(bins, int) or bins < 1):
            raise ParameterError(f"Bucketize(bins={bins!r}): give a whole number of buckets, 1 or more.")
        self._check_boundaries(boundaries or [])
        buckets = (bins or len(boundaries or ()) + 1) + (nulls == "category")
        if labels is not None and len(labels) != buckets:
            raise ParameterError(f"{self}: {len(labels)} labels for {buckets} buckets. Give one for each.")

    def _check_boundaries(self, boundaries: list[float]) -> None:
        if any(math.isnan(edge) for edge in boundaries) or sorted(set(boundaries)) != boundaries:
            raise ParameterError(f"Bucketize(boundaries={boundaries}): give ascending numbers, each once.")

    def statistics(self) -> tuple[Aggregation, ...]:
        if self.options["bins"] is None:
            return ()
        if self.options["strategy"] == "quantile":
            return tuple(a for name in self.columns for a in self._quantiles(name))
        return tuple(statistic(function, name) for name in self.columns for function in ("min", "max"))

    def fields(self, field: pa.Field) -> list[pa.Field]:
        return [pa.field(field.name, pa.int64() if self.options["labels"] is None else pa.string())]

    def prepare(self, state: pa.Table) -> dict[str, np.ndarray | None]:
        if self.options["bins"] is None:
            return dict.fromkeys(self.columns, np.array(self.options["boundaries"], dtype=np.float64))
        values = state.to_pylist()[0]
        if self.options["strategy"] == "quantile":
            return {
                name: self._distinct([values[a.name] for a in self._quantiles(name)]) for name in self.columns
            }
        return {name: self._edges(values[f"min({name})"], values[f"max({name})"]) for name in self.columns}

    def convert(self, name: str, column: pa.ChunkedArray, prepared: Any) -> Sequence[pa.Array]:
        absent, nulls = missing(column).to_numpy(), self.options["nulls"]
        if nulls == "error":
            self.refuse_missing(name, column, "Impute it first, or write nulls='category'.")
        boundaries = prepared[name]
        if boundaries is None:
            if not absent.all():
                raise HeadwaterError(
                    f"{self}: the rows it was fitted on have no value in {name!r}, so no range to cut. "
                    "Give boundaries=[...], or fit on rows that have values."
                )
            boundaries = np.zeros(0)
        xp = array_namespace()
        values, _ = to_arrays(numbers(column), xp)
        index = to_host(bucket_index(values, xp.asarray(boundaries), xp))
        if nulls == "category":
            index = np.where(absent, self.options["bins"] or len(boundaries) + 1, index)
        buckets = from_arrays(index, absent if nulls == "keep" and absent.any() else None)
        labels = self.options["labels"]
        return [buckets if labels is None else pa.array(labels, pa.string()).take(buckets)]

    def _quantiles(self, name: str) -> list[Aggregation]:
        """The smallest value, and where one bin ends and the next begins."""
        return [quantile(name, number / self.options["bins"]) for number in range(self.options["bins"])]

    def _distinct(self, quantiles: list[float | None]) -> np.ndarray | None:
        smallest, *edges = quantiles
        if smallest is None:
            return None
        return np.unique([edge for edge in edges if edge is not None and edge > smallest])

    def _edges(self, smallest: float | None, largest: float | None) -> np.ndarray | None:
        if smallest is None or largest is None:
            return None
        if smallest == largest:
            return np.zeros(0)
        return np.linspace(smallest, largest, self.options["bins"] + 1)[1:-1]
