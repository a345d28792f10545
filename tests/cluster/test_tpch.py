"""TPC-H Q1, Q3 and Q6 give DuckDB's answers (a small scale here; scale 1 is `make bench`)."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

import headwater as hw

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GENERATOR = Path(sys.executable).with_name("tpchgen-cli")

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not GENERATOR.exists(), reason="needs tpchgen-cli (extra: bench)"),
]


@pytest.fixture(scope="module")
def tpch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tpch")
    subprocess.run(
        [GENERATOR, "parquet", "-s", "0.05", "--tables=lineitem,orders,customer", "--output-dir", folder],
        check=True,
        capture_output=True,
    )
    sys.path.insert(0, str(BENCHMARKS))
    try:
        modules = importlib.import_module("tpch_queries"), importlib.import_module("tpch")
    finally:
        sys.path.remove(str(BENCHMARKS))
    with hw.Session(workers=2, progress=False) as session:
        yield folder, session, *modules
    shutil.rmtree(folder)


@pytest.mark.parametrize("query", ["q1", "q3", "q6"])
def test_the_answer_is_duckdbs(tpch, query: str):
    folder, session, queries, tools = tpch
    got = queries.HEADWATER[query](folder).compute(session).to_pandas()
    expected = duckdb.sql(queries.SQL[query].format(folder)).df()
    assert tools.same_answer(got, expected), f"{got}\n{expected}"


def test_shuffled_and_broadcast_joins_give_the_same_answer(tpch):
    folder, _, queries, tools = tpch
    expected = duckdb.sql(queries.SQL["q3"].format(folder)).df()
    with hw.Session("inline", options=hw.PlanOptions(broadcast_bytes=0, partition_bytes=1 << 20)) as shuffled:
        got = queries.HEADWATER["q3"](folder).compute(shuffled).to_pandas()
    assert tools.same_answer(got, expected)
