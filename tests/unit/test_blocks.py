"""Blocks: files that any Arrow reader opens, segments that are read alone and without a copy."""

import datetime
import decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headwater.runtime.nodes.blocks import BlockWriter, map_range, read_segment
from headwater.runtime.nodes.node_store import NodeStore
from headwater.runtime.workers.recut import rows_only


def write(
    tmp_path: Path, schema: pa.Schema, segments: list[list[pa.Table]]
) -> tuple[Path, list[int], list[int]]:
    store = NodeStore(tmp_path)
    store.open_run("r1")
    with store.create_block("r1", 0, 0, 0) as file:
        writer = BlockWriter(file, schema, len(segments))
        for index, tables in enumerate(segments):
            for table in tables:
                writer.write(index, table)
        offsets, rows = writer.close()
        file.publish()
    return store.resolve(file.path), offsets.tolist(), rows.tolist()


def read(path: Path, offsets: list[int], index: int, schema: pa.Schema) -> pa.Table:
    start, stop = offsets[index : index + 2]
    return pa.concat_tables(
        [schema.empty_table(), *read_segment(map_range(path, start, stop - start), schema)]
    )


NUMBERS = pa.table({"x": np.arange(1000), "f": np.linspace(0, 1, 1000)})
MIXED = pa.table(
    {
        "s": ["é", None, "", "long " * 50],
        "b": [True, None, False, True],
        "d": [decimal.Decimal("1.50"), None, decimal.Decimal("-2.25"), decimal.Decimal("0.00")],
        "day": [datetime.date(2020, 1, i + 1) for i in range(4)],
        "list": [[1, 2], [], None, [3]],
        "struct": [{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}, {"a": 4, "b": None}],
        "none": pa.nulls(4),
    }
)


@pytest.mark.parametrize("rows", [NUMBERS, MIXED], ids=["numbers", "mixed"])
def test_segments_hold_the_rows_written_to_them(tmp_path: Path, rows: pa.Table) -> None:
    parts = [[rows[:1]], [], [rows[1:3], rows[3:]], []]
    path, offsets, counts = write(tmp_path, rows.schema, parts)
    assert counts == [1, 0, rows.num_rows - 1, 0]
    assert offsets[1] == offsets[2]
    assert offsets[3] == offsets[4]
    assert read(path, offsets, 0, rows.schema).equals(rows[:1])
    assert read(path, offsets, 2, rows.schema).equals(rows[1:])
    assert read(path, [offsets[0], offsets[-1]], 0, rows.schema).equals(rows)


@pytest.mark.parametrize("rows", [NUMBERS, MIXED], ids=["numbers", "mixed"])
def test_any_arrow_reader_opens_the_file(tmp_path: Path, rows: pa.Table) -> None:
    path, _, _ = write(tmp_path, rows.schema, [[rows[:2]], [rows[2:]]])
    with pa.ipc.open_file(path) as file:
        assert file.read_all().equals(rows)


def test_an_empty_block_is_a_file_of_no_rows(tmp_path: Path) -> None:
    path, offsets, counts = write(tmp_path, NUMBERS.schema, [[], []])
    assert counts == [0, 0]
    assert len(set(offsets)) == 1
    with pa.ipc.open_file(path) as file:
        assert file.read_all().equals(NUMBERS[:0])


def test_rows_of_no_columns_keep_their_number(tmp_path: Path) -> None:
    schema = pa.schema([])
    path, offsets, counts = write(tmp_path, schema, [[rows_only(5)], [rows_only(7)]])
    assert counts == [5, 7]
    buffer = map_range(path, offsets[1], offsets[2] - offsets[1])
    assert [table.num_rows for table in read_segment(buffer, schema)] == [7]


def test_tables_point_into_the_mapped_file(tmp_path: Path) -> None:
    path, offsets, _ = write(tmp_path, NUMBERS.schema, [[NUMBERS[:300]], [NUMBERS[300:]]])
    buffer = map_range(path, offsets[1], offsets[2] - offsets[1])
    before = pa.total_allocated_bytes()
    (table,) = read_segment(buffer, NUMBERS.schema)
    assert pa.total_allocated_bytes() - before < 4096
    for column in table.columns:
        values = column.chunk(0).to_numpy(zero_copy_only=True)
        assert buffer.address <= values.ctypes.data < buffer.address + buffer.size
        assert values.flags.aligned


def test_a_mapped_table_outlives_its_file(tmp_path: Path) -> None:
    path, offsets, _ = write(tmp_path, NUMBERS.schema, [[NUMBERS]])
    (table,) = read_segment(map_range(path, offsets[0], offsets[1] - offsets[0]), NUMBERS.schema)
    path.unlink()
    assert table.equals(NUMBERS)


def test_segments_must_come_in_order(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="segment 0 comes after segment 1"):
        write_backwards(tmp_path)


def write_backwards(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    store.open_run("r1")
    with store.create_block("r1", 0, 0, 0) as file:
        writer = BlockWriter(file, NUMBERS.schema, 2)
        writer.write(1, NUMBERS)
        writer.write(0, NUMBERS)


def test_a_file_cut_short_is_noticed(tmp_path: Path) -> None:
    path, offsets, _ = write(tmp_path, NUMBERS.schema, [[NUMBERS]])
    with open(path, "r+b") as file:
        file.truncate(offsets[1] - 100)
    with pytest.raises(EOFError, match="ends within"):
        map_range(path, offsets[0], offsets[1] - offsets[0])
