"""The pipeline that the fault matrix breaks: two scans, an exchange for a join, one for groups, one for a sort, a sink.

User functions sleep a little for each batch: load, so that a run lasts long enough to be hit.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import headwater as hw

#: small partitions, and no broadcasts, so that a few hundred kilobytes go through real exchanges
OPTIONS = hw.PlanOptions(partition_bytes=200 << 10, broadcast_bytes=0)
FILES, ROWS, ZONES = 12, 4000, 300

RIDES = pa.schema([("ride", pa.int64()), ("zone", pa.int64()), ("fare", pa.float64())])


def write_inputs(folder: Path) -> None:
    """Write the rides and zones that the pipeline reads."""
    for name in ("rides", "zones"):
        (folder / name).mkdir(parents=True)
    for number in range(FILES):
        rng = np.random.default_rng(number)
        rides = {
            "ride": np.arange(number * ROWS, (number + 1) * ROWS),
            "zone": rng.integers(0, ZONES, ROWS),
            "fare": rng.exponential(12.0, ROWS),
        }
        pq.write_table(pa.table(rides, schema=RIDES), folder / "rides" / f"{number:02}.parquet")
    for number in range(4):
        ids = np.arange(number, ZONES, 4)
        zones = {"zone": ids, "borough": [f"b{i % 7}" for i in ids], "rate": ids / ZONES}
        pq.write_table(pa.table(zones), folder / "zones" / f"{number}.parquet")


def taxed(batch):
    """Add a tax, slowly."""
    time.sleep(0.02)
    return {**batch, "fare": batch["fare"] * 1.08}


def rounded(batch):
    """Round, slowly."""
    time.sleep(0.02)
    return {**batch, "due": np.round(batch["due"], 6)}


@hw.pipeline
def rides(inputs: Path, output: Path = Path("due")):
    """Declare it: ``due``, each ride's due, sorted, as Parquet; ``boroughs``, sums and means by borough."""
    rides = hw.read_parquet(str(inputs / "rides"), partition_bytes=90_000).map_batches(taxed, schema=RIDES)
    zones = hw.read_parquet(str(inputs / "zones"), partition_bytes=2_000)
    due = rides.join(zones, on="zone").with_columns(due=hw.col("fare") * (1 + hw.col("rate")))
    due = due.map_batches(rounded, schema=due.schema)
    boroughs = due.group_by("borough", "zone").agg(
        rides=hw.count(), due=hw.sum("due"), mean=hw.mean("due"), most=hw.max("fare")
    )
    return {
        "due": due.select("ride", "borough", "due").sort("due", "ride").write_parquet(str(output)),
        "boroughs": boroughs.sort("borough", "zone"),
    }


if __name__ == "__main__":
    write_inputs(Path(sys.argv[1]))
