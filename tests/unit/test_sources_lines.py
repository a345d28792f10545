"""JSON lines and text are read whole wherever they are cut; bad JSON is named or skipped."""

from __future__ import annotations

import datetime
import gzip
import json
import pickle
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from headwater.datasets import json_source, text_source
from headwater.datasets.text import split_lines
from headwater.errors import BadRecordError, CorruptFileError, ParameterError, SchemaMismatchError
from headwater.errors import TypeMismatchError as WrongType

SHARED = Path(__file__).parents[3] / "shared" / "data"


def read(source, columns=None) -> pa.Table:
    columns = source.schema.names if columns is None else columns
    worker = pickle.loads(pickle.dumps(source))
    splits = pickle.loads(pickle.dumps(list(source.splits())))
    schema = pa.schema([source.schema.field(name) for name in columns])
    tables = [table for split in splits for table in worker.read(split, columns)]
    assert all(table.schema == schema for table in tables)
    return pa.concat_tables([schema.empty_table(), *tables])


def count(source) -> int:
    return sum(table.num_rows for split in source.splits() for table in source.read(split, []))


def write_json(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# Text


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data isn't here")
@pytest.mark.parametrize("partition_bytes", [1 << 20, 100_003])
def test_shakespeare_has_the_lines_python_finds(partition_bytes: int):
    path = SHARED / "tinyshakespeare.txt"
    source = text_source(path, partition_bytes=partition_bytes)
    expected = path.read_text().split("\n")
    assert read(source)["text"].to_pylist() == expected[: -1 if expected[-1] == "" else None]
    assert count(source) == read(source).num_rows


@pytest.mark.parametrize("partition_bytes", [1, 2, 5, 13, 1000])
@pytest.mark.parametrize("last", ["", "\n", "\r\n"])
def test_lines_and_their_ends(tmp_path: Path, partition_bytes: int, last: str):
    lines = ["", "a", "", "ünïcode ☃", "x" * 50, "with\rreturn", "\t spaces ", "end"]
    path = tmp_path / "t.txt"
    path.write_bytes("\r\n".join(lines[:4]).encode() + b"\n" + "\n".join(lines[4:]).encode() + last.encode())
    assert read(text_source(path, partition_bytes=partition_bytes))["text"].to_pylist() == lines


def test_split_lines_agrees_with_python_on_random_bytes():
    rng = np.random.default_rng(0)
    for size in range(200):
        block = bytes(rng.choice(np.frombuffer(b"ab\r\n\n", np.uint8), size))
        expected = [line.removesuffix("\r") for line in block.decode().split("\n")]
        # The \r of a last line without \n is part of it.
        expected[-1] = block.decode().split("\n")[-1]
        assert split_lines(block).to_pylist() == expected[: -1 if expected[-1] == "" else None], block


def test_text_that_is_not_utf8_is_named(tmp_path: Path):
    (tmp_path / "t.txt").write_bytes("Zürich\n".encode("latin-1"))
    with pytest.raises(CorruptFileError, match=r"t\.txt.*aren't UTF-8.*encoding="):
        read(text_source(tmp_path / "t.txt"))
    assert read(text_source(tmp_path / "t.txt", encoding="latin-1"))["text"].to_pylist() == ["Zürich"]


def test_text_of_hive_folders_and_compressed_files(tmp_path: Path):
    for k in "ab":
        (tmp_path / f"k={k}").mkdir()
        (tmp_path / f"k={k}" / "t.txt.gz").write_bytes(gzip.compress(f"{k}\n{k}\n".encode()))
    assert read(text_source(tmp_path)).to_pydict() == {
        "text": ["a", "a", "b", "b"],
        "k": ["a", "a", "b", "b"],
    }
    assert read(text_source(tmp_path), ["k"]).num_rows == 4
    (tmp_path / "empty").write_bytes(b"")
    assert read(text_source(tmp_path / "empty")).num_rows == 0


# JSON lines


@pytest.mark.parametrize("partition_bytes", [10, 333, 1 << 20])
def test_json_is_read_as_duckdb_reads_it(tmp_path: Path, partition_bytes: int):
    rows = [
        {
            "id": i,
            "x": i / 4,
            "s": f'q"\n{i}',
            "b": i % 2 == 0,
            "l": list(range(i % 4)),
            "o": {"a": i, "b": "é"},
        }
        for i in range(100)
    ]
    for row in rows[::9]:
        row["s"] = row["x"] = row["l"] = None
    path = write_json(tmp_path / "t.jsonl", rows)
    source = json_source(path, partition_bytes=partition_bytes)
    expected = duckdb.sql(f"from read_json('{path}')").to_arrow_table()
    assert read(source).to_pydict() == expected.to_pydict() == pa.Table.from_pylist(rows).to_pydict()
    assert count(source) == 100
    assert read(source, ["o", "id"]).column_names == ["o", "id"]


def test_fields_may_be_missing_and_types_declared(tmp_path: Path):
    path = write_json(tmp_path / "t.json", [{"a": 1}, {"b": "2024-02-29"}, {}, {"a": None, "c": None}])
    source = json_source(path, schema={"a": "float64", "b": "date32"})
    assert {f.name: str(f.type) for f in source.schema} == {"a": "double", "b": "date32[day]", "c": "string"}
    day = datetime.date(2024, 2, 29)
    assert read(source).to_pydict() == {
        "a": [1.0, None, None, None],
        "b": [None, day, None, None],
        "c": [None] * 4,
    }
    with pytest.raises(WrongType, match="'a' can't be read as"):
        json_source(path, schema={"a": pa.month_day_nano_interval()})


def test_a_complete_schema_leaves_other_fields_out(tmp_path: Path):
    path = write_json(tmp_path / "t.json", [{"a": 1, "b": 2}, {"a": 3, "z": [4]}])
    assert read(json_source(path, schema=pa.schema([("a", pa.int8())]))).to_pydict() == {"a": [1, 3]}


@pytest.mark.parametrize(
    "bad", ['{"a": 5,', '{"a": "text"}', "[1]", "nonsense", '{"a": 1, "new": 1}', '{"a": 1.5}']
)
def test_a_bad_line_is_named_or_skipped(tmp_path: Path, bad: str):
    lines = [json.dumps({"a": i}) for i in range(100)]
    lines[70] = bad
    (tmp_path / "t.json").write_text("\n".join(lines))
    with pytest.raises(BadRecordError, match=r"t\.json, line 71: .*schema=.*on_bad_line='skip'"):
        read(json_source(tmp_path / "t.json", sample_bytes=100))
    source = json_source(tmp_path / "t.json", sample_bytes=100, on_bad_line="skip", partition_bytes=300)
    assert read(source)["a"].to_pylist() == [i for i in range(100) if i != 70]
    assert count(source) == 99


def test_json_without_lines_is_an_error_unless_columns_are_declared(tmp_path: Path):
    (tmp_path / "t.json").write_text("\n\n")
    with pytest.raises(SchemaMismatchError, match="no lines to infer columns from"):
        json_source(tmp_path / "t.json")
    assert read(json_source(tmp_path / "t.json", schema={"a": "int64"})).to_pydict() == {"a": []}
    with pytest.raises(ParameterError, match="'error' or 'skip'"):
        json_source(tmp_path / "t.json", on_bad_line="ignore")


def test_json_whose_lines_differ_in_type_is_a_clear_error(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\n{"a": "x"}\n')
    with pytest.raises(BadRecordError, match=r"t.jsonl: lines differ in type: .*a.*schema="):
        json_source(path)
