"""Scaling numbers: Standardize to mean 0 and deviation 1, MinMax to a range, RobustScale by quantiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ...errors import HeadwaterError, ParameterError
from ..aggregate import Aggregation
from ..backend import array_namespace, from_arrays, rescale, standardize, to_arrays
from .step import Step, float_type, missing, numbers, quantile, statistic

_KEEP_OR_ERROR = ("keep", "error")


class _Scale(Step):
    """A number becomes a float: its own float type, or float64."""

    def fields(self, field: pa.Field) -> list[pa.Field]:
        return [pa.field(field.name, float_type(field.type))]

    def convert(self, name: str, column: pa.ChunkedArray, prepared: Any) -> Sequence[pa.Array]:
        if self.options["nulls"] == "error":
            self.refuse_missing(name, column, "Impute it first, or write nulls='keep'.")
        scale = prepared[name]
        if scale is None and not missing(column).to_numpy().all():
            raise HeadwaterError(
                f"{self}: the rows it was fitted on have no value in {name!r}, so there is no scale for the "
                "values here. Drop the column, or fit on rows that have values."
            )
        values, mask = to_arrays(numbers(column), array_namespace())
        return [from_arrays(values if scale is None else scale(values), mask, float_type(column.type))]


class Standardize(_Scale):
    """Shift and scale numbers to mean 0 and standard deviation 1.

    As scikit-learn's ``StandardScaler``: nulls and NaN are left out of the fit and stay what they are;
    a column whose values are all equal is only shifted; integers, decimals and booleans become float64.

    Args:
        columns: columns of numbers.
        with_mean: subtract the mean.
        with_std: divide by the standard deviation.
        ddof: the variance is the sum of squares over ``n - ddof``.
        nulls: "keep" leaves null and NaN as they are; "error" refuses rows that have them.

    Raises:
        ParameterError: an option out of range.

    Example:
        >>> import headwater as hw
        >>> rows = hw.from_arrow({"x": [1.0, 3.0, None]})
        >>> hw.prep.Standardize("x").fit(rows).transform(rows).compute(hw.Session("inline")).to_pydict()
        {'x': [-1.0, 1.0, None]}
    """

    def __init__(
        self,
        *columns: str,
        with_mean: bool = True,
        with_std: bool = True,
        ddof: int = 0,
        nulls: Literal["keep", "error"] = "keep",
    ):
        super().__init__(columns, with_mean=with_mean, with_std=with_std, ddof=ddof, nulls=nulls)
        self.choice("nulls", _KEEP_OR_ERROR)
        if not isinstance(ddof, int) or ddof < 0:
            raise ParameterError(
                f"Standardize(ddof={ddof!r}): give a whole number, 0 or more; 1 is the sample's."
            )

    def statistics(self) -> tuple[Aggregation, ...]:
        return tuple(
            aggregation
            for name in self.columns
            for aggregation in (statistic("count", name), statistic("mean", name), self._variance(name))
        )

    def prepare(self, state: pa.Table) -> dict[str, Callable[[Any], Any] | None]:
        values = state.to_pylist()[0]
        return {name: self._scale(name, values) for name in self.columns}

    def _variance(self, name: str) -> Aggregation:
        return statistic("var", name, ddof=self.options["ddof"])

    def _scale(self, name: str, state: dict[str, Any]) -> Callable[[Any], Any] | None:
        count, mean, variance = (
            state[a.name] for a in (statistic("count", name), statistic("mean", name), self._variance(name))
        )
        if mean is None:
            return None
        shift = mean if self.options["with_mean"] else 0.0
        scale = (
            np.sqrt(variance) if self.options["with_std"] and not _is_constant(count, mean, variance) else 1.0
        )
        return lambda values: standardize(values, shift, scale)


def _is_constant(count: int, mean: float, variance: float | None) -> bool:
    """Whether a variance is only rounding; scikit-learn's bound, after Chan, Golub and LeVeque (1983)."""
    epsilon = np.finfo(np.float64).eps
    return variance is None or bool(variance <= count * epsilon * variance + (count * mean * epsilon) ** 2)


