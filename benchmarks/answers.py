"""Whether an answer is right: compared with what DuckDB computes from the same files, or NumPy for what is trained.

Every check returns None, or a sentence that says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datafiles import TPCH_TABLES
from engines.protocol import Inputs
from tpch_sql import SQL
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
    WORKLOADS,
)

#: relative tolerances: of sums that only the order of additions changes; of what many steps of training made of them
SUMS, TRAINED = 1e-9, 1e-6


class Answers:
    """The right answers over some inputs, each computed when it is first needed.

    Args:
        inputs: the files.
        threads: of DuckDB.
    """

    def __init__(self, inputs: Inputs, threads: int):
        self._inputs = inputs
        self._db = duckdb.connect(config={"threads": threads})
        for name in TPCH_TABLES:
            self._db.execute(f"CREATE VIEW {name} AS FROM '{inputs.table(name)}'")
        self._expected: dict[str, Any] = {}

    def check(self, workload: str, table: pa.Table | None, folder: Path) -> str | None:
        """Compare one answer.

        Args:
            workload: its name.
            table: what the engine returned.
            folder: where it wrote.
        """
        if WORKLOADS[workload].gives == "table" and table is None:
            return "no table was returned"
        if WORKLOADS[workload].gives == "files" and not parquet_files(folder):
            return "no Parquet was written"
        try:
            if workload in SQL:
                return self._query(workload, table)
            return getattr(self, f"_{workload}")(folder if table is None else table)
        except Exception as error:  # whatever an engine left, the others go on
            return f"can't be compared: {type(error).__name__}: {error}"

    # -- tables ------------------------------------------------------------------------------------

    def _query(self, workload: str, table: pa.Table) -> str | None:
        expected = self._once(workload, lambda: self._db.sql(SQL[workload]).to_arrow_table())
        return unequal(table, expected, SUMS)

    def _wordcount(self, table: pa.Table) -> str | None:
        expected = self._once("wordcount", self._count_words)
        return unequal(table.select(["word", "count"]).sort_by("word"), expected, 0.0)

    def _count_words(self) -> pa.Table:
        lines = (
            f"read_csv('{self._inputs.text}', columns = {{'line': 'VARCHAR'}}, header = false, delim = '\t')"
        )
        words = f"SELECT unnest(string_split(line, ' ')) AS word FROM {lines}"
        counted = f"SELECT word, count(*) AS count FROM ({words}) GROUP BY word ORDER BY word"
        return self._db.sql(counted).to_arrow_table()

    def _kmeans(self, table: pa.Table) -> str | None:
        expected = self._once("kmeans", lambda: lloyd(self._inputs))
        return distant(columns_of(table, POINT_COLUMNS), expected)

    def _logistic(self, table: pa.Table) -> str | None:
        expected = self._once("logistic", lambda: gradient_descent(self._inputs))
        return distant(columns_of(table, ["weight"])[:, 0], expected)

    def _noop(self, table: pa.Table) -> str | None:
        count = table["count"][0].as_py()
        return None if count == NOOP_PARTITIONS else f"{count} rows, not {NOOP_PARTITIONS}"

    # -- files -------------------------------------------------------------------------------------

    def _sort(self, folder: Path) -> str | None:
        files = parquet_files(folder)
        keys = pa.concat_tables([pq.ParquetFile(file).read(list(SORT_KEYS)) for file in files])
        columns = [(decimal_or_float(keys[name]) * 100).round().astype(np.int64) for name in SORT_KEYS]
        if not in_order(columns):
            return f"the rows of {len(files)} files, by name, aren't ordered by {', '.join(SORT_KEYS)}"
        return self._other_rows(files)

    def _repartition(self, folder: Path) -> str | None:
        files = parquet_files(folder)
        parts = {file: file.parent if file.parent != folder else file for file in files}
        if len(set(parts.values())) != REPARTITION_PARTS:
            return f"{len(set(parts.values()))} parts, not {REPARTITION_PARTS}"
        by_part: dict[Path, list[Path]] = {}
        for file, part in parts.items():
            by_part.setdefault(part, []).append(file)
        keys = "SELECT count(DISTINCT {0}) FROM {1}"
        apart = sum(self._number(keys.format(REPARTITION_KEY, read(group))) for group in by_part.values())
        if apart != self._number(keys.format(REPARTITION_KEY, read(files))):
            return f"a {REPARTITION_KEY} is in several parts"
        return self._other_rows(files)

    def _distinct(self, folder: Path) -> str | None:
        a, b = DISTINCT_KEYS
        told = f"SELECT count(*), sum(hash({a}::BIGINT, {b}::BIGINT)::HUGEINT) FROM "
        expected = self._once(
            "distinct", lambda: self._row(f"{told} (SELECT DISTINCT {a}, {b} FROM lineitem)")
        )
        found = self._row(told + read(parquet_files(folder)))
        if found[0] != expected[0]:
            return f"{found[0]} pairs, not {expected[0]}"
        return None if found == expected else "other pairs"

    def _features(self, folder: Path) -> str | None:
        sides = {side: parquet_files(folder / side) for side in ("train", "test")}
        if not all(sides.values()):
            return "no Parquet in `train` or `test`"
        train, test = (read(files) for files in sides.values())
        rows = self._number(f"SELECT count(*) FROM {train}") + self._number(f"SELECT count(*) FROM {test}")
        if rows != self._number("SELECT count(*) FROM lineitem"):
            return f"train and test have {rows} rows together"
        orders = "SELECT count(DISTINCT l_orderkey) FROM "
        of_train, of_test = self._number(orders + train), self._number(orders + test)
        of_all = self._number(orders + "lineitem")
        if of_train + of_test != of_all:
            return "an order is on both sides"
        if abs(of_train / of_all - TRAIN_SHARE) > 0.01:
            return f"{of_train / of_all:.1%} of the orders are in train"
        wrong = self._number(
            self._once("features", self._wrong_features).format(f"({both_sides(train, test)})")
        )
        return f"{wrong} rows have other features" if wrong else None

    def _wrong_features(self) -> str:
        """A query that counts rows that aren't as they should be, or are missing."""
        bad = []
        for name in STANDARDIZED:
            mean, std = self._mean_and_std(name)
            bad.append(f"abs(f.{name} - (l.{name}::DOUBLE - {mean!r}) / {std!r}) > {SUMS}")
        for name in ENCODED:
            values = self._db.execute(f"SELECT DISTINCT {name} FROM lineitem ORDER BY 1").fetchall()
            listed = ", ".join(f"'{value}'" for (value,) in values)
            bad.append(f"f.{name} != list_position([{listed}], l.{name}) - 1")
        bad += [f"f.{name} IS NULL" for name in (*STANDARDIZED, *ENCODED)]
        join = "lineitem l LEFT JOIN {} f ON " + " AND ".join(f"f.{k} = l.{k}" for k in FEATURE_KEYS)
        return f"SELECT count(*) FROM {join} WHERE {' OR '.join(bad)}"

    def _mean_and_std(self, name: str) -> tuple[float, float]:
        """The exact mean and the population's standard deviation of a column of decimals, then rounded."""
        cents = f"({name} * 100)::BIGINT::HUGEINT"
        n, total, squares = self._row(f"SELECT count(*), sum({cents}), sum({cents} * {cents}) FROM lineitem")
        mean = Fraction(int(total), 100 * n)
        return float(mean), float(Fraction(int(squares), 10_000 * n) - mean * mean) ** 0.5

    # -- DuckDB ------------------------------------------------------------------------------------

    def _other_rows(self, files: Sequence[Path]) -> str | None:
        """Tell if files have other rows than lineitem, in whatever order."""
        hashed = ", ".join(f"{name}::{kind}" for name, kind in self._lineitem_types)
        told = f"SELECT count(*), sum(hash({hashed})::HUGEINT) FROM "
        expected = self._once("lineitem", lambda: self._row(told + "lineitem"))
        found = self._row(told + read(files))
        if found[0] != expected[0]:
            return f"{found[0]} rows, not {expected[0]}"
        return None if found == expected else "the rows differ from those of lineitem"

    @cached_property
    def _lineitem_types(self) -> list[tuple[str, str]]:
        described = self._db.execute("DESCRIBE lineitem").fetchall()
        return [(row[0], row[1]) for row in described]

    def _once(self, name: str, compute: Callable[[], Any]) -> Any:
        if name not in self._expected:
            self._expected[name] = compute()
        return self._expected[name]

    def _row(self, query: str) -> tuple[Any, ...]:
        return self._db.execute(query).fetchall()[0]  # an unfinished result would bar the connection

    def _number(self, query: str) -> int:
        return int(self._row(query)[0])


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files in a folder and below, by name, numbers as numbers; names that begin with _ or . left out."""
    found = [p.relative_to(folder) for p in folder.rglob("*.parquet") if p.is_file()]
    shown = [p for p in found if not any(part.startswith(("_", ".")) for part in p.parts)]

    def by_number(path: Path) -> list[Any]:
        pieces = re.split(r"(\d+)", str(path))
        return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)]

    return [folder / p for p in sorted(shown, key=by_number)]


def read(files: Sequence[Path]) -> str:
    """DuckDB's expression for the rows of files; what folders are called is no column."""
    return f"read_parquet({[str(file) for file in files]!r}, hive_partitioning = false, union_by_name = true)"


