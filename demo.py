"""The pipeline of ``headwater demo``: generated rides, cleaned, written, aggregated, and learnt from.

The model says which rides are tipped. It is trained on four fifths of the rides, and measured on the rest.
"""

from __future__ import annotations

from .datasets import rides_source, table_source, zones_table
from .model import Model
from .ops import metrics, objectives, optim, prep
from .ops.expressions import col, count
from .ops.scan import Scan
from .ops.training.train import AllReduce
from .pipeline import Dataset
from .planner.options import PlanOptions
from .program import pipeline
from .training import train

#: small partitions, so that even the demo's few megabytes are worth an exchange
OPTIONS = PlanOptions(partition_bytes=8 << 20)

#: of the training; half-way through them `headwater demo` kills a node
STEPS = 400
BATCH_ROWS = 4096
SHARDS = 8


@pipeline
def rides(
    rows: int = 500_000, output: str = ".demo/rides", seed: int = 0, steps: int = STEPS
) -> dict[str, Dataset | Model]:
    """Declare the demo.

    Args:
        rows: rides to generate.
        output: folder for the cleaned rides, as Parquet by borough.
        seed: another seed generates other rides.
        steps: of the training.

    Returns:
        ``cleaned``, sorted and written to ``output``; ``by_hour``, fares and tips by borough and hour, best
        tips first; ``model``, which rides are tipped; ``quality``, how well it does on rides it hasn't seen.
    """
    rides = Dataset(Scan(rides_source(rows, seed=seed, partitions=16)))
    zones = Dataset(Scan(table_source(zones_table())))

    clean = (
        rides.filter(col("fare") > 0, col("passengers").is_not_null())
        .join(zones, on="zone_id")
        .with_columns(hour=col("pickup").dt.hour(), tip_rate=col("tip") / col("fare"))
    )
    by_hour = (
        clean.group_by("borough", "hour")
        .agg(
            rides=count(),
            fares=col("fare").sum(),
            distance=col("distance").mean(),
            tip_rate=col("tip_rate").mean(),
        )
        .sort("tip_rate", "borough", "hour", descending=[True, False, False])
    )
    by_time = clean.drop("zone_id", "tipped").sort("borough", "pickup", "ride_id")
    return {
        "cleaned": by_time.write_parquet(output, partition_by="borough"),
        "by_hour": by_hour,
        **tipped(clean, steps),
    }


def tipped(clean: Dataset, steps: int) -> dict[str, Dataset | Model]:
    """Declare the model of the rides that are tipped, and its quality."""
    known = clean.select(
        "ride_id", "distance", "fare", "passengers", "borough", "payment", "tipped", evening=col("hour") >= 18
    )
    learn, held_out = known.split(0.8, 0.2, by="ride_id", seed=7)
    chain = prep.Standardize("distance", "fare", "passengers") | prep.OneHot("borough", "payment")
    fitted = chain.fit(learn)
    model = train(
        fitted.transform(learn.drop("ride_id")),
        target="tipped",
        objective=objectives.LogisticRegression(l2=1e-4),
        optimizer=optim.adam(1e-2),
        strategy=AllReduce(shards=SHARDS),
        steps=steps,
        batch_size=BATCH_ROWS,
        prep=fitted,
    )
    scored = fitted.transform(held_out).predict(model)
    quality = scored.agg(
        rides=count(),
        tipped=col("tipped").cast("float64").mean(),
        auc=metrics.auc("tipped", "probability"),
        log_loss=metrics.log_loss("tipped", "probability"),
    )
    return {"model": model, "quality": quality}
