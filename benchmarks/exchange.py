"""Moving all rows: a hash shuffle, a shuffle join and a sort, Headwater beside Dask DataFrame's P2P.

Both run on two processes of one thread, in turn, over the same Parquet files: TPC-H's lineitem and
orders in types that pandas holds well. Answers are compared. Read the ratios, as seconds move with
whatever else the machine does; CPU seconds of all processes do so less.

    python benchmarks/exchange.py --scale 1 --repeats 3 --data .bench
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datafiles
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timing

import headwater as hw
from headwater import col

ITEMS = """
    SELECT l_orderkey, l_partkey, l_suppkey, l_quantity::DOUBLE AS l_quantity,
           l_extendedprice::DOUBLE AS l_extendedprice, l_shipdate::TIMESTAMP AS l_shipdate,
           l_shipmode, l_comment
    FROM '{}/lineitem.parquet'"""
ORDERS = """
    SELECT o_orderkey, o_custkey, o_totalprice::DOUBLE AS o_totalprice, o_orderpriority
    FROM '{}/orders.parquet'"""
#: what the sort orders by; several keys, P2P's sort puts in no order across partitions
KEY = "l_extendedprice"

#: job to system to (seconds, CPU seconds) of each turn
Times = dict[str, dict[str, list[tuple[float, float]]]]


def prepare(folder: Path) -> None:
    """Write the two tables, once."""
    for name, query in {"items": ITEMS, "ordered": ORDERS}.items():
        if not (path := folder / f"{name}.parquet").exists():
            duckdb.execute(
                f"COPY ({query.format(folder)}) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 500000)"
            )


def count_rows(table: pa.Table) -> pa.Table:
    """Count the rows of a batch; being a function, it makes all columns travel."""
    return pa.table({"rows": [table.num_rows]})


def in_headwater(folder: Path, out: Path, session: hw.Session) -> dict[str, Callable[[], Any]]:
    """The three jobs as Headwater pipelines."""
    items, orders = (hw.read_parquet(str(folder / f"{n}.parquet")) for n in ("items", "ordered"))

    def rows(moved: hw.Dataset) -> int:
        counted = moved.map_batches(count_rows, format="arrow").agg(rows=col("rows").sum())
        return counted.compute(session)["rows"][0].as_py()

    def shuffle() -> int:
        return rows(items.repartition(by="l_orderkey"))

    def join() -> int:
        return rows(items.join(orders, left_on="l_orderkey", right_on="o_orderkey", strategy="shuffle"))

    def sort() -> None:
        items.sort(KEY).write_parquet(str(out)).run(session)

    return {"shuffle": shuffle, "join": join, "sort": sort}


def in_dask(folder: Path, out: Path) -> dict[str, Callable[[], Any]]:
    """The same as Dask DataFrame code, as its users write it."""
    import dask.dataframe as dd

    def read(name: str) -> Any:
        return dd.read_parquet(folder / f"{name}.parquet", split_row_groups=2)  # near its advised 100 MB

    def rows(moved: Any) -> int:
        return int(moved.map_partitions(len).compute().sum())

    def shuffle() -> int:
        return rows(read("items").shuffle("l_orderkey", shuffle_method="p2p"))

    def join() -> int:
        on = {"left_on": "l_orderkey", "right_on": "o_orderkey"}
        return rows(read("items").merge(read("ordered"), **on, shuffle_method="p2p", broadcast=False))

    def sort() -> None:
        read("items").sort_values(KEY, shuffle_method="p2p").to_parquet(out)

    return {"shuffle": shuffle, "join": join, "sort": sort}


def sorted_rows(out: Path) -> int:
    """Count the rows of a sorted folder, its files in the order of their first keys; -1 if a row is out of order."""
    keys = (pq.read_table(path, columns=[KEY])[KEY].to_numpy() for path in out.rglob("*.parquet"))
    whole = np.concatenate(sorted((part for part in keys if len(part)), key=lambda part: part[0]))
    return len(whole) if (whole[1:] >= whole[:-1]).all() else -1


def measure(folder: Path, repeats: int) -> tuple[Times, list[str]]:
    """Run both in turn, ``repeats`` times after a warm-up; seconds by job and system, and what was wrong."""
    from distributed import Client, LocalCluster

    logging.getLogger("distributed.shuffle").setLevel(logging.ERROR)
    out = folder / "sorted"
    with (
        hw.Session(workers=2, threads_per_worker=1, progress=False) as session,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=True),
    ):
        systems = {"headwater": in_headwater(folder, out, session), "dask": in_dask(folder, out)}
        times: Times = {job: {name: [] for name in systems} for job in systems["dask"]}
        wrong: list[str] = []
        for turn in range(repeats + 1):
            for job, by_system in times.items():
                answers = []
                for name, taken in by_system.items():
                    shutil.rmtree(out, ignore_errors=True)
                    answer, took = timing.timed(systems[name][job])
                    if turn:
                        taken.append(took)
                    answers.append(sorted_rows(out) if job == "sort" else answer)
                if answers[0] != answers[1] or answers[0] < 0:
                    wrong.append(f"{job}: {answers}")
    shutil.rmtree(out, ignore_errors=True)
    return times, wrong


def main() -> None:
    """Prepare, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(".bench"))
    options = parser.parse_args()
    folder = (options.data / f"tpch-{options.scale:g}").resolve()
    datafiles.tpch(folder, options.scale)
    prepare(folder)
    size = pq.read_table(folder / "items.parquet").nbytes / 1e6
    times, wrong = measure(folder, options.repeats)
    print(f"{size:,.0f} MB of lineitem in memory, median of {options.repeats}, load {os.getloadavg()[0]:.1f}")
    for job, by_system in times.items():
        speed = size / timing.medians(by_system)["headwater"][0]
        print(f"{timing.row(job, by_system)}   headwater {speed:.0f} MB/s")
    print("answers: " + ("equal" if not wrong else f"WRONG: {wrong}"))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