def both_sides(train: str, test: str) -> str:
    """Both sides' rows, as SQL."""
    names = ", ".join((*FEATURE_KEYS, *STANDARDIZED, *ENCODED))
    return f"SELECT {names} FROM {train} UNION ALL SELECT {names} FROM {test}"


def unequal(table: pa.Table, expected: pa.Table, rtol: float) -> str | None:
    """Compare two tables row by row; numbers by value, whatever their types."""
    if set(table.column_names) != set(expected.column_names):
        return f"columns {table.column_names}, not {expected.column_names}"
    if len(table) != len(expected):
        return f"{len(table)} rows, not {len(expected)}"
    for field in expected.schema:
        got, right = table[field.name], expected[field.name]
        if pa.types.is_floating(field.type) or pa.types.is_integer(field.type):
            same = np.isclose(decimal_or_float(got), decimal_or_float(right), rtol=rtol, atol=0.0)
        else:
            same = pc.equal(got.cast(field.type), right).to_numpy()
        if not same.all():
            row = int(np.argmin(same))
            return f"{field.name} of row {row} is {got[row]}, not {right[row]}"
    return None


def distant(found: np.ndarray, expected: np.ndarray) -> str | None:
    """Compare arrays of float64."""
    if found.shape != expected.shape:
        return f"shape {found.shape}, not {expected.shape}"
    off = float(np.abs((found - expected) / expected).max())
    return None if off <= TRAINED else f"off by {off:.1e}, relatively"


