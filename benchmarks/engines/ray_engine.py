"""Ray Data, with Arrow in its batches; Ray's tasks where something is trained, and for the no-ops.

Small tables travel to all batches of a large one, as Ray's own join shuffles both sides. Aggregations are made of each
batch first, so that little is left to bring together.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
import ray
from ray.data import DataContext, Dataset
from ray.data.aggregate import Mean, Std, Unique
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

#: bytes of Ray's object store
STORE = 3_000_000_000
#: partitions of a shuffle
PARTITIONS = 8
#: bytes of text that one batch reads
TEXT_BLOCK = 16 << 20


def read(inputs: Inputs, name: str, *columns: str) -> Dataset:
    """Some columns of a table; from the copy without string views, which Arrow's kernels lack."""
    return ray.data.read_parquet(inputs.plain_table(name), columns=list(columns) or None)


def tiny(inputs: Inputs, name: str, *columns: str) -> pa.Table:
    """Some columns of a table that isn't worth a dataset."""
    return pq.read_table(inputs.plain_table(name), columns=list(columns))


def mapped(rows: Dataset, function: Callable[..., pa.Table], **arguments: Any) -> Dataset:
    """Call a function with each block of Arrow, and with arguments, which are put into the object store once."""
    shared = {name: ray.put(value) for name, value in arguments.items()}

    def with_arguments(batch: pa.Table) -> pa.Table:
        return function(batch, **{name: ray.get(reference) for name, reference in shared.items()})

    return rows.map_batches(with_arguments, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)


def table(rows: Dataset) -> pa.Table:
    """All rows of a small dataset."""
    return pa.concat_tables(ray.get(rows.to_arrow_refs())).combine_chunks()


def doubles(batch: pa.Table, *columns: str) -> pa.Table:
    """Decimals as doubles."""
    for name in columns:
        batch = batch.set_column(
            batch.column_names.index(name), name, pc.cast(batch[name], pa.float64(), safe=False)
        )
    return batch


def revenue(batch: pa.Table) -> pa.ChunkedArray:
    """Discounted prices."""
    return pc.multiply(batch["l_extendedprice"], pc.subtract(1.0, batch["l_discount"]))


def sums(batch: pa.Table, keys: list[str], **names: str) -> pa.Table:
    """Sums by key; ``names`` are the new names and the columns."""
    grouped = batch.group_by(keys, use_threads=False).aggregate([(old, "sum") for old in names.values()])
    return pa.table(
        {
            **{key: grouped[key] for key in keys},
            **{new: grouped[f"{old}_sum"] for new, old in names.items()},
        }
    )


def joined(batch: pa.Table, small: pa.Table, left: list[str], right: list[str]) -> pa.Table:
    """Inner join with a small table."""
    return batch.join(small, left, right, join_type="inner", use_threads=False)


# -- TPC-H -------------------------------------------------------------------------------------------------------------

Q1_KEYS = ["l_returnflag", "l_linestatus"]
Q1_SUMS = ("sum_qty", "sum_base_price", "sum_disc_price", "sum_charge", "sum_disc", "count_order")


def q1_sums(batch: pa.Table) -> pa.Table:
    """Partial sums."""
    batch = batch.filter(pc.field("l_shipdate") <= Q1_SHIPPED_UNTIL)
    batch = doubles(batch, "l_quantity", "l_extendedprice", "l_discount", "l_tax")
    price = revenue(batch)
    columns = {
        "sum_qty": batch["l_quantity"],
        "sum_base_price": batch["l_extendedprice"],
        "sum_disc_price": price,
        "sum_charge": pc.multiply(price, pc.add(1.0, batch["l_tax"])),
        "sum_disc": batch["l_discount"],
        "count_order": pa.repeat(1, len(batch)),
    }
    keyed = pa.table({**{key: batch[key] for key in Q1_KEYS}, **columns})
    return sums(keyed, Q1_KEYS, **dict(zip(columns, columns)))


