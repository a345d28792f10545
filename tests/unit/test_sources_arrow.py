"""Arrow IPC files, Feather files, streams and tables in memory are read exactly, wherever they are cut."""

from __future__ import annotations

import pickle
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pytest

from headwater.datasets import arrow_source, table_source
from headwater.errors import CorruptFileError, ParameterError, SchemaMismatchError, TypeMismatchError

FLIGHTS = Path(__file__).parents[3] / "shared" / "data" / "flights-200k.arrow"


def read(source, columns=None) -> pa.Table:
    columns = source.schema.names if columns is None else columns
    worker = pickle.loads(pickle.dumps(source))
    splits = pickle.loads(pickle.dumps(list(source.splits())))
    schema = pa.schema([source.schema.field(name) for name in columns])
    tables = [table for split in splits for table in worker.read(split, columns)]
    assert all(table.schema == schema for table in tables)
    return pa.concat_tables([schema.empty_table(), *tables])


def write(
    path: Path, table: pa.Table, batch_rows: int, compression: str | None = None, stream: bool = False
) -> Path:
    options = ipc.IpcWriteOptions(compression=compression)
    with (ipc.new_stream if stream else ipc.new_file)(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return path


@pytest.fixture
def table() -> pa.Table:
    return pa.table(
        {
            "id": np.arange(1000),
            "s": pa.array([f"n{i % 13}" if i % 7 else None for i in range(1000)]),
            "cat": pa.array([f"c{i % 3}" for i in range(1000)]).dictionary_encode(),
            "l": [[i, None] for i in range(1000)],
        }
    )


@pytest.mark.skipif(not FLIGHTS.exists(), reason="the shared data isn't here")
@pytest.mark.parametrize("partition_bytes", [1 << 30, 300_000])
def test_flights_agree_with_duckdb(partition_bytes: int):
    source = arrow_source(FLIGHTS, partition_bytes=partition_bytes)
    flights = read(source)  # noqa: F841  (DuckDB reads it by name)
    raw = feather.read_table(FLIGHTS, memory_map=False)  # noqa: F841
    query = "select count(*), sum(delay), sum(distance), sum(time), avg(delay * time) from "
    assert duckdb.sql(query + "flights").fetchall() == duckdb.sql(query + "raw").fetchall()
    assert sum(split.rows for split in source.splits()) == 200_000
    assert (len(source.splits()) > 4) == (partition_bytes < 1 << 20)


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("batch_rows", [100, 1000])
@pytest.mark.parametrize("partition_bytes", [4000, 1 << 20])
def test_files_are_split_by_batch_and_large_batches_by_rows(
    tmp_path: Path, table: pa.Table, compression, batch_rows, partition_bytes
):
    source = arrow_source(
        write(tmp_path / "t.arrow", table, batch_rows, compression), partition_bytes=partition_bytes
    )
    assert read(source).to_pydict() == table.to_pydict()
    assert read(source, ["l", "id"]).to_pydict() == table.select(["l", "id"]).to_pydict()
    assert [split.rows for split in source.splits()] == [
        read_rows(source, split) for split in source.splits()
    ]
    assert (len(source.splits()) > 1) == (partition_bytes == 4000)


def read_rows(source, split) -> int:
    return sum(table.num_rows for table in source.read(split, []))


def test_a_stream_is_one_split(tmp_path: Path, table: pa.Table):
    source = arrow_source(write(tmp_path / "t.arrows", table, 100, stream=True), partition_bytes=100)
    assert [split.rows for split in source.splits()] == [None]
    assert read(source, ["cat", "id"]).to_pydict() == table.select(["cat", "id"]).to_pydict()
    assert read_rows(source, source.splits()[0]) == 1000


def test_dictionaries_come_plain(tmp_path: Path, table: pa.Table):
    assert arrow_source(write(tmp_path / "t.arrow", table, 10)).schema.field("cat").type == pa.string()


def test_files_that_are_not_ipc_are_named(tmp_path: Path, table: pa.Table):
    for name, content in [("text", b"hello, world"), ("empty", b""), ("old", b"FEA1....FEA1")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorruptFileError, match=rf"{name} \(\d+ bytes\) can't be read as Arrow IPC"):
            arrow_source(tmp_path / name)
    data = write(tmp_path / "t.arrow", table, 100).read_bytes()
    (tmp_path / "t.arrow").write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptFileError, match=r"t\.arrow"):
        arrow_source(tmp_path / "t.arrow")


def test_schemas_must_agree(tmp_path: Path, table: pa.Table):
    write(tmp_path / "1.arrow", table, 100)
    write(tmp_path / "2.arrow", table.select(["l", "cat", "s", "id"]), 100)
    assert read(arrow_source(tmp_path))["id"].to_pylist() == [*range(1000), *range(1000)]
    write(tmp_path / "3.arrow", table.set_column(0, "id", table["s"]), 100)
    with pytest.raises(SchemaMismatchError, match=r"3\.arrow: column 'id' is string, but int64"):
        arrow_source(tmp_path)


# Tables in memory


@pytest.mark.parametrize("partitions", [1, 3, 7, 1001])
def test_a_table_is_cut_evenly_and_travels_with_its_splits(table: pa.Table, partitions: int):
    source = table_source(table, partitions=partitions)
    sizes = [split.rows for split in source.splits()]
    assert len(sizes) == partitions
    assert max(sizes) - min(sizes) <= 1
    assert read(source).to_pydict() == table.to_pydict()


def test_a_table_source_pickles_without_its_rows_and_splits_with_theirs_only():
    table = pa.table({"x": np.arange(1_000_000)})
    source = table_source(table, partitions=100)
    assert len(pickle.dumps(source)) < 3000
    assert len(pickle.dumps(source.splits()[50])) < 100_000
    with pytest.raises(ParameterError, match="only its splits"):
        pickle.loads(pickle.dumps(source)).splits()


def test_identity_is_content(table: pa.Table):
    rechunked = pa.concat_tables([table.slice(0, 10), table.slice(10)])
    assert table_source(rechunked).identity() == table_source(table).identity()
    assert table_source(table.slice(1)).identity() != table_source(table).identity()
    assert table_source(table, partitions=2).identity() != table_source(table).identity()
    assert pickle.loads(pickle.dumps(table_source(table))).identity() == table_source(table).identity()


def test_limits_and_row_counts(table: pa.Table):
    (split,) = table_source(table).splits()
    source = table_source(table)
    assert sum(t.num_rows for t in source.read(split, ["id"], limit=7)) == 7
    assert sum(t.num_rows for t in source.read(split, [], limit=7)) == 7
    assert read_rows(source, split) == 1000


def test_bad_tables_are_refused(table: pa.Table):
    with pytest.raises(TypeMismatchError, match=r"takes a pyarrow\.Table, not dict"):
        table_source({"x": [1]})
    with pytest.raises(ParameterError, match="'id' more than once"):
        table_source(table.append_column("id", table["id"]))
    with pytest.raises(ParameterError, match="partitions must be a positive integer"):
        table_source(table, partitions=0)
