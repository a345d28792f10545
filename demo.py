"""The pipeline of ``headwater demo``: generated rides, cleaned, joined with zones, written and aggregated."""

from __future__ import annotations

from .datasets import rides_source, table_source, zones_table
from .ops.expressions import col, count
from .ops.scan import Scan
from .pipeline import Dataset
from .planner.options import PlanOptions
from .program import pipeline

#: small partitions, so that even the demo's few megabytes are worth an exchange
OPTIONS = PlanOptions(partition_bytes=8 << 20)


@pipeline
def rides(rows: int = 1_000_000, output: str = ".demo/rides", seed: int = 0) -> dict[str, Dataset]:
    """Declare the demo.

    Args:
        rows: rides to generate.
        output: folder for the cleaned rides, as Parquet by borough.
        seed: another seed generates other rides.

    Returns:
        ``cleaned``, sorted and written to ``output``; ``by_hour``, fares and tips by borough and hour, best
        tips first.
    """
    rides = Dataset(Scan(rides_source(rows, seed=seed, partitions=16)))
    zones = Dataset(Scan(table_source(zones_table())))

    cleaned = (
        rides.filter(col("fare") > 0, col("passengers").is_not_null())
        .join(zones, on="zone_id")
        .with_columns(hour=col("pickup").dt.hour(), tip_rate=col("tip") / col("fare"))
        .drop("zone_id", "tipped")
    )
    by_hour = (
        cleaned.group_by("borough", "hour")
        .agg(
            rides=count(),
            fares=col("fare").sum(),
            distance=col("distance").mean(),
            tip_rate=col("tip_rate").mean(),
        )
        .sort("tip_rate", "borough", "hour", descending=[True, False, False])
    )
    by_time = cleaned.sort("borough", "pickup", "ride_id")
    return {"cleaned": by_time.write_parquet(output, partition_by="borough"), "by_hour": by_hour}