def q1(inputs: Inputs, folder: Path) -> pa.Table:
    """Pricing summary report."""
    columns = ("l_quantity", "l_extendedprice", "l_discount", "l_tax", "l_shipdate")
    partial = table(mapped(read(inputs, "lineitem", *columns, *Q1_KEYS), q1_sums))
    found = sums(partial, Q1_KEYS, **dict(zip(Q1_SUMS, Q1_SUMS)))
    for name, total in {
        "avg_qty": "sum_qty",
        "avg_price": "sum_base_price",
        "avg_disc": "sum_disc",
    }.items():
        found = found.append_column(name, pc.divide(found[total], pc.cast(found["count_order"], "double")))
    return found.drop_columns("sum_disc").sort_by([(key, "ascending") for key in Q1_KEYS])


def of_segment(batch: pa.Table) -> pa.Table:
    """Q3's customers."""
    return batch.filter(pc.field("c_mktsegment") == Q3_SEGMENT).select(["c_custkey"])


def q3_orders(batch: pa.Table, customers: pa.Table) -> pa.Table:
    """Q3's orders."""
    batch = batch.filter(pc.field("o_orderdate") < Q3_DAY)
    return joined(batch, customers, ["o_custkey"], ["c_custkey"]).drop_columns("o_custkey")


Q3_KEYS = ["l_orderkey", "o_orderdate", "o_shippriority"]


def q3_sums(batch: pa.Table, orders: pa.Table) -> pa.Table:
    """Partial sums."""
    batch = batch.filter(pc.field("l_shipdate") > Q3_DAY)
    batch = doubles(joined(batch, orders, ["l_orderkey"], ["o_orderkey"]), "l_extendedprice", "l_discount")
    return sums(batch.append_column("revenue", revenue(batch)), Q3_KEYS, revenue="revenue")


def q3(inputs: Inputs, folder: Path) -> pa.Table:
    """Shipping priority."""
    customers = table(mapped(read(inputs, "customer", "c_custkey", "c_mktsegment"), of_segment))
    orders = read(inputs, "orders", "o_orderkey", "o_custkey", "o_orderdate", "o_shippriority")
    orders = table(mapped(orders, q3_orders, customers=customers))
    items = read(inputs, "lineitem", "l_orderkey", "l_extendedprice", "l_discount", "l_shipdate")
    partial = table(mapped(items, q3_sums, orders=orders))
    found = sums(partial, Q3_KEYS, revenue="revenue")
    return found.sort_by([("revenue", "descending"), ("o_orderdate", "ascending")]).slice(0, 10)


def q5_orders(batch: pa.Table, customers: pa.Table) -> pa.Table:
    """Q5's orders, with the customers' nations."""
    batch = batch.filter((pc.field("o_orderdate") >= Q5_FROM) & (pc.field("o_orderdate") < Q5_TO))
    return joined(batch, customers, ["o_custkey"], ["c_custkey"]).select(["o_orderkey", "c_nationkey"])


def q5_sums(batch: pa.Table, orders: pa.Table, suppliers: pa.Table) -> pa.Table:
    """Partial sums."""
    batch = joined(batch, suppliers, ["l_suppkey"], ["s_suppkey"])
    batch = joined(batch, orders, ["l_orderkey", "s_nationkey"], ["o_orderkey", "c_nationkey"])
    batch = doubles(batch, "l_extendedprice", "l_discount")
    return sums(batch.append_column("revenue", revenue(batch)), ["n_name"], revenue="revenue")


def q5(inputs: Inputs, folder: Path) -> pa.Table:
    """Local supplier volume."""
    region = tiny(inputs, "region", "r_regionkey", "r_name").filter(pc.field("r_name") == Q5_REGION)
    nation = tiny(inputs, "nation", "n_nationkey", "n_name", "n_regionkey")
    nation = joined(nation, region, ["n_regionkey"], ["r_regionkey"]).select(["n_nationkey", "n_name"])
    suppliers = joined(
        tiny(inputs, "supplier", "s_suppkey", "s_nationkey"), nation, ["s_nationkey"], ["n_nationkey"]
    )
    customers = table(read(inputs, "customer", "c_custkey", "c_nationkey"))
    customers = joined(customers, nation.select(["n_nationkey"]), ["c_nationkey"], ["n_nationkey"])
    orders = read(inputs, "orders", "o_orderkey", "o_custkey", "o_orderdate")
    orders = table(mapped(orders, q5_orders, customers=customers))
    items = read(inputs, "lineitem", "l_orderkey", "l_suppkey", "l_extendedprice", "l_discount")
    partial = table(mapped(items, q5_sums, orders=orders, suppliers=suppliers))
    return sums(partial, ["n_name"], revenue="revenue").sort_by([("revenue", "descending")])


