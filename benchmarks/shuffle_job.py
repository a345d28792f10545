"""The shuffle that the recovery benchmark disturbs: its data, and what it computes, for each engine.

Rows of eight random 64-bit columns in 32 Parquet files are exchanged by hash of a key into 32 partitions. Of
each, one function sees all rows: it counts rows and keys and sums every column. Keys of one partition that
also turned up in another would be counted twice, so the answer tells whether the exchange was right.
"""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PARTITIONS = 32
VALUES = [f"v{i}" for i in range(7)]
SUMMARY = ["rows", "keys", "key", *VALUES]

#: what the job answers, by column of `SUMMARY`
Answer = dict[str, int]


def generate(folder: Path, rows: int) -> Answer:
    """Write the files, once; return the right answer.

    Args:
        folder: for the files.
        rows: of all files together, 64 bytes each.
    """
    known = folder / "answer.json"
    if known.exists():
        return json.loads(known.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    answer: Answer = dict.fromkeys(SUMMARY, 0)
    seen = np.zeros(span := max(1, rows // 4), bool)
    for file in range(PARTITIONS):
        rng = np.random.default_rng([7, file])
        count = rows * (file + 1) // PARTITIONS - rows * file // PARTITIONS
        columns = {"key": rng.integers(0, span, count)}
        columns |= {name: rng.integers(0, 1 << 31, count) for name in VALUES}
        seen[columns["key"]] = True
        answer["rows"] += count
        for name, column in columns.items():
            answer[name] += int(column.sum())
        path = folder / f"part-{file:02}.parquet"
        pq.write_table(
            pa.table(columns), path, compression="none", use_dictionary=False, row_group_size=count or 1
        )
    answer["keys"] = int(seen.sum())
    known.write_text(json.dumps(answer))
    return answer


def summarize_arrow(batch: pa.Table) -> pa.Table:
    """Summarize a whole partition."""
    found = {"rows": batch.num_rows, "keys": pc.count_distinct(batch["key"]).as_py()}
    found |= {name: pc.sum(batch[name]).as_py() or 0 for name in ["key", *VALUES]}
    return pa.table({name: pa.array([found[name]], pa.int64()) for name in SUMMARY})


def summarize_pandas(frame: Any) -> Any:
    """Summarize a whole partition; the same for pandas."""
    import pandas as pd

    found = {"rows": len(frame), "keys": frame["key"].nunique()}
    found |= {name: int(frame[name].sum()) for name in ["key", *VALUES]}
    return pd.DataFrame({name: [found[name]] for name in SUMMARY}, dtype="int64")


def pause(rows: Any, seconds: float) -> Any:
    """Sleep, and return the rows: work that takes a node's time and no processor's."""
    time.sleep(seconds)
    return rows


def in_headwater(folder: Path, seconds: float = 0.0) -> Any:
    """The job as a Headwater pipeline of one row.

    Args:
        folder: of the files.
        seconds: to sleep for each partition, before the exchange and after it.
    """
    import headwater as hw

    rows = hw.read_parquet(str(folder / "*.parquet"))
    whole: dict[str, Any] = {"format": "arrow", "batch_rows": 1 << 40}
    sleep = partial(pause, seconds=seconds)
    if seconds:
        rows = rows.map_batches(sleep, schema=rows.schema, **whole)
    moved = rows.repartition(PARTITIONS, by="key")
    if seconds:
        moved = moved.map_batches(sleep, schema=moved.schema, **whole)
    summary = pa.schema([(name, pa.int64()) for name in SUMMARY])
    return moved.map_batches(summarize_arrow, schema=summary, **whole).agg(
        **{name: hw.sum(name) for name in SUMMARY}
    )


def in_dask(folder: Path, method: str, seconds: float = 0.0) -> Any:
    """The job as a Dask DataFrame of one row a partition.

    Args:
        folder: of the files.
        method: of the shuffle: "p2p" or "tasks".
        seconds: to sleep for each partition, before the exchange and after it.
    """
    import dask.dataframe as dd

    rows = dd.read_parquet(folder, split_row_groups=False)
    if seconds:
        rows = rows.map_partitions(pause, seconds=seconds, meta=rows._meta)
    moved = rows.shuffle("key", npartitions=PARTITIONS, shuffle_method=method)
    if seconds:
        moved = moved.map_partitions(pause, seconds=seconds, meta=rows._meta)
    return moved.map_partitions(summarize_pandas, meta=summarize_pandas(rows._meta))


def answer_of(table: pa.Table | Any) -> Answer:
    """Read the answer from what an engine returned."""
    if isinstance(table, pa.Table):
        return {name: int(table[name][0].as_py()) for name in SUMMARY}
    return {name: int(table[name].sum()) for name in SUMMARY}