class MinMax(_Scale):
    """Scale numbers linearly so that the smallest and largest fitted on span a range.

    As scikit-learn's ``MinMaxScaler``: nulls and NaN are left out of the fit and stay what they are;
    a column whose values are all equal becomes the low end of the range.

    Args:
        columns: columns of numbers.
        range: (low, high) of the result.
        clip: bring values outside what was fitted on to the ends of the range.
        nulls: "keep" leaves null and NaN as they are; "error" refuses rows that have them.

    Raises:
        ParameterError: a range whose low isn't below its high.

    Example:
        >>> import headwater as hw
        >>> rows = hw.from_arrow({"x": [10, 20, 30]})
        >>> hw.prep.MinMax("x").fit(rows).transform(rows).compute(hw.Session("inline")).to_pydict()
        {'x': [0.0, 0.5, 1.0]}
    """

    def __init__(
        self,
        *columns: str,
        range: tuple[float, float] = (0.0, 1.0),
        clip: bool = False,
        nulls: Literal["keep", "error"] = "keep",
    ):
        super().__init__(columns, range=tuple(range), clip=clip, nulls=nulls)
        self.choice("nulls", _KEEP_OR_ERROR)
        if len(range) != 2 or not range[0] < range[1]:
            raise ParameterError(f"MinMax(range={range!r}): give (low, high) with low below high, as (0, 1).")

    def statistics(self) -> tuple[Aggregation, ...]:
        return tuple(statistic(function, name) for name in self.columns for function in ("min", "max"))

    def prepare(self, state: pa.Table) -> dict[str, Callable[[Any], Any] | None]:
        values = state.to_pylist()[0]
        return {name: self._scale(values[f"min({name})"], values[f"max({name})"]) for name in self.columns}

    def _scale(self, smallest: float | None, largest: float | None) -> Callable[[Any], Any] | None:
        if smallest is None or largest is None:
            return None
        low, high = self.options["range"]
        factor = (high - low) / ((largest - smallest) or 1.0)

        def scale(values: Any) -> Any:
            scaled = rescale(values, smallest, factor, low)
            return scaled.clip(low, high) if self.options["clip"] else scaled

        return scale


class RobustScale(_Scale):
    """Shift and scale numbers by quantiles, which few values far out don't change: to median 0 and a range of 1.

    As scikit-learn's ``RobustScaler``, with quantiles that are off by up to a thousandth of themselves, see
    `approx_quantile`: nulls and NaN are left out of the fit and stay what they are; a column whose two quantiles are
    equal is only shifted; integers, decimals and booleans become float64.

    Args:
        columns: columns of numbers.
        with_median: subtract the median.
        with_range: divide by the distance of the two quantiles.
        quantiles: the two, from 0 to 1, the lower one first.
        nulls: "keep" leaves null and NaN as they are; "error" refuses rows that have them.

    Raises:
        ParameterError: quantiles that aren't two ascending numbers from 0 to 1.

    Example:
        >>> import headwater as hw
        >>> rows = hw.from_arrow({"x": [0, 1, 2, 3, 1000]})
        >>> hw.prep.RobustScale("x").fit(rows).transform(rows).compute(hw.Session("inline")).to_pydict()
        {'x': [-1.0, -0.5, 0.0, 0.5, 499.0]}
    """

    def __init__(
        self,
        *columns: str,
        with_median: bool = True,
        with_range: bool = True,
        quantiles: tuple[float, float] = (0.25, 0.75),
        nulls: Literal["keep", "error"] = "keep",
    ):
        quantiles = tuple(quantiles)  # type: ignore[assignment]
        super().__init__(
            columns, with_median=with_median, with_range=with_range, quantiles=quantiles, nulls=nulls
        )
        self.choice("nulls", _KEEP_OR_ERROR)
        if len(quantiles) != 2 or not 0 <= quantiles[0] < quantiles[1] <= 1:
            raise ParameterError(
                f"RobustScale(quantiles={quantiles!r}): give two ascending numbers from 0 to 1, as (0.25, 0.75)."
            )

    def statistics(self) -> tuple[Aggregation, ...]:
        return tuple(
            dict.fromkeys(
                quantile(name, q) for name in self.columns for q in (0.5, *self.options["quantiles"])
            )
        )

    def prepare(self, state: pa.Table) -> dict[str, Callable[[Any], Any] | None]:
        values = state.to_pylist()[0]
        return {name: self._scale(name, values) for name in self.columns}

    def _scale(self, name: str, state: dict[str, Any]) -> Callable[[Any], Any] | None:
        low, median, high = (
            state[quantile(name, q).name]
            for q in (self.options["quantiles"][0], 0.5, self.options["quantiles"][1])
        )
        if median is None:
            return None
        shift = median if self.options["with_median"] else 0.0
        scale = ((high - low) or 1.0) if self.options["with_range"] else 1.0
        return lambda values: standardize(values, shift, scale)