def q6_sum(batch: pa.Table) -> pa.Table:
    """Partial sum."""
    batch = batch.filter((pc.field("l_shipdate") >= Q6_FROM) & (pc.field("l_shipdate") < Q6_TO))
    batch = doubles(batch, "l_quantity", "l_extendedprice", "l_discount")
    low, high = Q6_DISCOUNT
    discount = pc.field("l_discount")
    batch = batch.filter((discount >= low) & (discount <= high) & (pc.field("l_quantity") < Q6_QUANTITY))
    return pa.table(
        {"revenue": [pc.sum(pc.multiply(batch["l_extendedprice"], batch["l_discount"])).as_py() or 0.0]}
    )


def q6(inputs: Inputs, folder: Path) -> pa.Table:
    """Forecasting revenue change."""
    items = read(inputs, "lineitem", "l_quantity", "l_extendedprice", "l_discount", "l_shipdate")
    return pa.table({"revenue": [pc.sum(table(mapped(items, q6_sum))["revenue"]).as_py()]})


def of_color(batch: pa.Table) -> pa.Table:
    """Q9's parts."""
    return batch.filter(pc.match_substring(batch["p_name"], Q9_COLOR)).select(["p_partkey"])


def q9_profit(batch: pa.Table, supply: pa.Table) -> pa.Table:
    """Profits, by order and nation."""
    batch = joined(batch, supply, ["l_partkey", "l_suppkey"], ["ps_partkey", "ps_suppkey"])
    batch = doubles(batch, "l_quantity", "l_extendedprice", "l_discount", "ps_supplycost")
    profit = pc.subtract(revenue(batch), pc.multiply(batch["ps_supplycost"], batch["l_quantity"]))
    return batch.select(["l_orderkey", "nation"]).append_column("sum_profit", profit)


def q9_sums(batch: pa.Table, profits: pa.Table) -> pa.Table:
    """Partial sums."""
    batch = joined(batch, profits, ["o_orderkey"], ["l_orderkey"])
    batch = batch.append_column("o_year", pc.year(batch["o_orderdate"]))
    return sums(batch, ["nation", "o_year"], sum_profit="sum_profit")


def q9(inputs: Inputs, folder: Path) -> pa.Table:
    """Product type profit measure."""
    parts = table(mapped(read(inputs, "part", "p_partkey", "p_name"), of_color))
    nation = tiny(inputs, "nation", "n_nationkey", "n_name").rename_columns(["n_nationkey", "nation"])
    supplier = tiny(inputs, "supplier", "s_suppkey", "s_nationkey")
    supplier = joined(supplier, nation, ["s_nationkey"], ["n_nationkey"]).select(["s_suppkey", "nation"])
    supply = read(inputs, "partsupp", "ps_partkey", "ps_suppkey", "ps_supplycost")
    supply = mapped(supply, joined, small=parts, left=["ps_partkey"], right=["p_partkey"])
    supply = joined(table(supply), supplier, ["ps_suppkey"], ["s_suppkey"])
    numbers = ("l_quantity", "l_extendedprice", "l_discount")
    items = read(inputs, "lineitem", "l_orderkey", "l_partkey", "l_suppkey", *numbers)
    profits = table(mapped(items, q9_profit, supply=supply))
    orders = read(inputs, "orders", "o_orderkey", "o_orderdate")
    partial = table(mapped(orders, q9_sums, profits=profits))
    found = sums(partial, ["nation", "o_year"], sum_profit="sum_profit")
    return found.sort_by([("nation", "ascending"), ("o_year", "descending")])


