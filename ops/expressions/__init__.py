"""Expressions: values computed for each row from the columns of one table."""

from . import (  # noqa: F401  (they put their kernels into FUNCTIONS)
    arithmetic,
    comparison,
    conditional,
    metric_kernels,
    nested_kernels,
    numeric,
    string_kernels,
    temporal_kernels,
)
from .aggregates import (
    approx_median,
    approx_quantile,
    count,
    first,
    last,
    max,
    mean,
    min,
    n_unique,
    std,
    sum,
    var,
)
from .expr import Expr
from .functions import coalesce, col, concat_str, greatest, hash_unit, least, when
from .literals import lit

__all__ = [
    "Expr",
    "approx_median",
    "approx_quantile",
    "coalesce",
    "col",
    "concat_str",
    "count",
    "first",
    "greatest",
    "hash_unit",
    "last",
    "least",
    "lit",
    "max",
    "mean",
    "min",
    "n_unique",
    "std",
    "sum",
    "var",
    "when",
]
