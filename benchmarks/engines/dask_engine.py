"""Dask DataFrame on a local cluster of one-thread processes; its futures where something is trained."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask.bytes import read_bytes
from distributed import Client, LocalCluster
from workloads import (
    DISTINCT_KEYS,
    ENCODED,
    FEATURE_COLUMNS,
    FEATURE_KEYS,
    LABEL,
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
    REPARTITION_KEY,
    REPARTITION_PARTS,
    SORT_KEYS,
    STANDARDIZED,
    TRAIN_SHARE,
)

from . import partial_training
from .protocol import Inputs, Job

#: bytes of text that one task counts
TEXT_BLOCK = 32 << 20


def read(inputs: Inputs, name: str, *columns: str) -> Any:
    """Some columns of a table, in partitions of the size that Dask advises."""
    return dd.read_parquet(inputs.table(name), columns=list(columns) or None, split_row_groups="adaptive")


def all_columns(inputs: Inputs, row_groups: int) -> Any:
    """All of lineitem, which is shuffled faster in smaller partitions than Dask advises."""
    return dd.read_parquet(inputs.table("lineitem"), split_row_groups=row_groups)


def doubles(frame: Any, *columns: str) -> Any:
    """Decimals as doubles. By way of Arrow's doubles, as pandas would make an object of each decimal."""
    return frame.astype(dict.fromkeys(columns, "double[pyarrow]")).astype(dict.fromkeys(columns, "float64"))


def arrow(frame: pd.DataFrame) -> pa.Table:
    """A frame without its index."""
    return pa.Table.from_pandas(frame, preserve_index=False)


# -- TPC-H -------------------------------------------------------------------------------------------------------------


def q1(inputs: Inputs, folder: Path) -> pa.Table:
    """Pricing summary report."""
    numbers = ("l_quantity", "l_extendedprice", "l_discount", "l_tax")
    items = read(inputs, "lineitem", *numbers, "l_returnflag", "l_linestatus", "l_shipdate")
    items = doubles(items[items.l_shipdate <= Q1_SHIPPED_UNTIL], *numbers)
    items["disc_price"] = items.l_extendedprice * (1 - items.l_discount)
    items["charge"] = items.disc_price * (1 + items.l_tax)
    grouped = items.groupby(["l_returnflag", "l_linestatus"]).agg(
        sum_qty=("l_quantity", "sum"),
        sum_base_price=("l_extendedprice", "sum"),
        sum_disc_price=("disc_price", "sum"),
        sum_charge=("charge", "sum"),
        avg_qty=("l_quantity", "mean"),
        avg_price=("l_extendedprice", "mean"),
        avg_disc=("l_discount", "mean"),
        count_order=("l_quantity", "count"),
    )
    return arrow(grouped.compute().sort_index().reset_index())


def q3(inputs: Inputs, folder: Path) -> pa.Table:
    """Shipping priority."""
    customer = read(inputs, "customer", "c_custkey", "c_mktsegment")
    customer = customer[customer.c_mktsegment == Q3_SEGMENT][["c_custkey"]]
    orders = read(inputs, "orders", "o_orderkey", "o_custkey", "o_orderdate", "o_shippriority")
    orders = orders[orders.o_orderdate < Q3_DAY].merge(customer, left_on="o_custkey", right_on="c_custkey")
    items = read(inputs, "lineitem", "l_orderkey", "l_extendedprice", "l_discount", "l_shipdate")
    items = items[items.l_shipdate > Q3_DAY]
    joined = items.merge(
        orders[["o_orderkey", "o_orderdate", "o_shippriority"]], left_on="l_orderkey", right_on="o_orderkey"
    )
    joined = doubles(joined, "l_extendedprice", "l_discount")
    joined["revenue"] = joined.l_extendedprice * (1 - joined.l_discount)
    keys = ["l_orderkey", "o_orderdate", "o_shippriority"]
    frame = joined.groupby(keys)[["revenue"]].sum().reset_index().compute()
    return arrow(frame.sort_values(["revenue", "o_orderdate"], ascending=[False, True]).head(10))


