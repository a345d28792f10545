"""The jobs of the RDD paper's experiments: logistic regression and k-means over some hundred MB of text.

A row is ten numbers of six decimals and a label, 0 or 1, that follows a logistic model of them. The same rows lie as
CSV and as Parquet.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

import headwater as hw
from headwater.ops.training.program import BLOCK_ROWS

FEATURES = [f"x{i}" for i in range(10)]
FILES = 8
#: bytes of a row as text, on the average
ROW_BYTES = 93.5
#: true weights of the logistic model
TRUE = np.linspace(-1, 1, len(FEATURES))
TYPES = dict.fromkeys([*FEATURES, "label"], "float32")
#: columns of what `gradient` returns
SUMS = ["rows", "loss", "g", *(f"g{i}" for i in range(len(FEATURES)))]

Callback = Callable[[dict[str, float]], Any]


def generate(folder: Path, megabytes: int) -> tuple[int, int]:
    """Write the rows, once.

    Args:
        folder: for the files.
        megabytes: of text, about.

    Returns:
        How many rows there are, and bytes of text.
    """
    rows = int(megabytes * 1e6 / ROW_BYTES)
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in range(FILES):
            count = rows * (file + 1) // FILES - rows * file // FILES
            table = _make(np.random.default_rng([12, file]), count)
            pcsv.write_csv(table, folder / f"part-{file}.csv", pcsv.WriteOptions(quoting_style="none"))
            narrow = pa.table({name: table[name].cast(kind) for name, kind in TYPES.items()})
            pq.write_table(narrow, folder / f"part-{file}.parquet", compression="none", use_dictionary=False)
        (folder / "done").touch()
    return rows, sum(path.stat().st_size for path in folder.glob("*.csv"))


def _make(rng: np.random.Generator, count: int) -> pa.Table:
    x = np.round(rng.standard_normal((count, len(FEATURES))) + rng.integers(0, 4, (count, 1)), 6)
    chance = 1 / (1 + np.exp(-(x - 1.5) @ TRUE))
    columns = {name: x[:, i] for i, name in enumerate(FEATURES)}
    return pa.table({**columns, "label": (rng.random(count) < chance).astype(np.int8)})


def read_text(folder: Path) -> hw.Dataset:
    """The rows, parsed from text."""
    return hw.read_csv(str(folder / "*.csv"), schema=TYPES)


def read_binary(folder: Path) -> hw.Dataset:
    """The rows, decoded from Parquet."""
    return hw.read_parquet(str(folder / "*.parquet"))


def gradient_job(rows: hw.Dataset, weights: np.ndarray) -> hw.Dataset:
    """One iteration as a pipeline that begins at the source: sums of loss and gradient over all rows.

    Args:
        rows: with the columns of the files.
        weights: of the features, and the intercept; shape (11,).
    """
    parts = rows.map_batches(
        partial(gradient, weights=weights.tolist()), schema=dict.fromkeys(SUMS, "float64"), format="numpy"
    )
    return parts.agg(**{name: hw.sum(name) for name in SUMS})


def gradient(batch: dict[str, np.ndarray], weights: list[float]) -> dict[str, np.ndarray]:
    """Sum loss and gradient of a batch, by the objective that ``hw.train`` uses, in blocks of as many rows."""
    objective = hw.objectives.LogisticRegression()
    w = np.asarray(weights, np.float32)
    params = {"weights": w[:-1], "intercept": w[-1]}
    sums = dict.fromkeys(SUMS, 0.0)
    x = np.stack([batch[name] for name in FEATURES], axis=1)
    for start in range(0, len(x), BLOCK_ROWS):
        block = {"x": x[start : start + BLOCK_ROWS], "y": batch["label"][start : start + BLOCK_ROWS]}
        count = len(block["y"])
        loss, grads, _ = objective.value_and_grad(params, block)
        found = [count, loss * count, float(grads["intercept"]) * count, *(grads["weights"] * count)]
        for name, value in zip(SUMS, found):
            sums[name] += float(value)
    return {name: np.array([value]) for name, value in sums.items()}


def regression(rows: hw.Dataset, cache: float, evaluations: int, callback: Callback) -> hw.Model:
    """Logistic regression by L-BFGS: every step is one evaluation of loss and gradient over all rows.

    Args:
        rows: with the columns of the files.
        cache: share of the rows that is kept as arrays.
        evaluations: about how many there are at most.
        callback: called after each.
    """
    return hw.train(
        rows,
        target="label",
        features=FEATURES,
        objective=hw.objectives.LogisticRegression(),
        optimizer=hw.optim.lbfgs(max_iterations=evaluations, tolerance=1e-9),
        strategy=hw.AllReduce(cache=cache),
        callbacks=[callback],
    )


def clustering(rows: hw.Dataset, clusters: int, iterations: int, callback: Callback) -> hw.Model:
    """K-means from given centers; after a first step that takes means, every step is an iteration.

    Args:
        rows: with the columns of the files.
        clusters, iterations: how many.
        callback: called after each step.
    """
    centers = np.random.default_rng(3).standard_normal((clusters, len(FEATURES))) + 1.5
    objective = hw.objectives.KMeans(
        clusters, centers, max_iterations=iterations, tolerance=0.0, empty="keep"
    )
    return hw.train(rows, features=FEATURES, objective=objective, callbacks=[callback])
