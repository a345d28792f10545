"""What the sinks write is what DuckDB, pandas and our own sources read back."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import pickle
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from headwater.datasets import (
    ArrowSink,
    CsvSink,
    JsonSink,
    ParquetSink,
    arrow_source,
    csv_source,
    json_source,
    parquet_source,
)
from headwater.datasets.json_text import json_lines
from headwater.errors import ColumnNotFoundError, ParameterError, TypeMismatchError
from headwater.ops.sink import Sink

SINKS = {"parquet": ParquetSink, "csv": CsvSink, "json": JsonSink, "arrow": ArrowSink}
SOURCES = {"parquet": parquet_source, "csv": csv_source, "json": json_source, "arrow": arrow_source}


def write(sink: Sink, *partitions: pa.Table, pieces: int = 3) -> None:
    """Write partitions as a run does: checked, staged in tasks from pickled sinks, committed once."""
    schema = partitions[0].schema
    sink.check(schema)
    files = []
    for index, table in enumerate(partitions):
        size = -(-table.num_rows // pieces) or 1
        stream = (table.slice(start, size) for start in range(0, table.num_rows, size))
        files += pickle.loads(pickle.dumps(sink)).stage("run", index, 0, stream, schema)
    sink.commit("run", files)


def read(source) -> pa.Table:
    tables = [t for split in source.splits() for t in source.read(split, source.schema.names)]
    return pa.concat_tables([source.schema.empty_table(), *tables])


def names(folder: Path) -> list[str]:
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != "_SUCCESS"
    )


@pytest.fixture
def table() -> pa.Table:
    return pa.table(
        {
            "id": np.arange(100),
            "x": pa.array([i / 4 if i % 5 else None for i in range(100)]),
            "s": pa.array([f'"q", {i}\n\\' if i % 3 else None for i in range(100)]),
            "e": ["" if i % 2 else "NA" for i in range(100)],
            "day": pa.array([datetime.date(2024, 1, 1) + datetime.timedelta(i) for i in range(100)]),
            "at": pa.array([datetime.datetime(2024, 1, 1, 5, microsecond=i) for i in range(100)]),
            "b": [i % 2 == 0 for i in range(100)],
        }
    )


@pytest.mark.parametrize("kind", SINKS)
@pytest.mark.parametrize("name", ["out", "single"])
def test_what_is_written_is_read_back(tmp_path: Path, table: pa.Table, kind: str, name: str):
    path = tmp_path / (name + (f".{kind}" if name == "single" else ""))
    parts = [table] if name == "single" else [table.slice(0, 40), table.slice(40, 0), table.slice(40)]
    write(SINKS[kind](path), *parts)
    options = {}
    if kind == "csv":
        options = {"newlines_in_values": True}
    if kind == "json":
        options = {"schema": {"day": "date32", "at": "timestamp[us]"}}
    got = read(SOURCES[kind](path, **options))
    assert got.schema == table.schema
    assert got.to_pydict() == table.to_pydict()
    assert path.is_file() == (name == "single")


@pytest.mark.parametrize("kind", SINKS)
def test_duckdb_and_pandas_read_it(tmp_path: Path, table: pa.Table, kind: str):
    write(SINKS[kind](tmp_path / "out"), table.slice(0, 50), table.slice(50))
    glob = f"{tmp_path}/out/part-*"
    if kind == "arrow":
        got = pa.concat_tables(ipc.open_file(p).read_all() for p in sorted((tmp_path / "out").glob("part-*")))
    else:
        quoted = ", allow_quoted_nulls=false" if kind == "csv" else ""
        typed = 'select * replace ("at"::timestamp as "at")'  # JSON has no times: DuckDB takes them for text
        got = duckdb.sql(f"{typed} from read_{kind}('{glob}'{quoted}) order by id").to_arrow_table()
    for name in table.column_names:
        assert got[name].to_pylist() == table[name].to_pylist(), name


def test_partition_by_writes_hive_folders_that_duckdb_reads(tmp_path: Path):
    table = pa.table(
        {
            "id": range(60),
            "k": [i % 3 if i % 7 else None for i in range(60)],
            "t": [["a b", "c/d", "é=1", ""][i % 4] for i in range(60)],
        }
    )
    write(ParquetSink(tmp_path / "out", partition_by=["k", "t"]), table.slice(0, 30), table.slice(30))
    got = duckdb.sql(
        f"select id, k, t from read_parquet('{tmp_path}/out/**/*.parquet', hive_partitioning=true) order by id"
    )
    assert [(i, k) for i, k, _ in got.fetchall()] == list(zip(range(60), table["k"].to_pylist()))
    ours = sorted(read(parquet_source(tmp_path / "out")).to_pylist(), key=lambda row: row["id"])
    assert ours == table.to_pylist()
    assert "k=1/t=c%2Fd/part-00000.parquet" in names(tmp_path / "out")
    assert "k" not in pq.read_schema(tmp_path / "out/k=1/t=c%2Fd/part-00000.parquet").names


def test_files_depend_on_rows_and_not_on_how_the_stream_is_cut(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("headwater.datasets.partitioned.MAX_OPEN", 2)
    monkeypatch.setattr("headwater.datasets.partitioned.MAX_ROWS", 500)
    monkeypatch.setattr("headwater.ops.morsels.rechunk.__defaults__", (300,))
    table = pa.table({"k": [i * i % 7 for i in range(5000)], "x": np.arange(5000)})
    contents = []
    for pieces in (1, 13):
        out = tmp_path / str(pieces)
        write(ParquetSink(out, partition_by="k", row_group_rows=100), table, pieces=pieces)
        contents.append({name: (out / name).read_bytes() for name in names(out)})
        assert sorted(read(parquet_source(out))["x"].to_pylist()) == list(range(5000))
    assert contents[0] == contents[1]
    assert any("part-00000-1" in name for name in contents[0])  # files were closed and continued


def test_columns_get_a_dictionary_where_values_repeat(tmp_path: Path):
    """Also inside of lists and structs, and however the rows come; one of distinct values only costs time."""
    rows = 20_000
    numbers = np.random.default_rng(5).permutation(rows)
    table = pa.table(
        {
            "id": numbers,
            "half": numbers // 2,
            "fiftieth": numbers // 50,
            "side": pa.array(["left", None]).take(pa.array(numbers % 2)),
            "price": pa.array([decimal.Decimal(int(n)) / 4 for n in numbers], pa.decimal128(15, 2)),
            "pair": pa.StructArray.from_arrays([pa.array(numbers), pa.array(numbers % 3)], ["id", "third"]),
            "tags": pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(numbers % 5, 2)), 2).cast(
                pa.list_(pa.int64())
            ),
        }
    )
    written = set()
    for pieces in (1, 7):
        path = tmp_path / f"{pieces}.parquet"
        write(ParquetSink(path, row_group_rows=8000), table, pieces=pieces)
        assert pq.read_table(path).equals(table)
        written.add(path.read_bytes())
        for group in range(3):
            columns = [pq.ParquetFile(path).metadata.row_group(group).column(i) for i in range(8)]
            with_one = [c.path_in_schema for c in columns if "RLE_DICTIONARY" in c.encodings]
            assert with_one == ["fiftieth", "side", "pair.third", "tags.list.element"]
    assert len(written) == 1


def test_row_groups_have_the_rows_asked_for(tmp_path: Path):
    table = pa.table({"x": range(1000)})
    write(ParquetSink(tmp_path / "x.parquet", row_group_rows=300, compression="snappy"), table, pieces=17)
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [300, 300, 300, 100]
    assert metadata.row_group(0).column(0).compression == "SNAPPY"


@pytest.mark.parametrize("kind", SINKS)
@pytest.mark.parametrize("partition_by", [(), ("k",)])
def test_a_dataset_without_rows_keeps_its_columns(tmp_path: Path, kind: str, partition_by):
    empty = pa.schema([("k", pa.string()), ("x", pa.float64())]).empty_table()
    write(SINKS[kind](tmp_path / "out", partition_by=partition_by), empty, empty)
    assert len(names(tmp_path / "out")) == 1
    source = SOURCES[kind](
        tmp_path / "out", **({"schema": {"x": "float64"}} if kind in ("json", "csv") else {})
    )
    assert "x" in source.schema.names
    if kind != "json":
        assert set(source.schema.names) == {"k", "x"}
    assert read(source).num_rows == 0


def test_empty_partitions_leave_no_files_beside_others(tmp_path: Path):
    table = pa.table({"x": range(10)})
    write(ParquetSink(tmp_path / "out"), table.slice(0, 0), table, table.slice(0, 0))
    assert names(tmp_path / "out") == ["part-00001.parquet"]


@pytest.mark.parametrize(
    ("name", "kind", "codec"),
    [("o.csv.gz", "csv", "gzip"), ("o.json.zst", "json", "zstd"), ("o", "csv", "bz2")],
)
def test_text_is_compressed_by_suffix_or_option(tmp_path: Path, name: str, kind: str, codec: str):
    table = pa.table({"x": range(10_000)})
    sink = SINKS[kind](tmp_path / name, **({"compression": codec} if name == "o" else {}))
    write(sink, table)
    path = tmp_path / name / "part-00000.csv.bz2" if name == "o" else tmp_path / name
    data = path.read_bytes()
    assert data[:2] in (b"\x1f\x8b", b"\x28\xb5", b"BZ")
    if kind == "csv":
        assert pd.read_csv(path)["x"].tolist() == list(range(10_000))
    assert read(SOURCES[kind](path))["x"].to_pylist() == list(range(10_000))


def test_json_of_every_type_is_what_python_parses():
    table = pa.table(
        {
            "i": pa.array([1, None, -(2**63)]),
            "u": pa.array([2**64 - 1, 0, None], pa.uint64()),
            "f": pa.array([1.0, float("nan"), -1e-300]),
            "h": pa.array([1.5, -math.inf, None], pa.float16()),
            "d": pa.array([decimal.Decimal("1.10"), None, decimal.Decimal("-3.00")], pa.decimal128(9, 2)),
            "s": pa.array(["".join(map(chr, range(0x30))), 'é☃😀"\\', None]),
            "at": pa.array([0, 1, None], pa.timestamp("us", "UTC")),
            "n": pa.nulls(3),
            "l": pa.array([[1.0, None], [], None]),
            "ll": pa.array([[["a"], None], [], [[]]]),
            "o": pa.array([{"a": 1, "b": None}, None, {"a": None, "b": [True]}]),
            "m": pa.array([[("k", 1), ('q"', None)], [], None], pa.map_(pa.string(), pa.int64())),
            "z": pa.FixedSizeListArray.from_arrays(pa.array(range(6)), 2),
        }
    )
    for start, part in ((0, table), (1, table.slice(1))):
        text = b"".join(json_lines(part)).decode()
        rows = [json.loads(line) for line in text.splitlines()]
        expected = table.to_pylist()[start:]
        for row, want in zip(rows, expected, strict=True):
            for name in ("i", "u", "s", "n", "l", "ll", "o", "z"):
                assert row[name] == want[name], name
            assert row["f"] == (None if want["f"] is None or math.isnan(want["f"]) else want["f"])
            assert row["d"] == (None if want["d"] is None else float(want["d"]))
            assert row["m"] == (None if want["m"] is None else dict(want["m"]))
            if want["at"] is not None:
                assert datetime.datetime.fromisoformat(row["at"]) == want["at"]
    first = json.loads(b"".join(json_lines(table)).decode().splitlines()[0])
    assert first["h"] == 1.5
    assert isinstance(first["f"], float)


def test_bad_options_and_types_are_named_before_anything_runs(tmp_path: Path, table: pa.Table):
    nested = pa.schema([("id", pa.int64()), ("l", pa.list_(pa.int64())), ("raw", pa.binary())])
    with pytest.raises(TypeMismatchError, match=r"column 'l' is list.*csv can't hold.*Parquet"):
        CsvSink(tmp_path / "o").check(nested)
    with pytest.raises(TypeMismatchError, match=r"column 'raw' is binary, which json"):
        JsonSink(tmp_path / "o").check(nested)
    ParquetSink(tmp_path / "o").check(nested)
    with pytest.raises(ColumnNotFoundError, match=r"no column 'idd'.*Did you mean 'id'"):
        ParquetSink(tmp_path / "o", partition_by="idd").check(nested)
    with pytest.raises(TypeMismatchError, match="makes no folder"):
        ParquetSink(tmp_path / "o", partition_by="l").check(nested)
    with pytest.raises(ParameterError, match="no column is left"):
        ParquetSink(tmp_path / "o", partition_by="x").check(pa.schema([("x", pa.int64())]))
    with pytest.raises(ParameterError, match="compression is one of"):
        ParquetSink(tmp_path / "o", compression="zip")
    with pytest.raises(ParameterError, match='"error" or "overwrite"'):
        ParquetSink(tmp_path / "o", if_exists="append")
    with pytest.raises(ParameterError, match="one file can't have partition_by"):
        ParquetSink(tmp_path / "o.parquet", partition_by="id", single_file=True)
    assert list(tmp_path.iterdir()) == []


def test_csv_keeps_floats_floats_and_a_lone_null_a_row(tmp_path: Path):
    values = [1.0, -0.0, 100.0, 1e14, 1e300, 0.1, 5e-324, math.inf, -math.inf, math.nan, None]
    table = pa.table({"whole": pa.array([float(i) for i in range(11)]), "any": pa.array(values)})
    write(CsvSink(tmp_path / "out"), table)
    back = read(csv_source(tmp_path / "out"))
    assert back.schema == table.schema
    assert [repr(x) for x in back["any"].to_pylist()] == [repr(x) for x in values]
    assert duckdb.sql(f"describe from '{tmp_path}/out/*.csv'").fetchall()[0][1] == "DOUBLE"
    one = pa.table({"x": pa.array([1.0, None, 3.0])})
    write(CsvSink(tmp_path / "one.csv"), one)
    assert read(csv_source(tmp_path / "one.csv")).to_pydict() == one.to_pydict()
    assert pd.read_csv(tmp_path / "one.csv")["x"].isna().tolist() == [False, True, False]


def test_csv_text_is_what_arrow_writes_but_for_floats(tmp_path: Path):
    table = pa.table(
        {
            'a "b"': ['x"y', "", None, "é,\n"],
            "i": [1, None, -5, 2**62],
            "t": pa.array(
                [datetime.datetime(2024, 1, 2, 3, 4, 5, 6), None, None, None], pa.timestamp("us", "UTC")
            ),
            "d": pa.array([datetime.date(1, 1, 1), None, None, None]),
            "b": [True, False, None, None],
            "m": pa.array([decimal.Decimal("1.50"), None, None, None]),
        }
    )
    write(CsvSink(tmp_path / "ours.csv"), table)
    pcsv.write_csv(table, tmp_path / "arrow.csv")
    assert (tmp_path / "ours.csv").read_bytes() == (tmp_path / "arrow.csv").read_bytes()


def test_a_folder_that_is_written_and_then_closed_to_open_others_is_done(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("headwater.datasets.partitioned.MAX_OPEN", 2)
    table = pa.table({"k": ["z"] * 100 + ["a", "b", "c"], "x": range(103)})
    write(ParquetSink(tmp_path / "out", partition_by="k", row_group_rows=100), table, pieces=1)
    back = read(parquet_source(tmp_path / "out")).sort_by("x")
    assert back.select(["k", "x"]).to_pydict() == table.to_pydict()


def test_the_files_that_a_run_names_are_those_that_are_there(tmp_path):
    import headwater as hw

    rows = hw.range(8, partitions=4).filter(hw.col("id") >= 4)
    with hw.Session("inline", journal=False) as session:
        result = session.run({"out": rows.write_parquet(str(tmp_path / "out"))})
        named = result.table("out")["path"].to_pylist()
        assert sorted(named) == sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
        assert result.report.outputs["out"].files == len(named) == 2
