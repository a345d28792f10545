"""Headwater: declarative dataflow for data preparation and training, on Dask.

Declare a pipeline with the ``read_*`` functions and the methods of `Dataset`; run it on a `Session`.

Each name is imported from its module when it is first used, so that ``import headwater`` costs next to nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from .lazy import lazy_names

if TYPE_CHECKING:
    from .errors import HeadwaterError
    from .model import Model, load_model
    from .ops import metrics, objectives, optim, prep
    from .ops.expressions import (
        Expr,
        approx_median,
        approx_quantile,
        coalesce,
        col,
        concat_str,
        count,
        first,
        greatest,
        hash_unit,
        last,
        least,
        lit,
        max,
        mean,
        min,
        n_unique,
        std,
        sum,
        var,
        when,
    )
    from .ops.training.program import EarlyStopping
    from .ops.training.train import AllReduce
    from .pipeline import Dataset, GroupedDataset
    from .planner.options import PlanOptions
    from .preparation import FittedPrep
    from .preparation import load as load_prep
    from .program import Pipeline, pipeline
    from .reading import (
        from_arrow,
        from_numpy,
        from_pandas,
        range,
        read_arrow,
        read_csv,
        read_json,
        read_parquet,
        read_text,
    )
    from .runtime.check import check
    from .runtime.check_report import CheckReport
    from .session import RunResult, Session
    from .training import train
    from .tuning import space
    from .tuning.methods import GridSearch, RandomSearch, SuccessiveHalving
    from .tuning.search import SearchResult, search
    from .version import __version__

__all__ = [
    "AllReduce",
    "CheckReport",
    "Dataset",
    "EarlyStopping",
    "Expr",
    "FittedPrep",
    "GridSearch",
    "GroupedDataset",
    "HeadwaterError",
    "Model",
    "Pipeline",
    "PlanOptions",
    "RandomSearch",
    "RunResult",
    "SearchResult",
    "Session",
    "SuccessiveHalving",
    "__version__",
    "approx_median",
    "approx_quantile",
    "check",
    "coalesce",
    "col",
    "concat_str",
    "count",
    "first",
    "from_arrow",
    "from_numpy",
    "from_pandas",
    "greatest",
    "hash_unit",
    "last",
    "least",
    "lit",
    "load_model",
    "load_prep",
    "max",
    "mean",
    "metrics",
    "min",
    "n_unique",
    "objectives",
    "optim",
    "pipeline",
    "prep",
    "range",
    "read_arrow",
    "read_csv",
    "read_json",
    "read_parquet",
    "read_text",
    "search",
    "space",
    "std",
    "sum",
    "train",
    "var",
    "when",
]

#: module to the names that it gives
_HOMES = {
    ".errors": ["HeadwaterError"],
    ".model": ["Model", "load_model"],
    ".ops.expressions": [
        *(
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
        ),
        *("lit", "max", "mean", "min", "n_unique", "std", "sum", "var", "when"),
    ],
    ".ops.training.program": ["EarlyStopping"],
    ".ops.training.train": ["AllReduce"],
    ".pipeline": ["Dataset", "GroupedDataset"],
    ".planner.options": ["PlanOptions"],
    ".preparation": ["FittedPrep", "load_prep=load"],
    ".program": ["Pipeline", "pipeline"],
    ".reading": [
        *("from_arrow", "from_numpy", "from_pandas", "range"),
        *("read_arrow", "read_csv", "read_json", "read_parquet", "read_text"),
    ],
    ".runtime.check": ["check"],
    ".runtime.check_report": ["CheckReport"],
    ".session": ["RunResult", "Session"],
    ".training": ["train"],
    ".tuning.methods": ["GridSearch", "RandomSearch", "SuccessiveHalving"],
    ".tuning.search": ["SearchResult", "search"],
    ".version": ["__version__"],
}
_MODULES = {
    **{name: f".{name}" for name in ("datasets", "errors", "lineage", "ops", "planner", "runtime", "tuning")},
    **{name: f".ops.{name}" for name in ("metrics", "objectives", "optim", "prep")},
    "space": ".tuning.space",
}


class _Package(ModuleType):
    """Keeps `pipeline` the decorator, where Python would put the module of that name when it is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "pipeline" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
if not TYPE_CHECKING:  # so that type checkers know the names above, and no others
    __getattr__, __dir__ = lazy_names(__name__, _HOMES, _MODULES)
