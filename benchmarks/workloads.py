"""The workloads of the benchmark: what each computes, and the constants that every engine shares.

Answers are compared by `answers`. Where a workload returns a table, column names count, the order of columns doesn't,
and numbers may come as any number type (decimals, floats and integers alike). Where it writes Parquet, files are
looked for in all sub-folders, names that begin with ``_`` or ``.`` left out, and a number in a name counts as a
number: ``part.2`` comes before ``part.10``. Files are compressed with Snappy, whatever the engine's own default.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Literal

# -- TPC-H: the parameters of the specification's validation runs ------------------------------------------------------

Q1_SHIPPED_UNTIL = datetime.date(1998, 9, 2)  # <=
Q3_SEGMENT, Q3_DAY = "BUILDING", datetime.date(1995, 3, 15)
Q5_REGION, Q5_FROM, Q5_TO = "ASIA", datetime.date(1994, 1, 1), datetime.date(1995, 1, 1)  # from <= day < to
Q6_FROM, Q6_TO = datetime.date(1994, 1, 1), datetime.date(1995, 1, 1)
Q6_DISCOUNT, Q6_QUANTITY = (0.05, 0.07), 24  # between, both included; <
Q9_COLOR = "green"  # p_name contains it
Q18_QUANTITY = 300  # sum(l_quantity) of an order >

#: columns of the answers, in rows ordered as the specification says
TPCH_COLUMNS = {
    "tpch_q1": (
        *("l_returnflag", "l_linestatus", "sum_qty", "sum_base_price", "sum_disc_price", "sum_charge"),
        *("avg_qty", "avg_price", "avg_disc", "count_order"),
    ),
    "tpch_q3": ("l_orderkey", "revenue", "o_orderdate", "o_shippriority"),
    "tpch_q5": ("n_name", "revenue"),
    "tpch_q6": ("revenue",),
    "tpch_q9": ("nation", "o_year", "sum_profit"),
    "tpch_q18": ("c_name", "c_custkey", "o_orderkey", "o_orderdate", "o_totalprice", "sum_qty"),
}

# -- exchanges ---------------------------------------------------------------------------------------------------------

SORT_KEYS = ("l_extendedprice", "l_orderkey", "l_linenumber")  # all ascending; unique together
REPARTITION_KEY, REPARTITION_PARTS = "l_orderkey", 32
DISTINCT_KEYS = ("l_partkey", "l_suppkey")

# -- feature pipeline --------------------------------------------------------------------------------------------------

#: each becomes (x - mean) / std over all rows, std of the population (divided by n), float64, under its own name
STANDARDIZED = ("l_quantity", "l_extendedprice", "l_discount", "l_tax")
#: each becomes the position of its value in the sorted list of its values over all rows, from 0; any integer type
ENCODED = ("l_returnflag", "l_shipinstruct", "l_shipmode")
#: kept as they are
FEATURE_KEYS = ("l_orderkey", "l_linenumber")
#: share of the orders whose rows go to ``train/``; the others' go to ``test/``. Any hash of l_orderkey will do
TRAIN_SHARE = 0.8

# -- training ----------------------------------------------------------------------------------------------------------

#: k-means: Lloyd's algorithm from given centers, which keep their order; squared Euclidean distance; no early end
POINT_COLUMNS = tuple(f"x{i:02}" for i in range(16))
CLUSTERS, LLOYD_ITERATIONS = 8, 10

#: logistic regression: the mean log loss over all rows, from zeros; each step subtracts RATE times the gradient
#: over all rows. No penalty. The intercept is trained like a weight.
FEATURE_COLUMNS = tuple(f"x{i:02}" for i in range(20))
LABEL = "label"
GRADIENT_STEPS, RATE = 20, 0.5

# -- scheduling --------------------------------------------------------------------------------------------------------

NOOP_PARTITIONS = 10_000


@dataclass(frozen=True)
class Workload:
    """One job.

    Args:
        name: as in the engines' ``workloads``.
        title: a few words for tables.
        what: what is computed, and what is returned or written.
        gives: "table" if the answer is returned, "files" if it is written.
    """

    name: str
    title: str
    what: str
    gives: Literal["table", "files"]


_ALL = (
    Workload("tpch_q1", "TPC-H Q1", "Pricing summary; columns TPCH_COLUMNS, decimals as doubles.", "table"),
    Workload("tpch_q3", "TPC-H Q3", "Shipping priority, the first 10 rows.", "table"),
    Workload("tpch_q5", "TPC-H Q5", "Local supplier volume.", "table"),
    Workload("tpch_q6", "TPC-H Q6", "Forecast of revenue change.", "table"),
    Workload("tpch_q9", "TPC-H Q9", "Product type profit.", "table"),
    Workload("tpch_q18", "TPC-H Q18", "Large volume customers, the first 100 rows.", "table"),
    Workload(
        "sort",
        "sort",
        "All 16 columns of lineitem by SORT_KEYS, in one file or several that follow each other in order.",
        "files",
    ),
    Workload(
        "repartition",
        "repartition",
        "All 16 columns of lineitem by hash of REPARTITION_KEY into REPARTITION_PARTS parts. A part is a file, or, if "
        "files lie in sub-folders, a sub-folder of any number of files.",
        "files",
    ),
    Workload(
        "distinct", "distinct", "The different pairs of DISTINCT_KEYS in lineitem, in any order.", "files"
    ),
    Workload(
        "wordcount",
        "word count",
        "How often each word occurs: columns `word` and `count`, in any order. Words of a line are separated by one "
        "space.",
        "table",
    ),
    Workload(
        "features",
        "features",
        "From lineitem: FEATURE_KEYS, STANDARDIZED and ENCODED columns, split by TRAIN_SHARE into the folders `train` "
        "and `test`.",
        "files",
    ),
    Workload(
        "kmeans",
        "k-means",
        "LLOYD_ITERATIONS iterations over `points` from `centers`: columns POINT_COLUMNS, a row for each center.",
        "table",
    ),
    Workload(
        "logistic",
        "logistic regression",
        "GRADIENT_STEPS steps over `samples`: one column `weight`, a row for each of FEATURE_COLUMNS, then the "
        "intercept.",
        "table",
    ),
    Workload(
        "noop",
        "10,000 no-ops",
        "A dataset of NOOP_PARTITIONS rows in as many partitions, through a Python function that returns what it is "
        "given, and counted: one row, column `count`.",
        "table",
    ),
)

#: all workloads, by name, in the order in which they run
WORKLOADS: dict[str, Workload] = {w.name: w for w in _ALL}
