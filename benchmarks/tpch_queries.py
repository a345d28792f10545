"""TPC-H queries 1, 3 and 6 as Headwater pipelines, as Dask DataFrame code, and as SQL."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import headwater as hw
from headwater import Dataset, col

Q1_DAY = datetime.date(1998, 9, 2)
Q3_DAY = datetime.date(1995, 3, 15)
Q6_FROM, Q6_TO = datetime.date(1994, 1, 1), datetime.date(1995, 1, 1)


def headwater_q1(folder: Path) -> Dataset:
    """Pricing summary report."""
    price, discount, tax = (col(n).cast("float64") for n in ("l_extendedprice", "l_discount", "l_tax"))
    return (
        hw.read_parquet(str(folder / "lineitem.parquet"))
        .filter(col("l_shipdate") <= Q1_DAY)
        .select(
            "l_returnflag",
            "l_linestatus",
            qty=col("l_quantity").cast("float64"),
            price=price,
            disc=discount,
            disc_price=price * (1 - discount),
            charge=price * (1 - discount) * (1 + tax),
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


def headwater_q3(folder: Path) -> Dataset:
    """Shipping priority."""
    customer = hw.read_parquet(str(folder / "customer.parquet")).filter(col("c_mktsegment") == "BUILDING")
    orders = hw.read_parquet(str(folder / "orders.parquet")).filter(col("o_orderdate") < Q3_DAY)
    items = hw.read_parquet(str(folder / "lineitem.parquet")).filter(col("l_shipdate") > Q3_DAY)
    revenue = col("l_extendedprice").cast("float64") * (1 - col("l_discount").cast("float64"))
    return (
        items.join(
            orders.join(customer, left_on="o_custkey", right_on="c_custkey", how="semi"),
            left_on="l_orderkey",
            right_on="o_orderkey",
        )
        .group_by("l_orderkey", "o_orderdate", "o_shippriority")
        .agg(revenue=revenue.sum())
        .select("l_orderkey", "revenue", "o_orderdate", "o_shippriority")
        .sort("revenue", "o_orderdate", descending=[True, False])
        .limit(10)
    )


def headwater_q6(folder: Path) -> Dataset:
    """Forecasting revenue change."""
    discount = col("l_discount").cast("float64")
    return (
        hw.read_parquet(str(folder / "lineitem.parquet"))
        .filter(
            (col("l_shipdate") >= Q6_FROM)
            & (col("l_shipdate") < Q6_TO)
            & discount.between(0.0499, 0.0701)
            & (col("l_quantity") < 24)
        )
        .agg(revenue=(col("l_extendedprice").cast("float64") * discount).sum())
    )


HEADWATER = {"q1": headwater_q1, "q3": headwater_q3, "q6": headwater_q6}

SQL = {
    "q1": """
        SELECT l_returnflag, l_linestatus, sum(l_quantity)::DOUBLE AS sum_qty,
               sum(l_extendedprice)::DOUBLE AS sum_base_price,
               sum(l_extendedprice * (1 - l_discount))::DOUBLE AS sum_disc_price,
               sum(l_extendedprice * (1 - l_discount) * (1 + l_tax))::DOUBLE AS sum_charge,
               avg(l_quantity) AS avg_qty, avg(l_extendedprice) AS avg_price, avg(l_discount) AS avg_disc,
               count(*) AS count_order
        FROM '{0}/lineitem.parquet' WHERE l_shipdate <= DATE '1998-09-02'
        GROUP BY ALL ORDER BY ALL""",
    "q3": """
        SELECT l_orderkey, sum(l_extendedprice * (1 - l_discount))::DOUBLE AS revenue, o_orderdate, o_shippriority
        FROM '{0}/customer.parquet', '{0}/orders.parquet', '{0}/lineitem.parquet'
        WHERE c_mktsegment = 'BUILDING' AND c_custkey = o_custkey AND l_orderkey = o_orderkey
          AND o_orderdate < DATE '1995-03-15' AND l_shipdate > DATE '1995-03-15'
        GROUP BY l_orderkey, o_orderdate, o_shippriority ORDER BY revenue DESC, o_orderdate LIMIT 10""",
    "q6": """
        SELECT sum(l_extendedprice * l_discount)::DOUBLE AS revenue FROM '{0}/lineitem.parquet'
        WHERE l_shipdate >= DATE '1994-01-01' AND l_shipdate < DATE '1995-01-01'
          AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24""",
}


def _floats(frame: Any, *columns: str) -> Any:
    return frame.astype(dict.fromkeys(columns, "float64"))


def dask_q1(folder: Path) -> Any:
    """Query 1 in Dask DataFrame, as its users write it."""
    import dask.dataframe as dd

    items = dd.read_parquet(folder / "lineitem.parquet", split_row_groups="adaptive")
    items = items[items.l_shipdate <= Q1_DAY]
    items = _floats(items, "l_quantity", "l_extendedprice", "l_discount", "l_tax")
    items["disc_price"] = items.l_extendedprice * (1 - items.l_discount)
    items["charge"] = items.disc_price * (1 + items.l_tax)
    return (
        items.groupby(["l_returnflag", "l_linestatus"])
        .agg(
            sum_qty=("l_quantity", "sum"),
            sum_base_price=("l_extendedprice", "sum"),
            sum_disc_price=("disc_price", "sum"),
            sum_charge=("charge", "sum"),
            avg_qty=("l_quantity", "mean"),
            avg_price=("l_extendedprice", "mean"),
            avg_disc=("l_discount", "mean"),
            count_order=("l_quantity", "count"),
        )
        .compute()
        .sort_index()
        .reset_index()
    )


def dask_q3(folder: Path) -> Any:
    """Query 3 in Dask DataFrame."""
    import dask.dataframe as dd

    customer = dd.read_parquet(folder / "customer.parquet")
    orders = dd.read_parquet(folder / "orders.parquet", split_row_groups="adaptive")
    items = dd.read_parquet(folder / "lineitem.parquet", split_row_groups="adaptive")
    customer = customer[customer.c_mktsegment == "BUILDING"][["c_custkey"]]
    orders = orders[orders.o_orderdate < Q3_DAY][["o_orderkey", "o_custkey", "o_orderdate", "o_shippriority"]]
    items = items[items.l_shipdate > Q3_DAY][["l_orderkey", "l_extendedprice", "l_discount"]]
    items = _floats(items, "l_extendedprice", "l_discount")
    joined = items.merge(
        orders.merge(customer, left_on="o_custkey", right_on="c_custkey"),
        left_on="l_orderkey",
        right_on="o_orderkey",
    )
    joined["revenue"] = joined.l_extendedprice * (1 - joined.l_discount)
    grouped = joined.groupby(["l_orderkey", "o_orderdate", "o_shippriority"])[["revenue"]].sum()
    frame = grouped.reset_index().compute()
    frame = frame.sort_values(["revenue", "o_orderdate"], ascending=[False, True]).head(10)
    return frame[["l_orderkey", "revenue", "o_orderdate", "o_shippriority"]]


def dask_q6(folder: Path) -> Any:
    """Query 6 in Dask DataFrame."""
    import dask.dataframe as dd
    import pandas as pd

    items = dd.read_parquet(folder / "lineitem.parquet", split_row_groups="adaptive")
    items = items[(items.l_shipdate >= Q6_FROM) & (items.l_shipdate < Q6_TO)]
    items = _floats(items, "l_quantity", "l_extendedprice", "l_discount")
    items = items[items.l_discount.between(0.0499, 0.0701) & (items.l_quantity < 24)]
    return pd.DataFrame({"revenue": [(items.l_extendedprice * items.l_discount).sum().compute()]})


DASK = {"q1": dask_q1, "q3": dask_q3, "q6": dask_q6}
