"""The examples on real files give DuckDB's answers, on a Dask cluster and inline, with the same bytes."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import duckdb
import pyarrow as pa
import pytest

import headwater as hw

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("HEADWATER_DATA", ROOT.parent / "shared" / "data"))

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(not DATA.exists(), reason="the real files aren't here")]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sessions():
    with hw.Session(workers=2, progress=False) as dask, hw.Session("inline") as inline:
        yield dask, inline


def run_on_both(sessions, outputs: dict[str, hw.Dataset]) -> dict[str, pa.Table]:
    """Run the outputs together on both sessions, compare digests, and give the tables."""
    dask, inline = sessions
    with dask.run(outputs) as first, inline.run(outputs) as second:
        for name in outputs:
            assert first.digest(name) == second.digest(name)
        return {name: first.table(name) for name in outputs}


def same_rows(got: pa.Table, sql: str) -> None:
    """Compare in order; floats to twelve digits, since DuckDB adds in another order."""
    expected = duckdb.sql(sql).to_arrow_table()
    assert got.schema.names == expected.schema.names
    assert got.num_rows == expected.num_rows
    for name in got.schema.names:
        a, b = got.column(name).to_pylist(), expected.column(name).to_pylist()
        if pa.types.is_floating(expected.schema.field(name).type):
            assert a == [None if x is None else pytest.approx(x, rel=1e-12, nan_ok=True) for x in b], name
        else:
            assert a == b, name


ADULT = """
    SELECT * REPLACE ("capital-gain" - "capital-loss" AS "capital-gain")
    FROM read_csv('{}/adult.csv', nullstr='?')
    WHERE workclass IS NOT NULL AND occupation IS NOT NULL AND "native-country" IS NOT NULL
"""


def test_adult_is_cleaned_aggregated_split_and_written_as_parquet(sessions, tmp_path: Path):
    outputs = example("adult").adult.bind(data=str(DATA), out=str(tmp_path))
    tables = run_on_both(sessions, outputs)
    clean = ADULT.format(DATA)
    same_rows(
        tables["by_education"],
        f"""SELECT education, "education-num" AS education_num, count(*) AS people,
                   avg(("income-per-year" = '>50K')::INT) AS rich, avg(age) AS age, avg("hours-per-week") AS hours
            FROM ({clean}) GROUP BY ALL ORDER BY education_num DESC""",
    )
    whole, train, test = (
        duckdb.sql(f"SELECT count(*), sum(age), sum(fnlwgt), sum({gain}) FROM {source}").fetchall()[0]
        for source, gain in (
            (f"({clean})", '"capital-gain"'),
            (f"read_parquet('{tmp_path}/train/*/*.parquet', hive_partitioning=true)", "gain"),
            (f"read_parquet('{tmp_path}/test/*/*.parquet', hive_partitioning=true)", "gain"),
        )
    )
    assert tuple(a + b for a, b in zip(train, test)) == whole
    assert train[0] / whole[0] == pytest.approx(0.8, abs=0.02)
    folders = sorted(path.name for path in (tmp_path / "train").iterdir() if path.is_dir())
    assert folders == ["sex=Female", "sex=Male"]


def test_flights_weather_joined_with_airports_daily_and_planes_by_maker(sessions):
    data = DATA / "nycflights13"
    tables = run_on_both(sessions, example("flights").flights.bind(data=str(data)))
    daily = f"""
        SELECT origin, name AS airport, month, day, count(*) AS hours, avg((temp - 32) * 5 / 9) AS celsius,
               min((temp - 32) * 5 / 9) AS coldest, max((temp - 32) * 5 / 9) AS warmest,
               max(wind_speed) AS wind, sum(precip) AS rain
        FROM read_csv('{data}/weather.csv', nullstr='NA') LEFT JOIN read_csv('{data}/airports.csv', nullstr='NA')
             ON origin = faa
        GROUP BY ALL"""
    same_rows(tables["daily"], f"{daily} ORDER BY origin, month, day")
    same_rows(
        tables["windiest"], f"FROM ({daily}) ORDER BY wind DESC NULLS LAST, origin, month, day LIMIT 10"
    )
    same_rows(
        tables["by_maker"],
        f"""SELECT manufacturer, count(*) AS planes, count(DISTINCT model) AS models, min(year) AS oldest,
                   avg(seats) AS seats
            FROM read_csv('{data}/planes.csv', nullstr='NA') GROUP BY 1 ORDER BY planes DESC, manufacturer""",
    )


def test_shakespeares_words_are_counted(sessions):
    tables = run_on_both(
        sessions, example("wordcount").wordcount.bind(data=str(DATA / "tinyshakespeare.txt"))
    )
    words = f"""
        SELECT word, count(*) AS n FROM (
            SELECT unnest(regexp_split_to_array(lower(content), '[^a-z'']+')) AS word
            FROM read_text('{DATA}/tinyshakespeare.txt')
        ) WHERE word <> '' GROUP BY word"""
    same_rows(tables["totals"], f"SELECT sum(n)::BIGINT AS words, count(*) AS different FROM ({words})")
    same_rows(tables["top"], f"FROM ({words}) ORDER BY n DESC, word LIMIT 10")


def test_real_flights_in_arrow_are_sorted_and_counted(sessions):
    path = DATA / "flights-200k.arrow"
    flights = hw.read_arrow(str(path))
    name = flights.columns[0]
    counts = flights.group_by(name).agg(n=hw.count()).sort("n", name, descending=[True, False]).limit(20)
    tables = run_on_both(sessions, {"counts": counts, "rows": flights.agg(n=hw.count())})
    raw = pa.ipc.open_file(path).read_all()
    expected = duckdb.sql(f"SELECT {name}, count(*) AS n FROM raw GROUP BY 1 ORDER BY n DESC, 1 LIMIT 20")
    assert tables["counts"].to_pylist() == expected.to_arrow_table().to_pylist()
    assert tables["rows"].to_pylist() == [{"n": raw.num_rows}]


def test_adult_incomes_are_learnt_by_logistic_regression(sessions):
    tables = run_on_both(sessions, example("adult_model").adult_model.bind(data=str(DATA)))
    (quality,) = tables["quality"].to_pylist()
    people = duckdb.sql(f"SELECT count(*) FROM read_csv('{DATA}/adult.csv')").fetchall()[0][0]
    assert quality["people"] == pytest.approx(people / 5, rel=0.03)
    assert quality["auc"] > 0.88
    assert quality["log_loss"] < 0.36
    assert quality["accuracy"] > 1 - quality["rich"] + 0.05


@pytest.mark.slow
def test_digits_are_read_by_a_perceptron_and_a_pytorch_network(sessions):
    pytest.importorskip("torch")
    tables = run_on_both(sessions, example("mnist").mnist.bind(data=str(DATA), epochs="2"))
    for name in ("mlp_quality", "cnn_quality"):
        (quality,) = tables[name].to_pylist()
        assert 1900 < quality["images"] < 2100
        assert quality["accuracy"] > 0.8