def quantities(batch: pa.Table) -> pa.Table:
    """Quantities by order."""
    return sums(doubles(batch, "l_quantity"), ["l_orderkey"], l_quantity="l_quantity")


def large(batch: pa.Table) -> pa.Table:
    """Q18's orders."""
    return quantities(batch).filter(pc.field("l_quantity") > Q18_QUANTITY)


def q18(inputs: Inputs, folder: Path) -> pa.Table:
    """Large volume customers."""
    items = mapped(read(inputs, "lineitem", "l_orderkey", "l_quantity"), quantities)
    orders_wanted = table(mapped(items.repartition(PARTITIONS, keys=["l_orderkey"]), large))
    orders = read(inputs, "orders", "o_orderkey", "o_custkey", "o_orderdate", "o_totalprice")
    orders = table(mapped(orders, joined, small=orders_wanted, left=["o_orderkey"], right=["l_orderkey"]))
    customers = read(inputs, "customer", "c_custkey", "c_name")
    found = table(mapped(customers, joined, small=orders, left=["c_custkey"], right=["o_custkey"]))
    names = {"l_quantity": "sum_qty"}
    found = doubles(found, "o_totalprice").rename_columns([names.get(n, n) for n in found.column_names])
    return found.sort_by([("o_totalprice", "descending"), ("o_orderdate", "ascending")]).slice(0, 100)


# -- the others --------------------------------------------------------------------------------------------------------


def sort(inputs: Inputs, folder: Path) -> None:
    """A file for each task; their names are in order, and their blocks, too, if Ray is told to keep it."""
    rows = read(inputs, "lineitem").sort(list(SORT_KEYS))
    rows.context.execution_options.preserve_order = True  # else as they come
    rows.write_parquet(str(folder), compression="snappy")


def repartition(inputs: Inputs, folder: Path) -> None:
    """By Ray's hash shuffle."""
    moved = read(inputs, "lineitem").repartition(REPARTITION_PARTS, keys=[REPARTITION_KEY])
    moved.write_parquet(str(folder), compression="snappy")


def different(batch: pa.Table) -> pa.Table:
    """Different rows."""
    return batch.group_by(batch.column_names, use_threads=False).aggregate([])


def distinct(inputs: Inputs, folder: Path) -> None:
    """Bring equal pairs together, then drop duplicates in each block."""
    pairs = read(inputs, "lineitem", *DISTINCT_KEYS).repartition(PARTITIONS, keys=list(DISTINCT_KEYS))
    mapped(pairs, different).write_parquet(str(folder), compression="snappy")


def count_words(batch: pa.Table, path: str) -> pa.Table:
    """Count the words of the lines that begin in some ranges of bytes of a file."""
    counted = []
    with open(path, "rb") as file:
        for start in batch["item"].to_pylist():
            file.seek(max(start - 1, 0))
            if start:
                file.readline()  # the rest of a line that began before
            begin = file.tell()
            text = file.read(max(start + TEXT_BLOCK - begin, 0)) + file.readline()
            words = pc.split_pattern(pa.array([text.decode().rstrip("\n").replace("\n", " ")]), " ").flatten()
            found = pc.value_counts(words)
            counted.append(pa.table({"word": found.field("values"), "count": found.field("counts")}))
    return sums(pa.concat_tables(counted), ["word"], count="count")


def wordcount(inputs: Inputs, folder: Path) -> pa.Table:
    """Ranges of bytes, as `read_text` reads a file in one task."""
    starts = list(range(0, inputs.text.stat().st_size, TEXT_BLOCK))
    ranges = ray.data.from_items(starts, override_num_blocks=len(starts))
    return sums(table(mapped(ranges, count_words, path=str(inputs.text))), ["word"], count="count")


def in_doubles(batch: pa.Table) -> pa.Table:
    """What is standardized, as doubles."""
    return doubles(batch, *STANDARDIZED)


