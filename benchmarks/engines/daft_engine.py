"""Daft: lazy queries on its native runner; NumPy on the columns where something is trained."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from workloads import (
    DISTINCT_KEYS,
    ENCODED,
    FEATURE_COLUMNS,
    FEATURE_KEYS,
    LABEL,
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
    REPARTITION_KEY,
    REPARTITION_PARTS,
    SORT_KEYS,
    STANDARDIZED,
    TRAIN_SHARE,
)

from . import numpy_training
from .protocol import Inputs, Job


class Daft:
    """Daft, imported once what it reads from the environment is set."""

    def __init__(self, cores: int):
        self._cores = cores
        os.environ["DAFT_ANALYTICS_ENABLED"] = "0"
        os.environ["DAFT_PROGRESS_BAR"] = "0"
        import daft

        daft.set_runner_native(num_threads=cores)
        self.daft: Any = daft
        self.workloads: dict[str, Job] = {
            "tpch_q1": self.q1,
            "tpch_q3": self.q3,
            "tpch_q5": self.q5,
            "tpch_q6": self.q6,
            "tpch_q9": self.q9,
            "tpch_q18": self.q18,
            "sort": self.sort,
            "repartition": self.repartition,
            "distinct": self.distinct,
            "wordcount": self.wordcount,
            "features": self.features,
            "kmeans": self.kmeans,
            "logistic": self.logistic,
        }
        self.missing = {"noop": "its native runner has no partitions"}

    def versions(self) -> dict[str, str]:
        return {"daft": self.daft.__version__}

    def close(self) -> None:
        pass

    def _read(self, inputs: Inputs, name: str) -> Any:
        return self.daft.read_parquet(inputs.plain_table(name))  # it doesn't read string views

    def _double(self, name: str) -> Any:
        return self.daft.col(name).cast(self.daft.DataType.float64())

    def _revenue(self) -> Any:
        return self._double("l_extendedprice") * (1 - self._double("l_discount"))

    # -- TPC-H -------------------------------------------------------------------------------------

    def q1(self, inputs: Inputs, folder: Path) -> pa.Table:
        col = self.daft.col
        return (
            self._read(inputs, "lineitem")
            .where(col("l_shipdate") <= Q1_SHIPPED_UNTIL)
            .select(
                "l_returnflag",
                "l_linestatus",
                self._double("l_quantity").alias("qty"),
                self._double("l_extendedprice").alias("price"),
                self._double("l_discount").alias("disc"),
                self._revenue().alias("disc_price"),
                (self._revenue() * (1 + self._double("l_tax"))).alias("charge"),
            )
            .groupby("l_returnflag", "l_linestatus")
            .agg(
                col("qty").sum().alias("sum_qty"),
                col("price").sum().alias("sum_base_price"),
                col("disc_price").sum().alias("sum_disc_price"),
                col("charge").sum().alias("sum_charge"),
                col("qty").mean().alias("avg_qty"),
                col("price").mean().alias("avg_price"),
                col("disc").mean().alias("avg_disc"),
                col("qty").count("all").alias("count_order"),
            )
            .sort(["l_returnflag", "l_linestatus"])
            .to_arrow()
        )

    def q3(self, inputs: Inputs, folder: Path) -> pa.Table:
        col = self.daft.col
        customer = self._read(inputs, "customer").where(col("c_mktsegment") == Q3_SEGMENT)
        orders = self._read(inputs, "orders").where(col("o_orderdate") < Q3_DAY)
        items = self._read(inputs, "lineitem").where(col("l_shipdate") > Q3_DAY)
        return (
            customer.join(orders, left_on="c_custkey", right_on="o_custkey")
            .join(items, left_on="o_orderkey", right_on="l_orderkey")
            .with_column("revenue", self._revenue())
            .groupby("o_orderkey", "o_orderdate", "o_shippriority")
            .agg(col("revenue").sum())
            .sort(["revenue", "o_orderdate"], desc=[True, False])
            .limit(10)
            .select(col("o_orderkey").alias("l_orderkey"), "revenue", "o_orderdate", "o_shippriority")
            .to_arrow()
        )

    def q5(self, inputs: Inputs, folder: Path) -> pa.Table:
        col = self.daft.col
        orders = self._read(inputs, "orders").where(
            (col("o_orderdate") >= Q5_FROM) & (col("o_orderdate") < Q5_TO)
        )
        return (
            self._read(inputs, "region")
            .where(col("r_name") == Q5_REGION)
            .join(self._read(inputs, "nation"), left_on="r_regionkey", right_on="n_regionkey")
            .join(self._read(inputs, "supplier"), left_on="n_nationkey", right_on="s_nationkey")
            .join(self._read(inputs, "lineitem"), left_on="s_suppkey", right_on="l_suppkey")
            .join(orders, left_on="l_orderkey", right_on="o_orderkey")
            .join(
                self._read(inputs, "customer"),
                left_on=["o_custkey", "n_nationkey"],
                right_on=["c_custkey", "c_nationkey"],
            )
            .with_column("revenue", self._revenue())
            .groupby("n_name")
            .agg(col("revenue").sum())
            .sort("revenue", desc=True)
            .to_arrow()
        )

    def q6(self, inputs: Inputs, folder: Path) -> pa.Table:
        col = self.daft.col
        return (
            self._read(inputs, "lineitem")
            .where(
                (col("l_shipdate") >= Q6_FROM)
                & (col("l_shipdate") < Q6_TO)
                & self._double("l_discount").between(*Q6_DISCOUNT)
                & (self._double("l_quantity") < Q6_QUANTITY)
            )
            .agg((self._double("l_extendedprice") * self._double("l_discount")).sum().alias("revenue"))
            .to_arrow()
        )

    def q9(self, inputs: Inputs, folder: Path) -> pa.Table:
        col = self.daft.col
        profit = self._revenue() - self._double("ps_supplycost") * self._double("l_quantity")
        return (
            self._read(inputs, "part")
            .where(col("p_name").contains(Q9_COLOR))
            .join(self._read(inputs, "partsupp"), left_on="p_partkey", right_on="ps_partkey")
            .join(self._read(inputs, "supplier"), left_on="ps_suppkey", right_on="s_suppkey")
            .join(self._read(inputs, "nation"), left_on="s_nationkey", right_on="n_nationkey")
            .join(
                self._read(inputs, "lineitem"),
                left_on=["p_partkey", "ps_suppkey"],
                right_on=["l_partkey", "l_suppkey"],
            )
            .join(self._read(inputs, "orders"), left_on="l_orderkey", right_on="o_orderkey")
            .select(
                col("n_name").alias("nation"),
                col("o_orderdate").year().alias("o_year"),
                profit.alias("sum_profit"),
            )
            .groupby("nation", "o_year")
            .agg(col("sum_profit").sum())
            .sort(["nation", "o_year"], desc=[False, True])
            .to_arrow()
        )

    def q18(self, inputs: Inputs, folder: Path) -> pa.Table:
        col = self.daft.col
        items = self._read(inputs, "lineitem").select(
            "l_orderkey", self._double("l_quantity").alias("quantity")
        )
        large = items.groupby("l_orderkey").agg(col("quantity").sum()).where(col("quantity") > Q18_QUANTITY)
        return (
            self._read(inputs, "orders")
            .join(large, left_on="o_orderkey", right_on="l_orderkey", how="semi")
            .join(self._read(inputs, "customer"), left_on="o_custkey", right_on="c_custkey")
            .join(items, left_on="o_orderkey", right_on="l_orderkey")
            .groupby("c_name", "o_custkey", "o_orderkey", "o_orderdate", "o_totalprice")
            .agg(col("quantity").sum().alias("sum_qty"))
            .sort(["o_totalprice", "o_orderdate"], desc=[True, False])
            .limit(100)
            .with_column_renamed("o_custkey", "c_custkey")
            .to_arrow()
        )

    # -- exchanges ---------------------------------------------------------------------------------

    def sort(self, inputs: Inputs, folder: Path) -> None:
        """One file, as the names of several are random."""
        items = self._read(inputs, "lineitem").sort(list(SORT_KEYS))
        items.write_parquet(str(folder / "sorted.parquet"), compression="snappy", single_file=True)

    def repartition(self, inputs: Inputs, folder: Path) -> None:
        """By the hash as a column: ``repartition`` does nothing on the native runner."""
        part = self.daft.col(REPARTITION_KEY).hash() % REPARTITION_PARTS
        items = self._read(inputs, "lineitem").with_column("part", part)
        items.write_parquet(str(folder), compression="snappy", partition_cols=["part"])

    def distinct(self, inputs: Inputs, folder: Path) -> None:
        pairs = self._read(inputs, "lineitem").select(*DISTINCT_KEYS).distinct()
        pairs.write_parquet(str(folder), compression="snappy")

    def wordcount(self, inputs: Inputs, folder: Path) -> pa.Table:
        col = self.daft.col
        words = (
            self.daft.read_text(str(inputs.text)).select(col("text").split(" ").alias("word")).explode("word")
        )
        return words.groupby("word").agg(col("word").count("all").alias("count")).to_arrow()

    # -- features and training ---------------------------------------------------------------------

    def features(self, inputs: Inputs, folder: Path) -> None:
        col, items = self.daft.col, self._read(inputs, "lineitem")
        fitted = items.agg(
            *(self._double(n).mean().alias(f"{n}_mean") for n in STANDARDIZED),
            *(self._double(n).stddev().alias(f"{n}_std") for n in STANDARDIZED),
            *(col(n).list_agg_distinct().alias(n) for n in ENCODED),
            col(FEATURE_KEYS[0]).count("all").alias("rows"),
        ).to_pydict()
        to_population = math.sqrt(1 - 1 / fitted["rows"][0])  # its stddev is the sample's
        rows = items.select(
            *FEATURE_KEYS,
            *(
                ((self._double(n) - fitted[f"{n}_mean"][0]) / (fitted[f"{n}_std"][0] * to_population)).alias(
                    n
                )
                for n in STANDARDIZED
            ),
            *(self._code(n, sorted(fitted[n][0])) for n in ENCODED),
        )
        in_train = col("l_orderkey").hash() % 1000 < int(TRAIN_SHARE * 1000)
        rows.where(in_train).write_parquet(str(folder / "train"), compression="snappy")
        rows.where(~in_train).write_parquet(str(folder / "test"), compression="snappy")

    def _code(self, name: str, values: list[str]) -> Any:
        """The position of a column's value among a few."""
        from daft.functions import when

        code = self.daft.lit(0)
        for i, value in enumerate(values[1:], start=1):
            code = when(self.daft.col(name) == value, then=self.daft.lit(i)).otherwise(code)
        return code.alias(name)

    def kmeans(self, inputs: Inputs, folder: Path) -> pa.Table:
        points, centers = (self._matrix(path, POINT_COLUMNS) for path in (inputs.points, inputs.centers))
        return numpy_training.kmeans(points, centers, self._cores)

    def logistic(self, inputs: Inputs, folder: Path) -> pa.Table:
        rows = self._matrix(inputs.samples, (*FEATURE_COLUMNS, LABEL))
        return numpy_training.logistic(rows[:, :-1], rows[:, -1], self._cores)

    def _matrix(self, path: Path, columns: tuple[str, ...]) -> np.ndarray:
        table = self.daft.read_parquet(str(path)).select(*columns).to_arrow()
        return np.stack([table[name].to_numpy() for name in columns], axis=1).astype(np.float64, copy=False)


def open_engine(cores: int, scratch: Path) -> Daft:
    """Import it."""
    return Daft(cores)
