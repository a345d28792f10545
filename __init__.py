"""Headwater: declarative dataflow for data preparation and training, on Dask.

Declare a pipeline with the ``read_*`` functions and the methods of `Dataset`; run it on a `Session`.
"""

from __future__ import annotations

from .errors import HeadwaterError
from .model import Model, load_model
from .ops import metrics, objectives, optim, prep
from .ops.expressions import (
    Expr,
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
