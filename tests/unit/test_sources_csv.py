"""CSV is read as DuckDB reads it, wherever it is cut; bad lines are named or skipped, by policy."""

from __future__ import annotations

import bz2
import datetime
import decimal
import gzip
import lzma
import pickle
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from headwater.datasets import CsvSource, csv_source
from headwater.errors import (
    BadRecordError,
    ColumnNotFoundError,
    CorruptFileError,
    ParameterError,
    SchemaMismatchError,
    SourceNotFoundError,
    TypeMismatchError,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the shared data isn't here")


def read(source: CsvSource, columns=None) -> pa.Table:
    """Read all splits as a worker would: unpickled."""
    columns = source.schema.names if columns is None else columns
    worker = pickle.loads(pickle.dumps(source))
    splits = pickle.loads(pickle.dumps(list(source.splits())))
    schema = pa.schema([source.schema.field(name) for name in columns])
    tables = [table for split in splits for table in worker.read(split, columns)]
    assert all(table.schema == schema for table in tables)
    return pa.concat_tables([schema.empty_table(), *tables])


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@needs_shared
@pytest.mark.parametrize("name", ["adult.csv", "nycflights13/weather.csv", "nycflights13/planes.csv"])
@pytest.mark.parametrize("partition_bytes", [32 << 20, 70_001])
def test_real_files_are_read_as_duckdb_reads_them(name: str, partition_bytes: int):
    source = csv_source(SHARED / name, partition_bytes=partition_bytes)
    expected = duckdb.sql(
        f"from read_csv('{SHARED / name}', header=true, sample_size=-1, nullstr=['', 'NA'])"
    ).to_arrow_table()
    got = read(source)
    assert got.column_names == expected.column_names
    assert got.to_pydict() == expected.to_pydict()


@pytest.mark.parametrize("partition_bytes", [1, 2, 3, 7, 20, 64, 10_000])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_no_line_is_lost_or_doubled_wherever_the_file_is_cut(tmp_path: Path, partition_bytes, end, last):
    rows = [(i, "x" * (i * 7 % 13)) for i in range(40)]
    text = end.join(["id,s"] + [f'{i},"{s}"' for i, s in rows]) + (end if last else "")
    source = csv_source(write(tmp_path / "t.csv", text), partition_bytes=partition_bytes)
    assert read(source).to_pydict() == {"id": [i for i, _ in rows], "s": [s for _, s in rows]}


def test_types_are_inferred_from_the_start(tmp_path: Path):
    path = write(
        tmp_path / "t.csv",
        "i,f,b,d,ts,tsf,tz,s,n,time\n"
        "1,1.5,true,2024-02-29,2024-01-01 05:00:00,2024-01-01 05:00:00.25,2024-01-01T05:00:00Z,x,,10:00:00\n"
        'NA,NaN,NULL,,,,,"",,\n',
    )
    source = csv_source(path)
    assert [str(field.type) for field in source.schema] == [
        "int64", "double", "bool", "date32[day]", "timestamp[us]", "timestamp[us]", "timestamp[us, tz=UTC]",
        "string", "string", "time32[s]",
    ]  # fmt: skip
    first, second = read(source).to_pylist()
    assert first["tsf"] == datetime.datetime(2024, 1, 1, 5, 0, 0, 250_000)
    assert first["n"] is None
    assert np.isnan(second.pop("f"))
    assert second.pop("s") == ""
    assert set(second.values()) == {None}


def test_declared_types_win(tmp_path: Path):
    path = write(tmp_path / "t.csv", "id,zip,price,day\n1,00123,1.10,2024-02-29\n")
    source = csv_source(path, schema={"zip": "string", "price": pa.decimal128(8, 2), "id": pa.int8()})
    assert source.schema.field("day").type == pa.date32()
    assert read(source).to_pylist() == [
        {"id": 1, "zip": "00123", "price": decimal.Decimal("1.10"), "day": datetime.date(2024, 2, 29)}
    ]
    with pytest.raises(ColumnNotFoundError, match=r"no column 'zipp'.*Did you mean 'zip'"):
        csv_source(path, schema={"zipp": "string"})
    with pytest.raises(TypeMismatchError, match=r"'id' can't be read as list"):
        csv_source(path, schema={"id": pa.list_(pa.int64())})


def test_headers(tmp_path: Path):
    path = write(tmp_path / "t.csv", "made by hand\n\n,b\n1,2\n")
    assert read(csv_source(path, skip_rows=1)).to_pydict() == {"column_0": [1], "b": [2]}
    path = write(tmp_path / "u.csv", "1,2\n3,4\n")
    assert read(csv_source(path, header=False)).to_pydict() == {"column_0": [1, 3], "column_1": [2, 4]}
    assert read(csv_source(path, header=["x", "y"])).to_pydict() == {"x": [1, 3], "y": [2, 4]}
    named = pa.schema([("x", pa.int8()), ("y", pa.string())])
    assert read(csv_source(path, header=False, schema=named)).to_pydict() == {"x": [1, 3], "y": ["2", "4"]}
    path = write(tmp_path / "v.csv", '"a\nb",c\n1,2\n')
    assert read(csv_source(path)).to_pydict() == {"a\nb": [1], "c": [2]}
    path = write(tmp_path / "w.csv", "a,a\n1,2\n")
    with pytest.raises(SchemaMismatchError, match=r"'a' more than once"):
        csv_source(path)


def test_dialects(tmp_path: Path):
    path = write(tmp_path / "t.csv", "a;b\n'x;y';'it''s'\n")
    assert read(csv_source(path, delimiter=";", quote="'")).to_pydict() == {"a": ["x;y"], "b": ["it's"]}
    path = write(tmp_path / "u.tsv", 'a\tb\n"x\t5"\n')
    assert read(csv_source(path, delimiter="\t", quote=None)).to_pydict() == {"a": ['"x'], "b": ['5"']}
    path = write(tmp_path / "v.csv", 'a,b\n?,?\n1,"?"\n')
    assert read(csv_source(path, null_values=["?"])).to_pydict() == {"a": [None, 1], "b": [None, "?"]}
    path = write(tmp_path / "w.csv", 'a,b\n1,""\n"",x\n')
    assert read(csv_source(path, quoted_nulls=True)).to_pydict() == {"a": [1, None], "b": [None, "x"]}


@pytest.mark.parametrize("block", [64, 1000])
def test_line_ends_in_quotes_need_the_option_and_then_are_kept(tmp_path: Path, block: int, monkeypatch):
    monkeypatch.setattr("headwater.datasets.lines.LineReader.blocks.__defaults__", (block,))
    frame = pd.DataFrame({"i": range(50), "s": [f'a "{i}",\nb\n\n' * (i % 4) for i in range(50)]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    source = csv_source(tmp_path / "t.csv", newlines_in_values=True, partition_bytes=100)
    assert len(source.splits()) == 1
    assert read(source)["s"].to_pylist() == [s or None for s in frame["s"]]
    with pytest.raises(BadRecordError, match="newlines_in_values=True"):
        read(csv_source(tmp_path / "t.csv", newlines_in_values=False, schema={"i": "string"}))


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_files_are_read_whole(tmp_path: Path, suffix: str, compress):
    text = b"a,b\n" + b"".join(b"%d,x%d\n" % (i, i) for i in range(20_000))
    path = write(tmp_path / f"t.csv{suffix}", compress(text[:100_001]) + compress(text[100_001:]))
    source = csv_source(path, partition_bytes=100)
    assert len(source.splits()) == 1
    assert read(source, ["a"])["a"].to_pylist() == list(range(20_000))
    write(tmp_path / f"cut.csv{suffix}", compress(text)[:-50])
    with pytest.raises(CorruptFileError, match=rf"cut\.csv\{suffix} can't be decompressed"):
        read(csv_source(tmp_path / f"cut.csv{suffix}"))


def test_encodings(tmp_path: Path):
    rows = "name,n\nZürich,1\nGenève,2\n"
    for encoding in ("latin-1", "cp1252", "utf-16", "utf-8-sig"):
        path = write(tmp_path / f"{encoding}.csv", rows.encode(encoding))
        assert read(csv_source(path, encoding=encoding))["name"].to_pylist() == ["Zürich", "Genève"], encoding
    assert read(csv_source(tmp_path / "utf-8-sig.csv")).column_names == ["name", "n"]
    with pytest.raises(BadRecordError, match=r"latin-1\.csv.*encoding="):
        csv_source(tmp_path / "latin-1.csv")
    with pytest.raises(ParameterError, match="no encoding 'utf8000'"):
        csv_source(path, encoding="utf8000")


def test_bytes_that_are_not_utf8_later_name_the_line(tmp_path: Path):
    path = write(tmp_path / "t.csv", b"a\n" + b"x\n" * 100 + b"\xff\n")
    with pytest.raises(BadRecordError, match=r"t\.csv, line 102.*'a'.*encoding="):
        read(csv_source(path, sample_bytes=20))


@pytest.mark.parametrize("partition_bytes", [30, 1 << 20])
def test_a_line_of_the_wrong_width_is_named(tmp_path: Path, partition_bytes: int):
    text = "a,b\n" + "1,x\n" * 20 + "2\n" + "3,z\n" * 20
    source = csv_source(write(tmp_path / "r.csv", text), partition_bytes=partition_bytes)
    with pytest.raises(
        BadRecordError, match=r"r\.csv, line 22: 1 value, but 2 columns.*on_bad_line='skip'.*'2'"
    ):
        read(source)
    skipping = csv_source(tmp_path / "r.csv", partition_bytes=partition_bytes, on_bad_line="skip")
    assert read(skipping)["a"].to_pylist() == [1] * 20 + [3] * 20


@pytest.mark.parametrize("partition_bytes", [50, 1 << 20])
def test_a_value_that_does_not_fit_the_inferred_type_is_named(tmp_path: Path, partition_bytes: int):
    lines = ["id,fare"] + [f"{i},{i}.5" for i in range(200)]
    lines[150] = "149,unknown"
    source = csv_source(
        write(tmp_path / "r.csv", "\n".join(lines)), partition_bytes=partition_bytes, sample_bytes=100
    )
    with pytest.raises(
        BadRecordError,
        match=r"r\.csv, line 151: column 'fare' is float64, but here is 'unknown'.*"
        r"schema=\{'fare': 'string'\}.*null_values=.*The line: '149,unknown'",
    ):
        read(source)
    assert read(source, ["id"])["id"].to_pylist() == list(range(200))


def test_skipping_drops_the_same_lines_whatever_columns_are_read(tmp_path: Path):
    lines = [f"{i},{'bad' if i % 7 == 3 else i},{'1,2' if i % 11 == 5 else 'x'}" for i in range(300)]
    path = write(tmp_path / "r.csv", "a,b,c\n" + "\n".join(lines))
    source = csv_source(path, on_bad_line="skip", schema={"b": "int64"})
    expected = [i for i in range(300) if i % 7 != 3 and i % 11 != 5]
    assert read(source, ["b"])["b"].to_pylist() == expected
    assert read(source, ["a"])["a"].to_pylist() == expected
    assert sum(t.num_rows for s in source.splits() for t in source.read(s, [])) == len(expected)


def test_files_of_a_folder_share_columns_in_any_order(tmp_path: Path):
    write(tmp_path / "1.csv", "a,b\n1,x\n")
    write(tmp_path / "2.csv", "b,a\ny,2\n")
    write(tmp_path / "3.csv", "")
    write(tmp_path / "4.csv", "a,b\n")
    assert read(csv_source(tmp_path)).to_pydict() == {"a": [1, 2], "b": ["x", "y"]}
    write(tmp_path / "5.csv", "a,c\n1,x\n")
    with pytest.raises(SchemaMismatchError, match=r"5\.csv has the columns a, c, but .*1\.csv has a, b"):
        csv_source(tmp_path)


def test_hive_folders_and_counting(tmp_path: Path):
    for k in (1, 2):
        (tmp_path / f"k={k}").mkdir()
        write(tmp_path / f"k={k}/t.csv", "x,k\n" + f"{k}0,9\n" * k)
    source = csv_source(tmp_path)
    assert read(source).to_pydict() == {"x": [10, 20, 20], "k": [1, 2, 2]}
    assert [t.num_rows for s in source.splits() for t in source.read(s, [])] == [1, 2]


def test_limit_and_row_count(tmp_path: Path):
    source = csv_source(write(tmp_path / "t.csv", "a\n" + "1\n" * 1000))
    (split,) = source.splits()
    assert sum(t.num_rows for t in source.read(split, ["a"], limit=5)) == 5
    assert sum(t.num_rows for t in source.read(split, [])) == 1000


def test_a_header_alone_gives_no_rows_and_an_empty_file_is_an_error(tmp_path: Path):
    assert read(csv_source(write(tmp_path / "t.csv", "a,b\n"))).to_pydict() == {"a": [], "b": []}
    with pytest.raises(SchemaMismatchError, match="empty"):
        csv_source(write(tmp_path / "u.csv", ""))
    with pytest.raises(SourceNotFoundError):
        csv_source(tmp_path / "v.csv")


def test_sizes_in_memory_are_near_the_truth(tmp_path: Path):
    pd.DataFrame({"i": range(20_000), "s": ["some text"] * 20_000}).to_csv(tmp_path / "t.csv", index=False)
    source = csv_source(tmp_path / "t.csv", partition_bytes=50_000)
    assert sum(split.bytes for split in source.splits()) == pytest.approx(read(source).nbytes, rel=0.2)
    assert 0.3 < source.column_bytes(["i"]) < 0.5


def test_identity_tells_options_apart(tmp_path: Path):
    path = write(tmp_path / "t.csv", "a\n1\n")
    assert csv_source(path).identity() == csv_source(path).identity()
    assert csv_source(path).identity() != csv_source(path, null_values=["1"]).identity()
    assert csv_source(path).identity() != csv_source(path, schema={"a": "string"}).identity()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_bad_line": "warn"}, "'error' or 'skip'"),
        ({"delimiter": "::"}, "delimiter must be one ASCII character"),
        ({"skip_rows": -1}, "skip_rows"),
        ({"quote": None, "newlines_in_values": True}, "needs a quote"),
        ({"schema": {"a": "int65"}}, "int65"),
        ({"schema": ["a"]}, "mapping of column to type"),
    ],
)
def test_options_are_checked(tmp_path: Path, options, message: str):
    path = write(tmp_path / "t.csv", "a\n1\n")
    with pytest.raises(ParameterError, match=message):
        csv_source(path, **options)


def test_line_ends_in_quotes_are_seen_at_the_start_of_the_first_file(tmp_path: Path):
    path = write(tmp_path / "t.csv", 'id,note\n1,"one\ntwo"\n' + "2,x\n" * 50_000 + '3,"a\nb"\n')
    source = csv_source(path, partition_bytes=50_000)
    expected = duckdb.sql(f"from read_csv('{path}', quote='\"')").to_arrow_table()
    assert read(source).to_pydict() == expected.to_pydict()


@pytest.mark.parametrize("value", ['"one\ntwo"', '"one\ntwo,three"', '"one\n2,two"'])
def test_a_line_end_in_quotes_that_comes_late_is_an_error_never_another_row(tmp_path: Path, value: str):
    text = "id,note\n" + "1,x\n" * 2_000 + f"1,{value}\n" + "3,y\n" * 2_000
    path = write(tmp_path / "t.csv", text)
    for partition_bytes in (1 << 20, text.index("\ntwo") + 1 if "\ntwo" in value else 8_004):
        source = csv_source(path, sample_bytes=1000, partition_bytes=partition_bytes)
        with pytest.raises(BadRecordError, match=r"line 2002.*newlines_in_values=True"):
            read(source)
    skipping = csv_source(path, sample_bytes=1000, on_bad_line="skip")
    kept = read(skipping)["note"].to_pylist()
    assert kept.count("x") == kept.count("y") == 2_000
    assert "one" not in kept


def test_a_quote_inside_a_value_is_no_open_quote(tmp_path: Path):
    path = write(tmp_path / "t.csv", 'id,note\n1,5" pipe\n2,6"\n')
    assert read(csv_source(path))["note"].to_pylist() == ['5" pipe', '6"']


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\r1,2\r", "lines end with"),
        ("naïve,b\n1,2\n".encode("latin-1"), "the header isn't UTF-8"),
        (bytes([0, 255, 3, 200]) * 20, "the header isn't UTF-8"),
    ],
)
def test_headers_that_are_no_text_are_refused(tmp_path: Path, data: bytes, message: str):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(BadRecordError, match=message):
        csv_source(tmp_path / "t.csv")
