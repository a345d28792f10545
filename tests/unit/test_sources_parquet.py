"""Parquet is read as DuckDB reads it: every type, split by row group, pruned, columns pushed down."""

from __future__ import annotations

import datetime
import decimal
import pickle
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.datasets import ParquetSource, parquet_source
from headwater.errors import CorruptFileError, ParameterError, SchemaMismatchError
from headwater.ops.expressions import col
from headwater.ops.source import read_exactly


def read(source: ParquetSource, columns=None, predicate=None, limit=None, splits=None) -> pa.Table:
    """Read splits as a worker would: unpickled, one after the other."""
    columns = source.schema.names if columns is None else columns
    worker = pickle.loads(pickle.dumps(source))
    schema = pa.schema([source.schema.field(name) for name in columns])
    tables = [
        table
        for split in (source.splits() if splits is None else splits)
        for table in read_exactly(worker, pickle.loads(pickle.dumps(split)), columns, predicate, limit)
    ]
    assert all(table.schema == schema for table in tables)
    return pa.concat_tables([schema.empty_table(), *tables])


def sample(rows: int) -> pa.Table:
    return pa.table(
        {"id": np.arange(rows), "x": np.arange(rows) / 4, "s": [f"name-{i % 7}" for i in range(rows)]}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        pq.write_table(sample(3000).slice(i * 1000, 1000), tmp_path / f"part-{i}.parquet", row_group_size=100)
    return tmp_path


def test_rows_and_order_are_duckdbs(folder: Path):
    source = parquet_source(folder)
    expected = duckdb.sql(f"from read_parquet('{folder}/*.parquet') order by id").to_arrow_table()
    assert read(source).to_pydict() == expected.to_pydict()


def test_splits_hold_whole_row_groups_with_exact_rows_and_never_two_files(folder: Path):
    size = pq.read_metadata(folder / "part-0.parquet").row_group(0).total_byte_size
    source = parquet_source(folder, partition_bytes=3 * size + size // 2)
    splits = source.splits()
    assert [split.index for split in splits] == list(range(len(splits)))
    assert len(splits) == 12
    for split in splits:
        assert read(source, splits=[split]).num_rows == split.rows
    assert sum(split.rows for split in splits) == 3000
    assert len(parquet_source(folder, partition_bytes=1).splits()) == 30


def test_every_type_comes_as_its_plain_one(tmp_path: Path):
    table = pa.table(
        {
            "i8": pa.array([1, None], pa.int8()),
            "u64": pa.array([2**63, None], pa.uint64()),
            "f32": pa.array([1.5, float("nan")], pa.float32()),
            "dec": pa.array([decimal.Decimal("1.10"), None], pa.decimal128(10, 2)),
            "date": pa.array([datetime.date(2024, 2, 29), None]),
            "ts": pa.array([1, None], pa.timestamp("us", "Europe/Zurich")),
            "time": pa.array([datetime.time(1, 2, 3), None], pa.time64("us")),
            "cat": pa.array(["a", None]).dictionary_encode(),
            "large": pa.array(["a", None], pa.large_string()),
            "view": pa.array(["a", None], pa.string_view()),
            "bin": pa.array([b"\x00\xff", None]),
            "list": pa.array([[1, None], None]),
            "struct": pa.array([{"a": 1, "b": "x"}, None]),
            "bool": pa.array([True, None]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    got = read(parquet_source(tmp_path / "t.parquet"))
    assert got.schema.field("cat").type == got.schema.field("large").type == pa.string()
    assert got.schema.field("dec").type == pa.decimal128(10, 2)
    assert got.schema.field("ts").type == pa.timestamp("us", "Europe/Zurich")
    plain = [name for name in table.column_names if name != "f32"]
    assert got.select(plain).to_pydict() == table.select(plain).to_pydict()
    assert np.isnan(got.column("f32")[1].as_py())


def test_columns_come_in_the_order_asked_for_and_none_gives_the_row_count(folder: Path):
    source = parquet_source(folder)
    assert read(source, ["s", "id"]).column_names == ["s", "id"]
    split = source.splits()[0]
    counted = list(source.read(split, []))
    assert sum(table.num_rows for table in counted) == split.rows
    assert all(table.num_columns == 0 for table in counted)


def test_names_that_look_like_paths_are_names(tmp_path: Path):
    table = pa.table({"a": [{"b": 1}], "a.b": [2], "a.b.c": ["x"]})
    pq.write_table(table, tmp_path / "t.parquet")
    source = parquet_source(tmp_path / "t.parquet")
    assert read(source).to_pydict() == table.to_pydict()
    assert read(source, ["a.b"]).to_pydict() == {"a.b": [2]}


def test_limit_stops_early(folder: Path):
    source = parquet_source(folder)
    split = source.splits()[0]
    assert sum(table.num_rows for table in source.read(split, ["id"], limit=17)) == 17


@pytest.mark.parametrize(
    ("predicate", "where"),
    [
        (col("id") < 250, "id < 250"),
        ((col("id") >= 1990) & (col("id") < 2010), "id >= 1990 and id < 2010"),
        (col("s") == "name-3", "s = 'name-3'"),
        (col("s") > "zzz", "s > 'zzz'"),
        (col("x").is_null(), "x is null"),
        ((col("id") == 5) | (col("x") > 740), "id = 5 or x > 740"),
        (~(col("id") > 10), "not id > 10"),
    ],
)
def test_pruning_by_statistics_loses_no_row(folder: Path, predicate, where: str):
    source = parquet_source(folder, partition_bytes=4000)
    kept = source.prune(source.splits(), predicate)
    expected = duckdb.sql(f"select id from read_parquet('{folder}/*.parquet') where {where} order by id")
    assert read(source, ["id"], predicate, splits=kept)["id"].to_pylist() == [
        row[0] for row in expected.fetchall()
    ]


def test_pruning_drops_splits_and_reads_only_matching_row_groups(folder: Path):
    source = parquet_source(folder, partition_bytes=1 << 20)
    kept = source.prune(source.splits(), col("id") >= 2000)
    assert [split.index for split in kept] == [2]
    read_rows = sum(t.num_rows for t in source.read(kept[0], ["id"], col("id") >= 2950))
    assert read_rows == 100
    assert source.prune(source.splits(), col("id") > 9999) == []


def test_small_files_are_one_partition_of_which_pruning_keeps_a_part(folder: Path):
    source = parquet_source(folder)
    assert [split.rows for split in source.splits()] == [3000]
    kept = source.prune(source.splits(), col("id") >= 2000)
    assert [split.rows for split in kept] == [1000]
    assert read(source, ["id"], splits=kept)["id"].to_pylist() == list(range(2000, 3000))
    assert sum(t.num_rows for t in source.read(source.splits()[0], ["id"], limit=1500)) == 1500


def test_row_groups_without_a_matching_row_are_skipped_where_statistics_do_not_tell(tmp_path: Path):
    ids = np.random.default_rng(0).permutation(200_000)
    table = pa.table({"id": ids, "wide": [f"{i:030d}" for i in ids]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=50_000)
    source = parquet_source(tmp_path / "t.parquet")
    predicate = col("id") == 77_777
    (split,) = source.prune(source.splits(), predicate)
    assert split.rows == 200_000
    read_tables = list(source.read(split, ["wide", "id"], predicate))
    assert sum(table.num_rows for table in read_tables) == 50_000
    assert read(source, ["wide"], predicate)["wide"].to_pylist() == [f"{77_777:030d}"]


@pytest.mark.parametrize("value", [float("nan"), None])
def test_pruning_keeps_what_statistics_leave_out(tmp_path: Path, value: float | None):
    pq.write_table(pa.table({"x": pa.array([1.0, value, 3.0])}), tmp_path / "t.parquet")
    source = parquet_source(tmp_path / "t.parquet")
    predicate = col("x").is_null() if value is None else col("x") != 1.0
    kept = source.prune(source.splits(), predicate)
    assert read(source, ["x"], predicate, splits=kept).num_rows == (1 if value is None else 2)


def test_pruning_by_types_of_time_and_decimals(tmp_path: Path):
    table = pa.table(
        {
            "ns": pa.array(np.arange(1000), pa.timestamp("ns")),
            "us": pa.array(np.arange(1000), pa.timestamp("us", "UTC")),
            "day": pa.array(np.arange(1000, dtype=np.int32), pa.date32()),
            "dec": pa.array([decimal.Decimal(i) / 10 for i in range(1000)], pa.decimal128(8, 1)),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=100)
    source = parquet_source(tmp_path / "t.parquet", partition_bytes=1)
    for name, value in [
        ("ns", pa.scalar(550, pa.timestamp("ns"))),
        ("us", pa.scalar(550, pa.timestamp("us", "UTC"))),
        ("day", pa.scalar(550, pa.date32())),
        ("dec", decimal.Decimal("55.0")),
    ]:
        kept = source.prune(source.splits(), col(name) >= value)
        assert read(source, [name], col(name) >= value, splits=kept).num_rows == 450, name
        assert len(kept) < 10 or name == "ns", name


def test_hive_values_are_columns_and_prune_whole_files(tmp_path: Path):
    duckdb.sql(
        f"copy (select i as id, i % 3 as k, case when i % 2 = 0 then 'a b' end as t from range(60) r(i)) "
        f"to '{tmp_path}/out' (format parquet, partition_by (k, t))"
    )
    source = parquet_source(tmp_path / "out")
    assert source.schema == pa.schema([("id", pa.int64()), ("k", pa.int64()), ("t", pa.string())])
    rows = sorted(read(source).to_pylist(), key=lambda row: row["id"])
    assert rows == [{"id": i, "k": i % 3, "t": "a b" if i % 2 == 0 else None} for i in range(60)]
    kept = source.prune(source.splits(), (col("k") == 1) & col("t").is_not_null())
    assert len(kept) == 1
    assert set(read(source, ["k"], splits=kept)["k"].to_pylist()) == {1}
    assert sorted(read(source, ["t", "id"], col("k") == 2)["id"].to_pylist()) == list(range(2, 60, 3))


def test_schemas_must_agree_but_for_the_order(tmp_path: Path):
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"b": ["y"], "a": [2]}), tmp_path / "2.parquet")
    assert read(parquet_source(tmp_path)).to_pydict() == {"a": [1, 2], "b": ["x", "y"]}
    pq.write_table(pa.table({"a": [1.5], "b": ["x"]}), tmp_path / "3.parquet")
    with pytest.raises(
        SchemaMismatchError, match=r"3\.parquet: column 'a' is double, but int64 in .*1\.parquet"
    ):
        parquet_source(tmp_path)
    pq.write_table(pa.table({"a": [1], "c": ["x"]}), tmp_path / "3.parquet")
    with pytest.raises(
        SchemaMismatchError, match=r"3\.parquet lacks the column 'b' and also has the column 'c'"
    ):
        parquet_source(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 this is not parquet PAR1", b"a,b\n1,2\n"])
def test_a_file_that_is_not_parquet_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "bad.parquet").write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"bad\.parquet \(\d+ bytes\) can't be read as Parquet"):
        parquet_source(tmp_path / "bad.parquet")


def test_a_file_cut_short_is_named(tmp_path: Path):
    pq.write_table(sample(1000), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptFileError, match=r"t\.parquet"):
        parquet_source(tmp_path)


def test_a_broken_page_is_found_when_read(tmp_path: Path):
    path = tmp_path / "torn.parquet"
    pq.write_table(pa.table({"a": np.arange(100_000)}), path, compression="zstd")
    tear(path, pq.read_metadata(path).row_group(0).column(0).data_page_offset)
    with pytest.raises(CorruptFileError, match=r"torn\.parquet"):
        read(parquet_source(path))


def test_page_checksums_find_what_no_decoder_would(tmp_path: Path):
    path = tmp_path / "torn.parquet"
    values = np.random.default_rng(0).random(100_000)
    pq.write_table(pa.table({"a": values}), path, compression="none", write_page_checksum=True)
    tear(path, 2000)
    with pytest.raises(CorruptFileError, match=r"torn\.parquet.*CRC"):
        read(parquet_source(path))


def tear(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 4000)


def test_a_source_and_its_splits_pickle_small(folder: Path):
    source = parquet_source(folder, partition_bytes=1)
    assert len(source.splits()) == 30
    assert len(pickle.dumps(source)) < 4000
    assert max(len(pickle.dumps(split)) for split in source.splits()) < 1000
    assert pickle.loads(pickle.dumps(source)).splits() == source.splits()
    assert pickle.loads(pickle.dumps(source)).identity() == source.identity()


def test_sizes_in_memory_are_near_the_truth(tmp_path: Path):
    table = pa.table(
        {"k": np.arange(50_000) % 10, "s": [f"a rather long name, {i % 10}" for i in range(50_000)]}
    )
    pq.write_table(table, tmp_path / "t.parquet")  # dictionary-encoded: far smaller in the file
    source = parquet_source(tmp_path / "t.parquet")
    assert source.splits()[0].bytes == pytest.approx(table.nbytes, rel=0.2)
    assert source.column_bytes(["k"]) == pytest.approx(table["k"].nbytes / table.nbytes, rel=0.2)
    assert source.column_bytes(["k", "s"]) == pytest.approx(1)


def test_a_file_without_rows_has_a_schema_and_no_splits_with_rows(tmp_path: Path):
    pq.write_table(sample(0), tmp_path / "t.parquet")
    source = parquet_source(tmp_path / "t.parquet")
    assert source.schema.names == ["id", "x", "s"]
    assert read(source).num_rows == 0


def test_options_are_checked(folder: Path):
    with pytest.raises(ParameterError, match="partition_bytes must be a positive integer, not 0"):
        parquet_source(folder, partition_bytes=0)