def q5(inputs: Inputs, folder: Path) -> pa.Table:
    """Local supplier volume."""
    region = read(inputs, "region", "r_regionkey", "r_name")
    region = region[region.r_name == Q5_REGION][["r_regionkey"]]
    nation = read(inputs, "nation", "n_nationkey", "n_name", "n_regionkey")
    nation = nation.merge(region, left_on="n_regionkey", right_on="r_regionkey")[["n_nationkey", "n_name"]]
    supplier = read(inputs, "supplier", "s_suppkey", "s_nationkey")
    supplier = supplier.merge(nation, left_on="s_nationkey", right_on="n_nationkey")
    orders = read(inputs, "orders", "o_orderkey", "o_custkey", "o_orderdate")
    orders = orders[(orders.o_orderdate >= Q5_FROM) & (orders.o_orderdate < Q5_TO)]
    customer = read(inputs, "customer", "c_custkey", "c_nationkey")
    orders = orders.merge(customer, left_on="o_custkey", right_on="c_custkey")[["o_orderkey", "c_nationkey"]]
    items = read(inputs, "lineitem", "l_orderkey", "l_suppkey", "l_extendedprice", "l_discount")
    joined = items.merge(orders, left_on="l_orderkey", right_on="o_orderkey").merge(
        supplier[["s_suppkey", "s_nationkey", "n_name"]],
        left_on=["l_suppkey", "c_nationkey"],
        right_on=["s_suppkey", "s_nationkey"],
    )
    joined = doubles(joined, "l_extendedprice", "l_discount")
    joined["revenue"] = joined.l_extendedprice * (1 - joined.l_discount)
    frame = joined.groupby("n_name")[["revenue"]].sum().reset_index().compute()
    return arrow(frame.sort_values("revenue", ascending=False))


def q6(inputs: Inputs, folder: Path) -> pa.Table:
    """Forecasting revenue change."""
    numbers = ("l_quantity", "l_extendedprice", "l_discount")
    items = read(inputs, "lineitem", *numbers, "l_shipdate")
    items = doubles(items[(items.l_shipdate >= Q6_FROM) & (items.l_shipdate < Q6_TO)], *numbers)
    items = items[items.l_discount.between(*Q6_DISCOUNT) & (items.l_quantity < Q6_QUANTITY)]
    return pa.table({"revenue": [(items.l_extendedprice * items.l_discount).sum().compute()]})


def q9(inputs: Inputs, folder: Path) -> pa.Table:
    """Product type profit measure."""
    part = read(inputs, "part", "p_partkey", "p_name")
    part = part[part.p_name.str.contains(Q9_COLOR, regex=False)][["p_partkey"]]
    nation = read(inputs, "nation", "n_nationkey", "n_name")
    supplier = read(inputs, "supplier", "s_suppkey", "s_nationkey")
    supplier = supplier.merge(nation, left_on="s_nationkey", right_on="n_nationkey")[["s_suppkey", "n_name"]]
    supply = read(inputs, "partsupp", "ps_partkey", "ps_suppkey", "ps_supplycost")
    supply = supply.merge(part, left_on="ps_partkey", right_on="p_partkey")
    supply = supply.merge(supplier, left_on="ps_suppkey", right_on="s_suppkey")
    numbers = ("l_quantity", "l_extendedprice", "l_discount")
    items = read(inputs, "lineitem", "l_orderkey", "l_partkey", "l_suppkey", *numbers)
    items = items.merge(
        supply[["ps_partkey", "ps_suppkey", "ps_supplycost", "n_name"]],
        left_on=["l_partkey", "l_suppkey"],
        right_on=["ps_partkey", "ps_suppkey"],
    )
    items = doubles(items, *numbers, "ps_supplycost")
    items["sum_profit"] = (
        items.l_extendedprice * (1 - items.l_discount) - items.ps_supplycost * items.l_quantity
    )
    orders = read(inputs, "orders", "o_orderkey", "o_orderdate")
    joined = orders.merge(
        items[["l_orderkey", "n_name", "sum_profit"]], left_on="o_orderkey", right_on="l_orderkey"
    )
    joined["o_year"] = joined.o_orderdate.dt.year
    frame = joined.groupby(["n_name", "o_year"])[["sum_profit"]].sum().reset_index().compute()
    frame = frame.rename(columns={"n_name": "nation"})
    return arrow(frame.sort_values(["nation", "o_year"], ascending=[True, False]))


