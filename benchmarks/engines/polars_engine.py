"""Polars: lazy queries on its streaming engine; NumPy on the columns where something is trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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


class Polars:
    """Polars, imported once the number of its threads is set."""

    def __init__(self, cores: int):
        self._cores = cores
        os.environ["POLARS_MAX_THREADS"] = str(cores)
        import polars

        polars.Config.set_engine_affinity("streaming")
        self.pl: Any = polars
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
        self.missing = {"noop": "has no partitions"}

    def versions(self) -> dict[str, str]:
        return {"polars": self.pl.__version__}

    def close(self) -> None:
        pass

    # -- TPC-H -------------------------------------------------------------------------------------

    def _doubles(self, *names: str) -> Any:
        return self.pl.col(*names).cast(self.pl.Float64)

    def _revenue(self) -> Any:
        return self._doubles("l_extendedprice") * (1 - self._doubles("l_discount"))

    def q1(self, inputs: Inputs, folder: Path) -> pa.Table:
        col, items = self.pl.col, self.pl.scan_parquet(inputs.table("lineitem"))
        discounted = col("l_extendedprice") * (1 - col("l_discount"))
        return (
            items.filter(col("l_shipdate") <= Q1_SHIPPED_UNTIL)
            .with_columns(self._doubles("l_quantity", "l_extendedprice", "l_discount", "l_tax"))
            .group_by("l_returnflag", "l_linestatus")
            .agg(
                sum_qty=col("l_quantity").sum(),
                sum_base_price=col("l_extendedprice").sum(),
                sum_disc_price=discounted.sum(),
                sum_charge=(discounted * (1 + col("l_tax"))).sum(),
                avg_qty=col("l_quantity").mean(),
                avg_price=col("l_extendedprice").mean(),
                avg_disc=col("l_discount").mean(),
                count_order=self.pl.len(),
            )
            .sort("l_returnflag", "l_linestatus")
            .collect()
            .to_arrow()
        )

    def q3(self, inputs: Inputs, folder: Path) -> pa.Table:
        col, scan = self.pl.col, self.pl.scan_parquet
        customer = scan(inputs.table("customer")).filter(col("c_mktsegment") == Q3_SEGMENT)
        orders = scan(inputs.table("orders")).filter(col("o_orderdate") < Q3_DAY)
        items = scan(inputs.table("lineitem")).filter(col("l_shipdate") > Q3_DAY)
        return (
            customer.join(orders, left_on="c_custkey", right_on="o_custkey")
            .join(items, left_on="o_orderkey", right_on="l_orderkey")
            .group_by("o_orderkey", "o_orderdate", "o_shippriority")
            .agg(revenue=self._revenue().sum())
            .select(col("o_orderkey").alias("l_orderkey"), "revenue", "o_orderdate", "o_shippriority")
            .sort("revenue", "o_orderdate", descending=[True, False])
            .head(10)
            .collect()
            .to_arrow()
        )

    def q5(self, inputs: Inputs, folder: Path) -> pa.Table:
        col, scan = self.pl.col, self.pl.scan_parquet
        return (
            scan(inputs.table("region"))
            .filter(col("r_name") == Q5_REGION)
            .join(scan(inputs.table("nation")), left_on="r_regionkey", right_on="n_regionkey")
            .join(scan(inputs.table("customer")), left_on="n_nationkey", right_on="c_nationkey")
            .join(
                scan(inputs.table("orders")).filter(
                    col("o_orderdate").is_between(Q5_FROM, Q5_TO, closed="left")
                ),
                left_on="c_custkey",
                right_on="o_custkey",
            )
            .join(scan(inputs.table("lineitem")), left_on="o_orderkey", right_on="l_orderkey")
            .join(
                scan(inputs.table("supplier")),
                left_on=["l_suppkey", "n_nationkey"],
                right_on=["s_suppkey", "s_nationkey"],
            )
            .group_by("n_name")
            .agg(revenue=self._revenue().sum())
            .sort("revenue", descending=True)
            .collect()
            .to_arrow()
        )

    def q6(self, inputs: Inputs, folder: Path) -> pa.Table:
        col, items = self.pl.col, self.pl.scan_parquet(inputs.table("lineitem"))
        return (
            items.filter(
                col("l_shipdate").is_between(Q6_FROM, Q6_TO, closed="left"),
                self._doubles("l_discount").is_between(*Q6_DISCOUNT),
                col("l_quantity") < Q6_QUANTITY,
            )
            .select(revenue=(self._doubles("l_extendedprice") * self._doubles("l_discount")).sum())
            .collect()
            .to_arrow()
        )

    def q9(self, inputs: Inputs, folder: Path) -> pa.Table:
        col, scan = self.pl.col, self.pl.scan_parquet
        profit = self._revenue() - self._doubles("ps_supplycost") * self._doubles("l_quantity")
        return (
            scan(inputs.table("part"))
            .filter(col("p_name").str.contains(Q9_COLOR, literal=True))
            .join(scan(inputs.table("partsupp")), left_on="p_partkey", right_on="ps_partkey")
            .join(scan(inputs.table("supplier")), left_on="ps_suppkey", right_on="s_suppkey")
            .join(
                scan(inputs.table("lineitem")),
                left_on=["p_partkey", "ps_suppkey"],
                right_on=["l_partkey", "l_suppkey"],
            )
            .join(scan(inputs.table("orders")), left_on="l_orderkey", right_on="o_orderkey")
            .join(scan(inputs.table("nation")), left_on="s_nationkey", right_on="n_nationkey")
            .group_by(col("n_name").alias("nation"), col("o_orderdate").dt.year().alias("o_year"))
            .agg(sum_profit=profit.sum())
            .sort("nation", "o_year", descending=[False, True])
            .collect()
            .to_arrow()
        )

    def q18(self, inputs: Inputs, folder: Path) -> pa.Table:
        col, scan = self.pl.col, self.pl.scan_parquet
        items = scan(inputs.table("lineitem"))
        large = (
            items.group_by("l_orderkey").agg(col("l_quantity").sum()).filter(col("l_quantity") > Q18_QUANTITY)
        )
        return (
            scan(inputs.table("orders"))
            .join(large, left_on="o_orderkey", right_on="l_orderkey", how="semi")
            .join(items, left_on="o_orderkey", right_on="l_orderkey")
            .join(scan(inputs.table("customer")), left_on="o_custkey", right_on="c_custkey")
            .group_by(
                "c_name", col("o_custkey").alias("c_custkey"), "o_orderkey", "o_orderdate", "o_totalprice"
            )
            .agg(sum_qty=col("l_quantity").sum())
            .sort("o_totalprice", "o_orderdate", descending=[True, False])
            .head(100)
            .collect()
            .to_arrow()
        )

    # -- exchanges ---------------------------------------------------------------------------------

    def sort(self, inputs: Inputs, folder: Path) -> None:
        items = self.pl.scan_parquet(inputs.table("lineitem"))
        items.sort(*SORT_KEYS).sink_parquet(folder / "sorted.parquet", compression="snappy")

    def repartition(self, inputs: Inputs, folder: Path) -> None:
        part = (self.pl.col(REPARTITION_KEY).hash() % REPARTITION_PARTS).alias("part")
        by_part = self.pl.PartitionBy(folder, key=part, include_key=False)
        self.pl.scan_parquet(inputs.table("lineitem")).sink_parquet(by_part, compression="snappy", mkdir=True)

    def distinct(self, inputs: Inputs, folder: Path) -> None:
        pairs = self.pl.scan_parquet(inputs.table("lineitem")).select(*DISTINCT_KEYS).unique()
        pairs.sink_parquet(folder / "distinct.parquet", compression="snappy")

    def wordcount(self, inputs: Inputs, folder: Path) -> pa.Table:
        words = (
            self.pl.scan_lines(inputs.text).select(word=self.pl.col("line").str.split(" ")).explode("word")
        )
        return words.group_by("word").agg(count=self.pl.len()).collect().to_arrow()

    # -- features and training ---------------------------------------------------------------------

    def features(self, inputs: Inputs, folder: Path) -> None:
        pl, items = self.pl, self.pl.scan_parquet(inputs.table("lineitem"))
        fitted = items.select(
            *(self._doubles(n).mean().alias(f"{n}_mean") for n in STANDARDIZED),
            *(self._doubles(n).std(ddof=0).alias(f"{n}_std") for n in STANDARDIZED),
            *(pl.col(n).unique().sort().implode().alias(n) for n in ENCODED),
        ).collect()
        codes = {n: {v: i for i, v in enumerate(fitted[n][0])} for n in ENCODED}
        rows = items.select(
            *FEATURE_KEYS,
            *((self._doubles(n) - fitted[f"{n}_mean"][0]) / fitted[f"{n}_std"][0] for n in STANDARDIZED),
            *(pl.col(n).replace_strict(codes[n], return_dtype=pl.Int64) for n in ENCODED),
        )
        in_train = pl.col("l_orderkey").hash() % 1000 < int(TRAIN_SHARE * 1000)
        sinks = [
            rows.filter(side).sink_parquet(folder / name, compression="snappy", mkdir=True, lazy=True)
            for name, side in {"train/part.parquet": in_train, "test/part.parquet": ~in_train}.items()
        ]
        pl.collect_all(sinks)

    def kmeans(self, inputs: Inputs, folder: Path) -> pa.Table:
        points, centers = (
            self.pl.read_parquet(path).select(POINT_COLUMNS).to_numpy()
            for path in (inputs.points, inputs.centers)
        )
        return numpy_training.kmeans(points, centers, self._cores)

    def logistic(self, inputs: Inputs, folder: Path) -> pa.Table:
        rows = self.pl.read_parquet(inputs.samples)
        x, label = rows.select(FEATURE_COLUMNS).to_numpy(), rows[LABEL].to_numpy()
        return numpy_training.logistic(x, label, self._cores)


def open_engine(cores: int, scratch: Path) -> Polars:
    """Import it."""
    return Polars(cores)