def transformed(batch: pa.Table, fitted: dict[str, Any]) -> pa.Table:
    """The features of a batch, and on which side each row is."""
    columns = {name: batch[name] for name in FEATURE_KEYS}
    for name in STANDARDIZED:
        mean, std = fitted[f"mean({name})"], fitted[f"std({name})"]
        columns[name] = pc.divide(pc.subtract(batch[name], mean), std)
    for name in ENCODED:
        columns[name] = pc.index_in(batch[name], pa.array(sorted(fitted[f"unique({name})"]), pa.string()))
    keys = batch["l_orderkey"].to_numpy().astype(np.uint64)
    hashed = (keys * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    in_train = hashed % np.uint64(1000) < int(TRAIN_SHARE * 1000)
    columns["side"] = pa.array(np.where(in_train, "train", "test"))
    return pa.table(columns)


def features(inputs: Inputs, folder: Path) -> None:
    """Fit, then transform, then write both sides at once; folders get their names in the end."""
    items = mapped(read(inputs, "lineitem", *FEATURE_KEYS, *STANDARDIZED, *ENCODED), in_doubles)
    fitted = items.aggregate(
        *(Mean(name) for name in STANDARDIZED),
        *(Std(name, ddof=0) for name in STANDARDIZED),
        *(Unique(name) for name in ENCODED),
    )
    rows = mapped(items, transformed, fitted=fitted)
    rows.write_parquet(str(folder), partition_cols=["side"], compression="snappy")
    for side in ("train", "test"):
        (folder / f"side={side}").rename(folder / side)


@ray.remote
def matrix(batch: pa.Table) -> np.ndarray:
    """The columns of a block side by side, float64."""
    return np.stack([column.to_numpy() for column in batch.columns], axis=1).astype(np.float64, copy=False)


@ray.remote
def call(function: Any, rows: np.ndarray, argument: np.ndarray) -> np.ndarray:
    """Call a function with a partition."""
    return function(rows, argument)


def everywhere(path: Path, columns: tuple[str, ...]) -> partial_training.Everywhere:
    """Arrays of some columns in the object store, and calls of a function on each of them."""
    blocks = ray.data.read_parquet(str(path), columns=list(columns)).to_arrow_refs()
    parts = [matrix.remote(block) for block in blocks]
    return lambda function, argument: ray.get([call.remote(function, part, argument) for part in parts])


def kmeans(inputs: Inputs, folder: Path) -> pa.Table:
    """Tasks on arrays in the object store."""
    begin = pq.read_table(inputs.centers, columns=list(POINT_COLUMNS)).to_pandas().to_numpy()
    return partial_training.kmeans(everywhere(inputs.points, POINT_COLUMNS), begin)


def logistic(inputs: Inputs, folder: Path) -> pa.Table:
    """Tasks on arrays in the object store."""
    return partial_training.logistic(everywhere(inputs.samples, (*FEATURE_COLUMNS, LABEL)))


@ray.remote
def same(value: Any) -> Any:
    """Return what is given."""
    return value


def noop(inputs: Inputs, folder: Path) -> pa.Table:
    """Tasks, as a dataset of as many blocks takes longer."""
    done = ray.get([same.remote(i) for i in range(NOOP_PARTITIONS)])
    return pa.table({"count": [len(done)]})


class Ray:
    """A local cluster, and the jobs on it."""

    workloads: ClassVar[dict[str, Job]] = {
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
        "kmeans": kmeans,
        "logistic": logistic,
        "noop": noop,
    }
    missing: ClassVar[dict[str, str]] = {}

    def __init__(self, cores: int, scratch: Path):
        # Not under scratch: the names of Ray's sockets would become too long.
        self._temporary = tempfile.mkdtemp(prefix="ray-")
        ray.init(
            num_cpus=cores,
            object_store_memory=STORE,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=self._temporary,
            _node_ip_address="127.0.0.1",
        )
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.use_polars_sort = True
        context.default_hash_shuffle_parallelism = PARTITIONS
        context.max_hash_shuffle_aggregators = cores  # each is a process
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def versions(self) -> dict[str, str]:
        return {"ray": ray.__version__, "pyarrow": pa.__version__}

    def close(self) -> None:
        ray.shutdown()
        shutil.rmtree(self._temporary, ignore_errors=True)


def open_engine(cores: int, scratch: Path) -> Ray:
    """Start the cluster."""
    return Ray(cores, scratch)