def decimal_or_float(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers of any type as float64."""
    return column.cast(pa.float64()).to_numpy()


def columns_of(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """Columns side by side, shape (rows, columns), float64."""
    return np.stack([decimal_or_float(table[name]) for name in names], axis=1)


def in_order(columns: Sequence[np.ndarray]) -> bool:
    """Whether rows ascend by the first column, then the second, and so on."""
    tied = np.ones(len(columns[0]) - 1, bool)
    for column in columns:
        if (column[1:] < column[:-1])[tied].any():
            return False
        tied &= column[1:] == column[:-1]
    return True


def lloyd(inputs: Inputs) -> np.ndarray:
    """K-means in NumPy: centers after the last iteration."""
    points = columns_of(pq.read_table(inputs.points), POINT_COLUMNS)
    centers = columns_of(pq.read_table(inputs.centers), POINT_COLUMNS)
    for _ in range(LLOYD_ITERATIONS):
        distances = np.stack([np.square(points - center).sum(axis=1) for center in centers], axis=1)
        nearest = distances.argmin(axis=1)
        centers = np.stack([points[nearest == k].mean(axis=0) for k in range(CLUSTERS)])
    return centers


def gradient_descent(inputs: Inputs) -> np.ndarray:
    """Logistic regression in NumPy: weights, then the intercept."""
    table = pq.read_table(inputs.samples)
    x = columns_of(table, FEATURE_COLUMNS)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    label = decimal_or_float(table[LABEL])
    weights = np.zeros(x.shape[1])
    for _ in range(GRADIENT_STEPS):
        weights -= RATE * (x.T @ (1.0 / (1.0 + np.exp(-(x @ weights))) - label)) / len(x)
    return weights
