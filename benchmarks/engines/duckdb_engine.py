"""DuckDB: SQL over Parquet; NumPy on the columns where something is trained."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from tpch_sql import SQL
from workloads import (
    DISTINCT_KEYS,
    ENCODED,
    FEATURE_COLUMNS,
    FEATURE_KEYS,
    LABEL,
    POINT_COLUMNS,
    REPARTITION_KEY,
    REPARTITION_PARTS,
    SORT_KEYS,
    STANDARDIZED,
    TRAIN_SHARE,
)

from . import numpy_training
from .protocol import Inputs, Job

TABLES = ("customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier")
SNAPPY = "FORMAT parquet, COMPRESSION snappy"


class DuckDB:
    """A connection to a database in memory."""

    def __init__(self, cores: int, scratch: Path):
        self._cores = cores
        self._db = duckdb.connect(config={"threads": cores, "temp_directory": str(scratch)})
        queries: dict[str, Job] = {name: self._query(name) for name in SQL}
        self.workloads: dict[str, Job] = {
            **queries,
            "sort": self.sort,
            "repartition": self.repartition,
            "distinct": self.distinct,
            "wordcount": self.wordcount,
            "features": self.features,
            "kmeans": self.kmeans,
            "logistic": self.logistic,
        }
        self.missing = {"noop": "has no partitions"}

    def versions(self) -> dict[str, str]:
        return {"duckdb": duckdb.__version__}

    def close(self) -> None:
        self._db.close()

    def _query(self, name: str) -> Job:
        def run(inputs: Inputs, folder: Path) -> pa.Table:
            for table in TABLES:
                self._db.execute(f"CREATE OR REPLACE TEMP VIEW {table} AS FROM '{inputs.table(table)}'")
            return self._db.sql(SQL[name]).to_arrow_table()

        return run

    def sort(self, inputs: Inputs, folder: Path) -> None:
        self._db.execute(f"""
            COPY (FROM '{inputs.table("lineitem")}' ORDER BY {", ".join(SORT_KEYS)})
            TO '{folder / "sorted.parquet"}' ({SNAPPY})""")

    def repartition(self, inputs: Inputs, folder: Path) -> None:
        part = f"hash({REPARTITION_KEY}) % {REPARTITION_PARTS} AS part"
        self._db.execute(f"""
            COPY (SELECT *, {part} FROM '{inputs.table("lineitem")}')
            TO '{folder}' ({SNAPPY}, PARTITION_BY (part), OVERWRITE_OR_IGNORE)""")

    def distinct(self, inputs: Inputs, folder: Path) -> None:
        self._db.execute(f"""
            COPY (SELECT DISTINCT {", ".join(DISTINCT_KEYS)} FROM '{inputs.table("lineitem")}')
            TO '{folder / "distinct.parquet"}' ({SNAPPY})""")

    def wordcount(self, inputs: Inputs, folder: Path) -> pa.Table:
        return self._db.sql(f"""
            WITH lines AS (
                FROM read_csv('{inputs.text}', columns = {{'line': 'VARCHAR'}}, header = false, delim = '\t',
                              quote = '', escape = '')),
            words AS (SELECT unnest(string_split(line, ' ')) AS word FROM lines)
            SELECT word, count(*) AS count FROM words GROUP BY word""").to_arrow_table()

    def features(self, inputs: Inputs, folder: Path) -> None:
        lineitem = f"'{inputs.table('lineitem')}'"
        fits = [
            *(f"avg({n}::DOUBLE) AS {n}_mean, stddev_pop({n}::DOUBLE) AS {n}_std" for n in STANDARDIZED),
            *(f"list_sort(list(DISTINCT {n})) AS {n}_values" for n in ENCODED),
        ]
        self._db.execute(f"CREATE OR REPLACE TEMP TABLE fitted AS SELECT {', '.join(fits)} FROM {lineitem}")
        columns = [
            *FEATURE_KEYS,
            *(f"({n}::DOUBLE - {n}_mean) / {n}_std AS {n}" for n in STANDARDIZED),
            *(f"list_position({n}_values, {n}) - 1 AS {n}" for n in ENCODED),
        ]
        bucket, last = "hash(l_orderkey) % 1000", int(TRAIN_SHARE * 1000)
        for side, rows in {"train": f"{bucket} < {last}", "test": f"{bucket} >= {last}"}.items():
            (folder / side).mkdir()
            self._db.execute(f"""
                COPY (SELECT {", ".join(columns)} FROM {lineitem}, fitted WHERE {rows})
                TO '{folder / side / "part.parquet"}' ({SNAPPY})""")

    def kmeans(self, inputs: Inputs, folder: Path) -> pa.Table:
        points, centers = (self._matrix(path, POINT_COLUMNS) for path in (inputs.points, inputs.centers))
        return numpy_training.kmeans(points, centers, self._cores)

    def logistic(self, inputs: Inputs, folder: Path) -> pa.Table:
        rows = self._matrix(inputs.samples, (*FEATURE_COLUMNS, LABEL))
        return numpy_training.logistic(rows[:, :-1], rows[:, -1], self._cores)

    def _matrix(self, path: Path, columns: tuple[str, ...]) -> np.ndarray:
        """Columns side by side, float64."""
        arrays = self._db.execute(f"SELECT {', '.join(columns)} FROM '{path}'").fetchnumpy()
        return np.stack([arrays[name] for name in columns], axis=1, dtype=np.float64, casting="unsafe")


def open_engine(cores: int, scratch: Path) -> DuckDB:
    """Connect."""
    return DuckDB(cores, scratch)