def q18(inputs: Inputs, folder: Path) -> pa.Table:
    """Large volume customers."""
    items = doubles(read(inputs, "lineitem", "l_orderkey", "l_quantity"), "l_quantity")
    total = items.groupby("l_orderkey")[["l_quantity"]].sum(split_out=True)
    large = total[total.l_quantity > Q18_QUANTITY].reset_index().compute()
    orders = read(inputs, "orders", "o_orderkey", "o_custkey", "o_orderdate", "o_totalprice")
    orders = orders.merge(large, left_on="o_orderkey", right_on="l_orderkey")
    joined = orders.merge(
        read(inputs, "customer", "c_custkey", "c_name"), left_on="o_custkey", right_on="c_custkey"
    )
    frame = doubles(joined, "o_totalprice").compute().rename(columns={"l_quantity": "sum_qty"})
    frame = frame.sort_values(["o_totalprice", "o_orderdate"], ascending=[False, True]).head(100)
    return arrow(frame.drop(columns=["o_custkey", "l_orderkey"]))


# -- the others --------------------------------------------------------------------------------------------------------


def sort(inputs: Inputs, folder: Path) -> None:
    """By ranges of the first key, which can't be a decimal, then by all of them within each partition.

    Of partitions as large as Dask advises, 2026.8 takes two to be sorted that aren't.
    """
    items = doubles(all_columns(inputs, row_groups=8), SORT_KEYS[0])
    ranges = items.sort_values(SORT_KEYS[0], shuffle_method="p2p", sort_function=by_all_keys)
    ranges.to_parquet(folder, compression="snappy", write_index=False)


def by_all_keys(frame: pd.DataFrame, *_: Any, **__: Any) -> pd.DataFrame:
    """Sort a partition."""
    return frame.sort_values(list(SORT_KEYS))


def repartition(inputs: Inputs, folder: Path) -> None:
    """By P2P's shuffle."""
    moved = all_columns(inputs, row_groups=4).shuffle(
        REPARTITION_KEY, npartitions=REPARTITION_PARTS, shuffle_method="p2p"
    )
    moved.to_parquet(folder, compression="snappy", write_index=False)


def distinct(inputs: Inputs, folder: Path) -> None:
    """Bring equal pairs together, then drop duplicates in each partition: few pairs are equal before that."""
    pairs = read(inputs, "lineitem", *DISTINCT_KEYS).shuffle(list(DISTINCT_KEYS), shuffle_method="p2p")
    different = pairs.map_partitions(pd.DataFrame.drop_duplicates)
    different.to_parquet(folder, compression="snappy", write_index=False)


def count_words(block: bytes) -> pd.Series:
    """How often each word of some lines occurs."""
    lines = pc.split_pattern(pa.array([block.decode().rstrip("\n").replace("\n", " ")]), " ")
    counted = pc.value_counts(lines.flatten())
    return pd.Series(counted.field("counts").to_numpy(), pd.Index(counted.field("values").to_pandas()))


def merge_counts(counts: list[pd.Series]) -> pd.Series:
    """Add up counts of the same words."""
    together = pd.concat(counts)
    return together.groupby(together.index, sort=False).sum()


def wordcount(inputs: Inputs, folder: Path) -> pa.Table:
    """Blocks of bytes that end with a line, counted in Arrow: faster than a bag of lines."""
    _, blocks = read_bytes(str(inputs.text), delimiter=b"\n", blocksize=TEXT_BLOCK, sample=False)
    counts = [dask.delayed(count_words)(block) for block in blocks[0]]
    total = dask.delayed(merge_counts)(counts).compute()
    return pa.table({"word": pa.array(total.index), "count": total.to_numpy()})


