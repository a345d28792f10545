"""Spark in local mode: Spark SQL; NumPy in the partitions of an RDD where something is trained."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from tpch_sql import SQL
from workloads import (
    DISTINCT_KEYS,
    ENCODED,
    FEATURE_COLUMNS,
    FEATURE_KEYS,
    LABEL,
    NOOP_PARTITIONS,
    POINT_COLUMNS,
    REPARTITION_KEY,
    REPARTITION_PARTS,
    SORT_KEYS,
    STANDARDIZED,
    TRAIN_SHARE,
)

from . import partial_training
from .protocol import Inputs, Job

TABLES = ("customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier")
#: partitions after a shuffle, before adaptive execution joins small ones
SHUFFLE_PARTITIONS = 8


def code(name: str, values: list[str]) -> Column:
    """The position of a column's value among a few."""
    chain = F
    for i, value in enumerate(values):
        chain = chain.when(F.col(name) == value, i)
    return chain.alias(name)


def block(batches: Any) -> Any:
    """All rows of a partition as the bytes of one matrix of doubles."""
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    if tables:
        columns = [column.to_numpy() for column in pa.concat_tables(tables).columns]
        matrix = np.stack(columns, axis=1).astype(np.float64, copy=False)
        yield pa.RecordBatch.from_pydict({"block": pa.array([matrix.tobytes()], pa.binary())})


class Spark:
    """A session, and the jobs on it."""

    def __init__(self, cores: int, scratch: Path):
        os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
        os.environ["OMP_NUM_THREADS"] = "1"  # each of the workers uses one core, as Spark advises
        settings = {
            "spark.driver.memory": "6g",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.local.dir": str(scratch),
            "spark.sql.warehouse.dir": str(scratch / "warehouse"),
            "spark.sql.shuffle.partitions": str(SHUFFLE_PARTITIONS),
            "spark.sql.adaptive.enabled": "true",
            "spark.sql.execution.arrow.pyspark.enabled": "true",
            "spark.sql.session.timeZone": "UTC",
        }
        builder = SparkSession.builder.master(f"local[{cores}]").appName("benchmark")
        for name, value in settings.items():
            builder = builder.config(name, value)
        self._spark = builder.getOrCreate()
        self._spark.sparkContext.setLogLevel("ERROR")
        self.workloads: dict[str, Job] = {
            **{name: self._query(name) for name in SQL},
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
        java = self._spark.sparkContext._jvm.System.getProperty("java.version")
        return {"pyspark": pyspark.__version__, "java": java}

    def close(self) -> None:
        self._spark.stop()

    def _read(self, inputs: Inputs, name: str) -> DataFrame:
        return self._spark.read.parquet(inputs.table(name))

    def _query(self, name: str) -> Job:
        query = re.sub(r"\bavg\((\w+)\)", r"avg(double(\1))", SQL[name])  # of decimals it has six digits only

        def run(inputs: Inputs, folder: Path) -> pa.Table:
            for table in TABLES:
                self._read(inputs, table).createOrReplaceTempView(table)
            return self._spark.sql(query).toArrow()

        return run

    def _write(self, rows: DataFrame, folder: Path) -> None:
        rows.write.mode("overwrite").parquet(str(folder), compression="snappy")

    # -- exchanges ---------------------------------------------------------------------------------

    def sort(self, inputs: Inputs, folder: Path) -> None:
        self._write(self._read(inputs, "lineitem").orderBy(*SORT_KEYS), folder)

    def repartition(self, inputs: Inputs, folder: Path) -> None:
        self._write(self._read(inputs, "lineitem").repartition(REPARTITION_PARTS, REPARTITION_KEY), folder)

    def distinct(self, inputs: Inputs, folder: Path) -> None:
        self._write(self._read(inputs, "lineitem").select(*DISTINCT_KEYS).distinct(), folder)

    def wordcount(self, inputs: Inputs, folder: Path) -> pa.Table:
        words = self._spark.read.text(str(inputs.text)).select(F.explode(F.split("value", " ")).alias("word"))
        return words.groupBy("word").count().toArrow()

    # -- features and training ---------------------------------------------------------------------

    def features(self, inputs: Inputs, folder: Path) -> None:
        items = self._read(inputs, "lineitem").select(*FEATURE_KEYS, *STANDARDIZED, *ENCODED)
        items = items.withColumns({name: F.col(name).cast("double") for name in STANDARDIZED})
        fitted = items.agg(
            *(F.mean(name).alias(f"{name}_mean") for name in STANDARDIZED),
            *(F.stddev_pop(name).alias(f"{name}_std") for name in STANDARDIZED),
            *(F.collect_set(name).alias(name) for name in ENCODED),
        ).first()
        assert fitted is not None
        rows = items.select(
            *FEATURE_KEYS,
            *(((F.col(n) - fitted[f"{n}_mean"]) / fitted[f"{n}_std"]).alias(n) for n in STANDARDIZED),
            *(code(name, sorted(fitted[name])) for name in ENCODED),
        )
        in_train = F.pmod(F.xxhash64("l_orderkey"), F.lit(1000)) < int(TRAIN_SHARE * 1000)
        self._write(rows.where(in_train), folder / "train")
        self._write(rows.where(~in_train), folder / "test")

    def kmeans(self, inputs: Inputs, folder: Path) -> pa.Table:
        """NumPy in an RDD: `pyspark.ml` takes no centers to begin with."""
        begin = pq.read_table(inputs.centers, columns=list(POINT_COLUMNS)).to_pandas().to_numpy()
        with self._blocks(inputs.points, POINT_COLUMNS) as everywhere:
            return partial_training.kmeans(everywhere, begin)

    def logistic(self, inputs: Inputs, folder: Path) -> pa.Table:
        """NumPy in an RDD: `pyspark.ml` minimizes in another way."""
        with self._blocks(inputs.samples, (*FEATURE_COLUMNS, LABEL)) as everywhere:
            return partial_training.logistic(everywhere)

    def _blocks(self, path: Path, columns: tuple[str, ...]) -> Blocks:
        return Blocks(self._spark.read.parquet(str(path)).select(*columns), len(columns))

    def noop(self, inputs: Inputs, folder: Path) -> pa.Table:
        numbers = self._spark.sparkContext.parallelize(range(NOOP_PARTITIONS), NOOP_PARTITIONS)
        return pa.table({"count": [numbers.map(lambda value: value).count()]})


class Blocks:
    """A matrix for each partition of a frame, kept in memory while the context lasts.

    Args:
        frame: columns of numbers.
        width: how many columns.
    """

    def __init__(self, frame: DataFrame, width: int):
        rows = frame.mapInArrow(block, "block binary").rdd
        self._matrices = rows.map(lambda row: np.frombuffer(row[0]).reshape(-1, width)).cache()

    def __enter__(self) -> partial_training.Everywhere:
        return lambda function, argument: self._matrices.map(
            lambda matrix: function(matrix, argument)
        ).collect()

    def __exit__(self, *_: Any) -> None:
        self._matrices.unpersist()


def open_engine(cores: int, scratch: Path) -> Spark:
    """Start the JVM."""
    return Spark(cores, scratch)
