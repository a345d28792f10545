"""The benchmark's TPC-H queries give DuckDB's answers (a small scale here; scale 1 is `make bench`)."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import duckdb
import pytest

import headwater as hw

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
QUERIES = ["tpch_q1", "tpch_q3", "tpch_q5", "tpch_q6", "tpch_q9", "tpch_q18"]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        not Path(sys.executable).with_name("tpchgen-cli").exists(), reason="needs tpchgen-cli (extra: bench)"
    ),
]


@pytest.fixture(scope="module")
def modules():
    """The benchmark's generator, its queries as pipelines and as SQL, and what compares answers."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return [
            importlib.import_module(name)
            for name in ("datafiles", "engines.headwater_tpch", "tpch_sql", "answers")
        ]
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def tpch(tmp_path_factory, modules):
    datafiles, pipelines, sql, answers = modules
    folder = tmp_path_factory.mktemp("tpch")
    datafiles.tpch(folder, 0.05)
    connection = duckdb.connect()
    for name in datafiles.TPCH_TABLES:
        connection.execute(f"CREATE VIEW {name} AS FROM '{folder / name}.parquet'")

    def difference(query: str, session: hw.Session) -> str | None:
        got = pipelines.TPCH[query](folder).compute(session)
        return answers.unequal(got, connection.sql(sql.SQL[query]).to_arrow_table(), answers.SUMS)

    yield difference
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def session():
    with hw.Session(workers=2, progress=False) as session:
        yield session


@pytest.mark.parametrize("query", QUERIES)
def test_the_answer_is_duckdbs(tpch, session: hw.Session, query: str):
    assert tpch(query, session) is None


@pytest.mark.parametrize("query", ["tpch_q3", "tpch_q9"])
def test_shuffled_and_broadcast_joins_give_the_same_answer(tpch, query: str):
    options = hw.PlanOptions(broadcast_bytes=0, partition_bytes=1 << 20)
    with hw.Session("inline", options=options) as shuffled:
        assert tpch(query, shuffled) is None