def standardize_and_encode(
    frame: pd.DataFrame, means: pd.Series, stds: pd.Series, values: dict[str, list[str]]
) -> pd.DataFrame:
    """The features of one partition, and on which side each row is."""
    numbers = frame[list(STANDARDIZED)].astype("float64")
    frame = frame.assign(**((numbers - means) / stds))
    codes = {name: frame[name].astype(pd.CategoricalDtype(values[name])).cat.codes for name in ENCODED}
    hashed = pd.util.hash_array(frame["l_orderkey"].to_numpy())
    return frame.assign(**codes, train=hashed % 1000 < int(TRAIN_SHARE * 1000))


def features(inputs: Inputs, folder: Path) -> None:
    """Fit in one pass, then transform and write both sides in another."""
    items = doubles(read(inputs, "lineitem", *FEATURE_KEYS, *STANDARDIZED, *ENCODED), *STANDARDIZED)
    numbers = items[list(STANDARDIZED)]
    means, stds, *values = dask.compute(
        numbers.mean(), numbers.std(ddof=0), *(items[name].unique() for name in ENCODED)
    )
    vocabulary = {name: sorted(found) for name, found in zip(ENCODED, values)}
    rows = items.map_partitions(standardize_and_encode, means, stds, vocabulary)
    sides = {"train": rows[rows.train], "test": rows[~rows.train]}
    dask.compute(
        *(
            side.drop(columns=["train"]).to_parquet(
                folder / name, compression="snappy", write_index=False, compute=False
            )
            for name, side in sides.items()
        )
    )


class Dask:
    """A local cluster, and the jobs on it."""

    def __init__(self, cores: int, scratch: Path):
        dask.config.set({"temporary-directory": str(scratch), "dataframe.shuffle.method": "p2p"})
        logging.getLogger("distributed.shuffle").setLevel(logging.ERROR)
        self._cluster = LocalCluster(
            n_workers=cores,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            local_directory=str(scratch),
        )
        self._client = Client(self._cluster)
        self.workloads: dict[str, Job] = {
            "tpch_q1": q1,
            "tpch_q3": q3,
            "tpch_q5": q5,
            "tpch_q6": q6,
            "tpch_q9": q9,
            "tpch_q18": q18,
            "sort": sort,
            "repartition": repartition,
            "distinct": distinct,
            "wordcount": wordcount,
            "features": features,
            "kmeans": self.kmeans,
            "logistic": self.logistic,
            "noop": self.noop,
        }
        self.missing: dict[str, str] = {}

    def versions(self) -> dict[str, str]:
        return {"dask": dask.__version__, "pandas": pd.__version__, "pyarrow": pa.__version__}

    def close(self) -> None:
        self._client.close()
        self._cluster.close()

    def kmeans(self, inputs: Inputs, folder: Path) -> pa.Table:
        begin = pq.read_table(inputs.centers, columns=list(POINT_COLUMNS)).to_pandas().to_numpy()
        return partial_training.kmeans(self._everywhere(inputs.points, POINT_COLUMNS), begin)

    def logistic(self, inputs: Inputs, folder: Path) -> pa.Table:
        return partial_training.logistic(self._everywhere(inputs.samples, (*FEATURE_COLUMNS, LABEL)))

    def _everywhere(self, path: Path, columns: tuple[str, ...]) -> partial_training.Everywhere:
        """Arrays of some columns, which stay in the workers' memory, and calls of a function on each of them."""
        frame = dd.read_parquet(path, columns=list(columns), split_row_groups="adaptive")
        parts = self._client.compute(
            [part.to_numpy(dtype="float64") for part in frame.to_delayed()], optimize_graph=True
        )

        def call(function: Any, argument: np.ndarray) -> Any:
            return self._client.gather(self._client.map(function, parts, [argument] * len(parts)))

        return call

    def noop(self, inputs: Inputs, folder: Path) -> pa.Table:
        done = self._client.gather(self._client.map(same, range(NOOP_PARTITIONS), pure=False))
        return pa.table({"count": [len(done)]})


def same(value: Any) -> Any:
    """Return what is given."""
    return value


def open_engine(cores: int, scratch: Path) -> Dask:
    """Start the cluster."""
    return Dask(cores, scratch)
