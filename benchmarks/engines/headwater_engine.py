"""Headwater: a local session of one-thread workers, with everything else as it is by default."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from workloads import (
    CLUSTERS,
    DISTINCT_KEYS,
    ENCODED,
    FEATURE_COLUMNS,
    FEATURE_KEYS,
    GRADIENT_STEPS,
    LABEL,
    LLOYD_ITERATIONS,
    NOOP_PARTITIONS,
    POINT_COLUMNS,
    Q1_SHIPPED_UNTIL,
    Q3_DAY,
    Q3_SEGMENT,
    Q5_FROM,
    Q5_REGION,
    Q5_TO,
    Q6_DISCOUNT,
    Q6_FROM,
    Q6_QUANTITY,
    Q6_TO,
    Q9_COLOR,
    Q18_QUANTITY,
    RATE,
    REPARTITION_KEY,
    REPARTITION_PARTS,
    SORT_KEYS,
    STANDARDIZED,
    TRAIN_SHARE,
)

import headwater as hw
from headwater import Dataset, Expr, col

from .protocol import Inputs, Job

# -- TPC-H -------------------------------------------------------------------------------------------------------------


def _read(inputs: Inputs, name: str) -> Dataset:
    return hw.read_parquet(inputs.table(name))


def _double(name: str) -> Expr:
    return col(name).cast("float64")


def _revenue() -> Expr:
    return _double("l_extendedprice") * (1 - _double("l_discount"))


def q1(inputs: Inputs) -> Dataset:
    """Pricing summary report."""
    return (
        _read(inputs, "lineitem")
        .filter(col("l_shipdate") <= Q1_SHIPPED_UNTIL)
        .select(
            "l_returnflag",
            "l_linestatus",
            qty=_double("l_quantity"),
            price=_double("l_extendedprice"),
            disc=_double("l_discount"),
            disc_price=_revenue(),
            charge=_revenue() * (1 + _double("l_tax")),
        )
        .group_by("l_returnflag", "l_linestatus")
        .agg(
            sum_qty=hw.sum("qty"),
            sum_base_price=hw.sum("price"),
            sum_disc_price=hw.sum("disc_price"),
            sum_charge=hw.sum("charge"),
            avg_qty=hw.mean("qty"),
            avg_price=hw.mean("price"),
            avg_disc=hw.mean("disc"),
            count_order=hw.count(),
        )
        .sort("l_returnflag", "l_linestatus")
    )


def q3(inputs: Inputs) -> Dataset:
    """Shipping priority."""
    customer = _read(inputs, "customer").filter(col("c_mktsegment") == Q3_SEGMENT)
    orders = _read(inputs, "orders").filter(col("o_orderdate") < Q3_DAY)
    items = _read(inputs, "lineitem").filter(col("l_shipdate") > Q3_DAY)
    return (
        items.join(
            orders.join(customer, left_on="o_custkey", right_on="c_custkey", how="semi"),
            left_on="l_orderkey",
            right_on="o_orderkey",
        )
        .group_by("l_orderkey", "o_orderdate", "o_shippriority")
        .agg(revenue=_revenue().sum())
        .select("l_orderkey", "revenue", "o_orderdate", "o_shippriority")
        .sort("revenue", "o_orderdate", descending=[True, False])
        .limit(10)
    )


def q5(inputs: Inputs) -> Dataset:
    """Local supplier volume."""
    region = _read(inputs, "region").filter(col("r_name") == Q5_REGION)
    nation = _read(inputs, "nation").join(region, left_on="n_regionkey", right_on="r_regionkey", how="semi")
    supplier = _read(inputs, "supplier").join(nation, left_on="s_nationkey", right_on="n_nationkey")
    orders = _read(inputs, "orders").filter((col("o_orderdate") >= Q5_FROM) & (col("o_orderdate") < Q5_TO))
    return (
        _read(inputs, "lineitem")
        .join(
            orders.join(_read(inputs, "customer"), left_on="o_custkey", right_on="c_custkey"),
            left_on="l_orderkey",
            right_on="o_orderkey",
        )
        .join(supplier, left_on=["l_suppkey", "c_nationkey"], right_on=["s_suppkey", "s_nationkey"])
        .group_by("n_name")
        .agg(revenue=_revenue().sum())
        .sort("revenue", descending=True)
    )


def q6(inputs: Inputs) -> Dataset:
    """Forecasting revenue change."""
    return (
        _read(inputs, "lineitem")
        .filter(
            (col("l_shipdate") >= Q6_FROM)
            & (col("l_shipdate") < Q6_TO)
            & _double("l_discount").between(*Q6_DISCOUNT)
            & (col("l_quantity") < Q6_QUANTITY)
        )
        .agg(revenue=(_double("l_extendedprice") * _double("l_discount")).sum())
    )


def q9(inputs: Inputs) -> Dataset:
    """Product type profit measure."""
    part = _read(inputs, "part").filter(col("p_name").str.contains(Q9_COLOR))
    supplier = _read(inputs, "supplier").join(
        _read(inputs, "nation"), left_on="s_nationkey", right_on="n_nationkey"
    )
    partsupp = (
        _read(inputs, "partsupp")
        .join(part, left_on="ps_partkey", right_on="p_partkey", how="semi")
        .join(supplier, left_on="ps_suppkey", right_on="s_suppkey")
    )
    return (
        _read(inputs, "lineitem")
        .join(partsupp, left_on=["l_partkey", "l_suppkey"], right_on=["ps_partkey", "ps_suppkey"])
        .join(_read(inputs, "orders"), left_on="l_orderkey", right_on="o_orderkey")
        .group_by(nation=col("n_name"), o_year=col("o_orderdate").dt.year())
        .agg(sum_profit=(_revenue() - _double("ps_supplycost") * _double("l_quantity")).sum())
        .sort("nation", "o_year", descending=[False, True])
    )


def q18(inputs: Inputs) -> Dataset:
    """Large volume customers."""
    items = _read(inputs, "lineitem").select("l_orderkey", quantity=_double("l_quantity"))
    large = items.group_by("l_orderkey").agg(total=hw.sum("quantity")).filter(col("total") > Q18_QUANTITY)
    orders = (
        _read(inputs, "orders")
        .join(large, left_on="o_orderkey", right_on="l_orderkey", how="semi")
        .join(_read(inputs, "customer"), left_on="o_custkey", right_on="c_custkey")
    )
    return (
        items.join(orders, left_on="l_orderkey", right_on="o_orderkey")
        .group_by(
            "c_name", "o_orderdate", "o_totalprice", c_custkey=col("o_custkey"), o_orderkey=col("l_orderkey")
        )
        .agg(sum_qty=hw.sum("quantity"))
        .sort("o_totalprice", "o_orderdate", descending=[True, False])
        .limit(100)
    )


#: by the name of the workload
TPCH: dict[str, Callable[[Inputs], Dataset]] = {
    "tpch_q1": q1,
    "tpch_q3": q3,
    "tpch_q5": q5,
    "tpch_q6": q6,
    "tpch_q9": q9,
    "tpch_q18": q18,
}


# -- the others --------------------------------------------------------------------------------------------------------


def words(batch: pa.Table) -> pa.Table:
    """The words of lines, one a row."""
    lists = pc.split_pattern(batch["text"].combine_chunks(), " ")
    return pa.table({"word": lists.flatten()})


def same(batch: dict[str, Any]) -> dict[str, Any]:
    """Return what is given."""
    return batch


class Headwater:
    """A session, and the jobs on it."""

    def __init__(self, cores: int, scratch: Path):
        os.environ["HEADWATER_HOME"] = str(scratch)  # where journals go by default
        self._session = hw.Session(workers=cores, threads_per_worker=1, progress=False).start()
        self.workloads: dict[str, Job] = {
            **{name: self._query(query) for name, query in TPCH.items()},
            "sort": self.sort,
            "repartition": self.repartition,
            "distinct": self.distinct,
            "wordcount": self.wordcount,
            "features": self.features,
            "kmeans": self.kmeans,
            "logistic": self.logistic,
            "noop": self.noop,
        }
        self.missing: dict[str, str] = {}

    def versions(self) -> dict[str, str]:
        import dask

        return {"headwater": hw.__version__, "dask": dask.__version__, "pyarrow": pa.__version__}

    def close(self) -> None:
        self._session.close()

    def _query(self, query: Callable[[Inputs], Dataset]) -> Job:
        return lambda inputs, folder: query(inputs).compute(self._session)

    def _write(self, **datasets: Dataset) -> None:
        """Write Parquet, a folder for each dataset; what they have in common is computed once."""
        sinks = {
            path: dataset.write_parquet(path, compression="snappy") for path, dataset in datasets.items()
        }
        self._session.run(sinks).close()

    def sort(self, inputs: Inputs, folder: Path) -> None:
        self._write(**{str(folder): _read(inputs, "lineitem").sort(*SORT_KEYS)})

    def repartition(self, inputs: Inputs, folder: Path) -> None:
        items = _read(inputs, "lineitem").repartition(REPARTITION_PARTS, by=REPARTITION_KEY)
        self._write(**{str(folder): items})

    def distinct(self, inputs: Inputs, folder: Path) -> None:
        self._write(**{str(folder): _read(inputs, "lineitem").select(*DISTINCT_KEYS).distinct()})

    def wordcount(self, inputs: Inputs, folder: Path) -> pa.Table:
        lines = hw.read_text(str(inputs.text))
        counts = lines.map_batches(words, format="arrow").group_by("word").agg(count=hw.count())
        return counts.compute(self._session)

    def features(self, inputs: Inputs, folder: Path) -> None:
        items = _read(inputs, "lineitem").select(*FEATURE_KEYS, *STANDARDIZED, *ENCODED)
        chain = hw.prep.Standardize(*STANDARDIZED) | hw.prep.Ordinal(*ENCODED)
        rows = chain.fit(items).transform(items)
        train, test = rows.split(TRAIN_SHARE, 1 - TRAIN_SHARE, by="l_orderkey", seed=0)
        self._write(**{str(folder / "train"): train, str(folder / "test"): test})

    def kmeans(self, inputs: Inputs, folder: Path) -> pa.Table:
        begin = pq.read_table(inputs.centers)
        centers = np.stack([begin[name].to_numpy() for name in POINT_COLUMNS], axis=1)
        model = hw.train(
            hw.read_parquet(str(inputs.points)),
            features=POINT_COLUMNS,
            objective=hw.objectives.KMeans(CLUSTERS, centers, max_iterations=LLOYD_ITERATIONS, tolerance=0.0),
            dtype="float64",
        )
        found = model.params(self._session)["centers"]
        return pa.table(dict(zip(POINT_COLUMNS, found.T.copy())))

    def logistic(self, inputs: Inputs, folder: Path) -> pa.Table:
        """A batch of all rows makes plain gradient descent of stochastic."""
        samples = hw.read_parquet(str(inputs.samples))
        model = hw.train(
            samples,
            target=LABEL,
            features=FEATURE_COLUMNS,
            objective=hw.objectives.LogisticRegression(),
            optimizer=hw.optim.sgd(RATE),
            batch_size=pq.read_metadata(inputs.samples).num_rows,
            epochs=GRADIENT_STEPS,
            dtype="float64",
        )
        params = model.params(self._session)
        return pa.table({"weight": [*params["weights"], float(params["intercept"])]})

    def noop(self, inputs: Inputs, folder: Path) -> pa.Table:
        rows = hw.range(NOOP_PARTITIONS, partitions=NOOP_PARTITIONS).map_batches(same)
        return pa.table({"count": [rows.count(self._session)]})


def open_engine(cores: int, scratch: Path) -> Headwater:
    """Start a session."""
    return Headwater(cores, scratch)
