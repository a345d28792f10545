"""The benchmark's judges: answers that are wrong are seen, and tables say what was measured."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def load():
    """Import a module of the benchmark."""

    def load(name: str):
        sys.path.insert(0, str(BENCHMARKS))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(BENCHMARKS))

    return load


@pytest.fixture
def judge(load, tmp_path):
    """Judges answers over eight rows of lineitem, 100 of points and samples, and two lines of text."""
    inputs = load("engines.protocol").Inputs(
        *(tmp_path / name for name in ("tpch", "plain", "text", "points", "centers", "samples"))
    )
    inputs.tpch.mkdir()
    inputs.text.write_text("a b a\nb a\n")
    for name in load("datafiles").TPCH_TABLES:
        pq.write_table(lineitem() if name == "lineitem" else pa.table({"x": [1]}), inputs.table(name))
    return load("answers").Answers(inputs, 1)


def lineitem() -> pa.Table:
    rng = np.random.default_rng(0)
    cents = {
        name: pa.array(rng.integers(1, 1000, 80) / 4).cast(pa.decimal128(15, 2))
        for name in ("l_quantity", "l_extendedprice", "l_discount", "l_tax")
    }
    texts = {
        name: rng.choice(["x", "y", "z"], 80) for name in ("l_returnflag", "l_shipinstruct", "l_shipmode")
    }
    keys = {"l_orderkey": np.repeat(np.arange(40), 2), "l_linenumber": np.tile([1, 2], 40)}
    return pa.table(
        {**keys, "l_partkey": np.arange(80) % 7, "l_suppkey": np.arange(80) % 3, **cents, **texts}
    )


SORT_KEYS = [("l_extendedprice", "ascending"), ("l_orderkey", "ascending"), ("l_linenumber", "ascending")]


def write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, path)


def test_a_sort_is_right_if_files_by_name_follow_each_other(judge, tmp_path):
    ordered = lineitem().sort_by(SORT_KEYS)
    for i in range(20):  # part.2 comes before part.10
        write(ordered.slice(4 * i, 4), tmp_path / "right" / f"part.{i}.parquet")
    assert judge.check("sort", None, tmp_path / "right") is None
    write(ordered.slice(40), tmp_path / "swapped" / "part.0.parquet")
    write(ordered.slice(0, 40), tmp_path / "swapped" / "part.1.parquet")
    assert "aren't ordered" in judge.check("sort", None, tmp_path / "swapped")


def test_a_sort_that_loses_or_changes_a_row_is_wrong(judge, tmp_path):
    ordered = lineitem().sort_by(SORT_KEYS)
    write(ordered.slice(1), tmp_path / "short" / "part.parquet")
    assert judge.check("sort", None, tmp_path / "short") == "79 rows, not 80"
    changed = ordered.set_column(2, "l_partkey", [np.roll(ordered["l_partkey"].to_numpy(), 1)])
    write(changed, tmp_path / "changed" / "part.parquet")
    assert "differ" in judge.check("sort", None, tmp_path / "changed")


def test_a_repartition_keeps_keys_together(judge, tmp_path):
    rows = lineitem()
    part = rows["l_orderkey"].to_numpy() % 32
    for i in range(32):
        write(rows.filter(part == i), tmp_path / "right" / f"part={i}" / "data.parquet")
        write(rows.filter(np.arange(80) % 32 == i), tmp_path / "torn" / f"{i}.parquet")
    assert judge.check("repartition", None, tmp_path / "right") is None
    assert "several parts" in judge.check("repartition", None, tmp_path / "torn")
    write(rows, tmp_path / "one" / "part.parquet")
    assert judge.check("repartition", None, tmp_path / "one") == "1 parts, not 32"


def test_distinct_pairs_are_counted_and_compared(judge, tmp_path):
    pairs = lineitem().group_by(["l_partkey", "l_suppkey"]).aggregate([])
    write(pairs, tmp_path / "right" / "a.parquet")
    assert judge.check("distinct", None, tmp_path / "right") is None
    write(pa.concat_tables([pairs.slice(1), pairs.slice(1, 1)]), tmp_path / "twice" / "a.parquet")
    assert judge.check("distinct", None, tmp_path / "twice") == "other pairs"
    words = pa.table({"word": ["a", "b"], "count": [3, 2]})
    assert judge.check("wordcount", words, tmp_path) is None  # by the same connection


def test_words_may_come_in_any_order_and_type(judge, tmp_path):
    right = pa.table({"count": pa.array([2, 3], pa.int32()), "word": ["b", "a"]})
    assert judge.check("wordcount", right, tmp_path) is None
    wrong = pa.table({"word": ["a", "b"], "count": [2, 3]})
    assert judge.check("wordcount", wrong, tmp_path) == "count of row 0 is 2, not 3"


@pytest.mark.parametrize("spoil", [None, "scale", "code", "split", "row"])
def test_features_are_compared_row_by_row(judge, tmp_path, spoil: str | None):
    rows = lineitem()
    keys = ["l_orderkey", "l_linenumber"]
    columns = {name: rows[name] for name in keys}
    for name in ("l_quantity", "l_extendedprice", "l_discount", "l_tax"):
        values = rows[name].cast(pa.float64()).to_numpy()
        columns[name] = (values - values.mean()) / values.std(ddof=spoil == "scale")
    for name in ("l_returnflag", "l_shipinstruct", "l_shipmode"):
        columns[name] = np.unique(rows[name].to_pylist(), return_inverse=True)[1] + (spoil == "code")
    table = pa.table(columns)
    in_train = np.arange(80) < (65 if spoil == "split" else 64)
    if spoil == "row":
        table = table.set_column(0, "l_orderkey", [np.where(np.arange(80) == 3, 2, table["l_orderkey"])])
    write(table.filter(in_train), tmp_path / "train" / "a.parquet")
    write(table.filter(~in_train), tmp_path / "test" / "a.parquet")
    assert (judge.check("features", None, tmp_path) is None) == (spoil is None)


def test_floats_are_compared_to_nine_digits(load):
    unequal = load("answers").unequal
    right = pa.table({"name": ["a", "b"], "x": [1.0, 2.0]})
    assert unequal(pa.table({"x": [1.0 + 1e-12, 2.0], "name": ["a", "b"]}), right, 1e-9) is None
    assert unequal(pa.table({"x": [1.0, 2.0 + 1e-6], "name": ["a", "b"]}), right, 1e-9) is not None
    assert unequal(pa.table({"x": [1.0, 2.0], "name": ["b", "a"]}), right, 1e-9) is not None
    assert unequal(right.slice(1), right, 1e-9) == "1 rows, not 2"


def row(engine: str, workload: str, seconds: float | None, reason: str | None = None, **fate: bool) -> dict:
    """What was measured of a workload; None of the seconds is nothing."""
    measured = dict.fromkeys(("seconds", "cpu_seconds", "peak_rss_mb"), seconds)
    fate = {"ok": reason is None, "missing": False, "over_limit": False, "reason": reason, **fate}
    return {"engine": engine, "workload": workload, **measured, **fate, "versions": {}, "turns": []}


def test_ratios_leave_out_what_failed(load, tmp_path):
    rows = [
        row("headwater", "sort", 2.0),
        row("dask", "sort", 8.0),
        row("headwater", "distinct", 1.0),
        row("dask", "distinct", None, reason="out of memory"),
        row("headwater", "features", 1.0),
        row("dask", "features", None, reason="took more than 9 s", over_limit=True),
    ]
    document = tmp_path / "benchmarks.md"
    tables = load("results_tables")
    document.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    tables.replace_section(document, tables.markdown(rows, 1.0, 3, 2), rows)
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert [cell.strip() for cell in text.split("| geometric mean")[1].split("|")[1:2]] == ["0.25"]
    cells = {line[0]: line[1:] for line in table_of(text, "**Seconds**")}
    assert cells["distinct"] == ["1", "failed"]
    assert cells["features"] == ["1", "too long"]
    assert "- distinct: Dask: out of memory." in text
    assert "- features: Dask: took more than 9 s." in text
    assert "<svg" in document.with_suffix(".svg").read_text()


def table_of(text: str, title: str) -> list[list[str]]:
    """The cells of the table below a title, by line, without the head."""
    lines = text.split(title)[1].strip().split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_answers_may_be_checked_without_measuring(load):
    rows = [row("headwater", "sort", None), row("dask", "sort", None, reason="out of memory")]
    tables = load("results_tables")
    assert tables.line("sort", rows).split(maxsplit=1)[1] == "headwater right | dask FAILED"
    assert table_of(tables.markdown(rows, 1.0, 0, 2), "**Seconds**") == [["sort", "-", "failed"]]


class Scripted:
    """An engine that does as it is told, in place of a process."""

    missing = versions = MappingProxyType({})
    startup_seconds = 0.0
    workloads = ("sort",)

    def __init__(self, name: str, fate: Exception | None = None, opening: Exception | None = None):
        self.name, self.fate, self.opening, self.runs = name, fate, opening, 0

    def open(self):
        if self.opening:
            raise self.opening

    def close(self):
        pass

    def run(self, *_):
        self.runs += 1
        if self.fate:
            raise self.fate
        return 2.0, Used(1.0, 100.0)


@dataclass
class Used:
    cpu_seconds: float
    peak_rss_mb: float


def test_an_engine_that_fails_or_takes_too_long_is_told_of_and_the_others_go_on(load, tmp_path):
    errors = load("engine_client")
    engines = [
        Scripted("headwater"),
        Scripted("dask", fate=errors.OverLimitError("took more than 9 s")),
        Scripted("ray", opening=errors.EngineError("no room")),
        Scripted("duckdb"),
    ]

    class Right:
        def check(self, *_):
            return None

    compare = load("compare")
    clients = {engine.name: engine for engine in engines}
    rows = compare.Comparison(clients, None, Right(), tmp_path / "turn", turns=3).workload("sort")
    assert [found["ok"] for found in rows] == [True, False, False, True]
    assert [found["over_limit"] for found in rows] == [False, True, False, False]
    assert [engine.runs for engine in engines] == [4, 1, 0, 4]
    assert rows[2]["reason"] == "doesn't start: no room"


def test_string_views_can_be_hidden_from_readers(load, tmp_path):
    table = pa.table({"name": pa.array(["a", "b"], pa.string_view())})
    pq.write_table(table, tmp_path / "views.parquet")
    load("datafiles").write_plain(tmp_path / "plain.parquet", tmp_path / "views.parquet")
    plain = pq.read_table(tmp_path / "plain.parquet")
    assert plain.schema.field("name").type == pa.string()
    assert plain["name"].to_pylist() == ["a", "b"]
