"""The TPC-H queries of the benchmark as Headwater pipelines, over a folder with a Parquet file for each table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from workloads import (
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
)

import headwater as hw
from headwater import Dataset, Expr, col


def _read(folder: Path, name: str) -> Dataset:
    return hw.read_parquet(str(folder / f"{name}.parquet"))


def _double(name: str) -> Expr:
    return col(name).cast("float64")


def _revenue() -> Expr:
    return _double("l_extendedprice") * (1 - _double("l_discount"))


def q1(folder: Path) -> Dataset:
    """Pricing summary report."""
    return (
        _read(folder, "lineitem")
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


def q3(folder: Path) -> Dataset:
    """Shipping priority."""
    customer = _read(folder, "customer").filter(col("c_mktsegment") == Q3_SEGMENT)
    orders = _read(folder, "orders").filter(col("o_orderdate") < Q3_DAY)
    items = _read(folder, "lineitem").filter(col("l_shipdate") > Q3_DAY)
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


def q5(folder: Path) -> Dataset:
    """Local supplier volume."""
    region = _read(folder, "region").filter(col("r_name") == Q5_REGION)
    nation = _read(folder, "nation").join(region, left_on="n_regionkey", right_on="r_regionkey", how="semi")
    supplier = _read(folder, "supplier").join(nation, left_on="s_nationkey", right_on="n_nationkey")
    orders = _read(folder, "orders").filter((col("o_orderdate") >= Q5_FROM) & (col("o_orderdate") < Q5_TO))
    return (
        _read(folder, "lineitem")
        .join(
            orders.join(_read(folder, "customer"), left_on="o_custkey", right_on="c_custkey"),
            left_on="l_orderkey",
            right_on="o_orderkey",
        )
        .join(supplier, left_on=["l_suppkey", "c_nationkey"], right_on=["s_suppkey", "s_nationkey"])
        .group_by("n_name")
        .agg(revenue=_revenue().sum())
        .sort("revenue", descending=True)
    )


def q6(folder: Path) -> Dataset:
    """Forecasting revenue change."""
    return (
        _read(folder, "lineitem")
        .filter(
            (col("l_shipdate") >= Q6_FROM)
            & (col("l_shipdate") < Q6_TO)
            & _double("l_discount").between(*Q6_DISCOUNT)
            & (col("l_quantity") < Q6_QUANTITY)
        )
        .agg(revenue=(_double("l_extendedprice") * _double("l_discount")).sum())
    )


def q9(folder: Path) -> Dataset:
    """Product type profit measure."""
    part = _read(folder, "part").filter(col("p_name").str.contains(Q9_COLOR))
    supplier = _read(folder, "supplier").join(
        _read(folder, "nation"), left_on="s_nationkey", right_on="n_nationkey"
    )
    partsupp = (
        _read(folder, "partsupp")
        .join(part, left_on="ps_partkey", right_on="p_partkey", how="semi")
        .join(supplier, left_on="ps_suppkey", right_on="s_suppkey")
    )
    return (
        _read(folder, "lineitem")
        .join(partsupp, left_on=["l_partkey", "l_suppkey"], right_on=["ps_partkey", "ps_suppkey"])
        .join(_read(folder, "orders"), left_on="l_orderkey", right_on="o_orderkey")
        .group_by(nation=col("n_name"), o_year=col("o_orderdate").dt.year())
        .agg(sum_profit=(_revenue() - _double("ps_supplycost") * _double("l_quantity")).sum())
        .sort("nation", "o_year", descending=[False, True])
    )


def q18(folder: Path) -> Dataset:
    """Large volume customers."""
    items = _read(folder, "lineitem").select("l_orderkey", quantity=_double("l_quantity"))
    large = items.group_by("l_orderkey").agg(total=hw.sum("quantity")).filter(col("total") > Q18_QUANTITY)
    orders = (
        _read(folder, "orders")
        .join(large, left_on="o_orderkey", right_on="l_orderkey", how="semi")
        .join(_read(folder, "customer"), left_on="o_custkey", right_on="c_custkey")
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
TPCH: dict[str, Callable[[Path], Dataset]] = {
    "tpch_q1": q1,
    "tpch_q3": q3,
    "tpch_q5": q5,
    "tpch_q6": q6,
    "tpch_q9": q9,
    "tpch_q18": q18,
}
