"""Headwater: a local session of one-thread workers, with everything else as it is by default."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from workloads import (
    CLUSTERS,
    DISTINCT_KEYS,
    ENCODED,
    FEATURE_COLUMNS,
    FEATURE_KEYS,
    GRADIENT_STEPS,
    LABEL,
    LLOYD_ITERATIONS,
    NOOP_PARTITIONS,
    POINT_COLUMNS,
    RATE,
    REPARTITION_KEY,
    REPARTITION_PARTS,
    SORT_KEYS,
    STANDARDIZED,
    TRAIN_SHARE,
)

import headwater as hw
from headwater import Dataset

from .headwater_tpch import TPCH
from .protocol import Inputs, Job


def words(batch: pa.Table) -> pa.Table:
    """The words of lines, one a row."""
    lists = pc.split_pattern(batch["text"].combine_chunks(), " ")
    return pa.table({"word": lists.flatten()})


def same(batch: dict[str, Any]) -> dict[str, Any]:
    """Return what is given."""
    return batch


class Headwater:
    """A session, and the jobs on it."""

    def __init__(self, cores: int, scratch: Path):
        os.environ["HEADWATER_HOME"] = str(scratch)  # where journals go by default
        self._session = hw.Session(workers=cores, threads_per_worker=1, progress=False).start()
        self.workloads: dict[str, Job] = {
            **{name: self._query(query) for name, query in TPCH.items()},
            "sort": self.sort,
            "repartition": self.repartition,
            "distinct": self.distinct,
            "wordcount": self.wordcount,
            "features": self.features,
            "kmeans": self.kmeans,
            "logistic": self.logistic,
            "noop": self.noop,
        }
        self.missing: dict[str, str] = {}

    def versions(self) -> dict[str, str]:
        import dask

        return {"headwater": hw.__version__, "dask": dask.__version__, "pyarrow": pa.__version__}

    def close(self) -> None:
        self._session.close()

    def _query(self, query: Callable[[Path], Dataset]) -> Job:
        return lambda inputs, folder: query(inputs.tpch).compute(self._session)

    def _lineitem(self, inputs: Inputs) -> Dataset:
        return hw.read_parquet(inputs.table("lineitem"))

    def _write(self, **datasets: Dataset) -> None:
        """Write Parquet, a folder for each dataset; what they have in common is computed once."""
        sinks = {
            path: dataset.write_parquet(path, compression="snappy") for path, dataset in datasets.items()
        }
        self._session.run(sinks).close()

    def sort(self, inputs: Inputs, folder: Path) -> None:
        self._write(**{str(folder): self._lineitem(inputs).sort(*SORT_KEYS)})

    def repartition(self, inputs: Inputs, folder: Path) -> None:
        items = self._lineitem(inputs).repartition(REPARTITION_PARTS, by=REPARTITION_KEY)
        self._write(**{str(folder): items})

    def distinct(self, inputs: Inputs, folder: Path) -> None:
        self._write(**{str(folder): self._lineitem(inputs).select(*DISTINCT_KEYS).distinct()})

    def wordcount(self, inputs: Inputs, folder: Path) -> pa.Table:
        lines = hw.read_text(str(inputs.text))
        counts = lines.map_batches(words, format="arrow").group_by("word").agg(count=hw.count())
        return counts.compute(self._session)

    def features(self, inputs: Inputs, folder: Path) -> None:
        items = self._lineitem(inputs).select(*FEATURE_KEYS, *STANDARDIZED, *ENCODED)
        chain = hw.prep.Standardize(*STANDARDIZED) | hw.prep.Ordinal(*ENCODED)
        rows = chain.fit(items).transform(items)
        train, test = rows.split(TRAIN_SHARE, 1 - TRAIN_SHARE, by="l_orderkey", seed=0)
        self._write(**{str(folder / "train"): train, str(folder / "test"): test})

    def kmeans(self, inputs: Inputs, folder: Path) -> pa.Table:
        begin = pq.read_table(inputs.centers)
        centers = np.stack([begin[name].to_numpy() for name in POINT_COLUMNS], axis=1)
        model = hw.train(
            hw.read_parquet(str(inputs.points)),
            features=POINT_COLUMNS,
            objective=hw.objectives.KMeans(CLUSTERS, centers, max_iterations=LLOYD_ITERATIONS, tolerance=0.0),
            dtype="float64",
        )
        found = model.params(self._session)["centers"]
        return pa.table(dict(zip(POINT_COLUMNS, found.T.copy())))

    def logistic(self, inputs: Inputs, folder: Path) -> pa.Table:
        """A batch of all rows makes plain gradient descent of stochastic."""
        samples = hw.read_parquet(str(inputs.samples))
        model = hw.train(
            samples,
            target=LABEL,
            features=FEATURE_COLUMNS,
            objective=hw.objectives.LogisticRegression(),
            optimizer=hw.optim.sgd(RATE),
            batch_size=pq.read_metadata(inputs.samples).num_rows,
            epochs=GRADIENT_STEPS,
            dtype="float64",
        )
        params = model.params(self._session)
        return pa.table({"weight": [*params["weights"], float(params["intercept"])]})

    def noop(self, inputs: Inputs, folder: Path) -> pa.Table:
        rows = hw.range(NOOP_PARTITIONS, partitions=NOOP_PARTITIONS).map_batches(same)
        return pa.table({"count": [rows.count(self._session)]})


def open_engine(cores: int, scratch: Path) -> Headwater:
    """Start a session."""
    return Headwater(cores, scratch)
