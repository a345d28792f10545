"""The pipeline that training is broken with: rows are scanned, prepared, learnt from by a gang, scored and measured.

Each step sleeps a little: load, so that a run lasts long enough to be hit.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import headwater as hw

OPTIONS = hw.PlanOptions(partition_bytes=200 << 10)
FILES, ROWS, WIDTH = 8, 2000, 12
EPOCHS, BATCH = 4, 640
#: of one epoch's training rows, four fifths of all: 20 steps, 80 in all
SHARDS = 8


def write_inputs(folder: Path) -> None:
    """Write the rows that the pipeline learns from."""
    folder.mkdir(parents=True)
    truth = np.random.default_rng(99).normal(size=WIDTH)
    for number in range(FILES):
        rng = np.random.default_rng(number)
        x = rng.normal(size=(ROWS, WIDTH)) * np.arange(1, WIDTH + 1)
        y = (x @ truth + rng.normal(size=ROWS) > 0).astype(np.int64)
        columns = {f"x{i}": x[:, i] for i in range(WIDTH)}
        ids = np.arange(number * ROWS, (number + 1) * ROWS)
        pq.write_table(pa.table({"row": ids, **columns, "y": y}), folder / f"{number:02}.parquet")


class Slow(hw.objectives.MLP):
    """A perceptron that takes its time."""

    def value_and_grad(self, params, batch, rng):
        time.sleep(0.002)
        return super().value_and_grad(params, batch, rng)


@hw.pipeline
def rides(inputs: Path, sharded: bool = False, cache: float = 1.0):
    """Declare it: the model, and how well it does on rows that it hasn't seen."""
    names = [f"x{i}" for i in range(WIDTH)]
    rows = hw.read_parquet(str(inputs), partition_bytes=90_000)
    train, test = rows.split(0.8, 0.2, by="row", seed=3)
    prep = hw.prep.Standardize(*names).fit(train)
    model = hw.train(
        prep.transform(train),
        target="y",
        features=names,
        objective=Slow(hidden=(1024,), task="binary", dropout=0.1),
        optimizer=hw.optim.adam(1e-2),
        strategy=hw.AllReduce(shards=SHARDS, sharded_state=sharded, cache=cache),
        epochs=EPOCHS,
        batch_size=BATCH,
        validation=prep.transform(test),
        seed=5,
    )
    scored = prep.transform(test).predict(model)
    return {"model": model, "quality": scored.agg(auc=hw.metrics.auc("y", "probability"), rows=hw.count())}


if __name__ == "__main__":
    write_inputs(Path(sys.argv[1]))
