"""A block says of itself what its task reported: any reader still opens it, and a damaged one says nothing."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.partitioner import KeySample
from headwater.ops.sort import SortKey
from headwater.planner.plan import BlockLeaf
from headwater.runtime.nodes.block_index import BlockLabel, decode, encode, read_index
from headwater.runtime.nodes.blocks import BlockWriter, map_range, read_segment
from headwater.runtime.nodes.node_store import NodeStore
from headwater.runtime.task import Block, PartitionInput, StageProgram, Task
from headwater.runtime.workers.exchange import write_block
from headwater.runtime.workers.fetch import Fetcher
from headwater.runtime.workers.recut import rows_only
from headwater.runtime.workers.run_task import run_task

SAMPLE = KeySample(1000, pa.table({"k": [3, 1, None], "s": ["é", None, ""]}))
LABEL = BlockLabel("r1", 2, "4f" * 16, 17, 10_003, "a7" * 16, 1.25, SAMPLE)
ROWS = pa.table({"x": np.arange(1000), "s": [f"row {i}" for i in range(1000)]})
NESTED = pa.schema(
    [
        ("list", pa.list_(pa.struct([("a", pa.int32()), ("b", pa.string())]))),
        ("map", pa.map_(pa.string(), pa.decimal128(5, 2))),
        ("fixed", pa.list_(pa.float32(), 3)),
        ("none", pa.null()),
        ("at", pa.timestamp("us", "UTC")),
    ]
)


def write(
    folder: Path, parts: list[pa.Table], schema: pa.Schema, label: BlockLabel | None = LABEL
) -> tuple[Path, np.ndarray, np.ndarray]:
    store = NodeStore(folder)
    store.open_run("r1")
    with store.create_block("r1", 2, 17, 10_003) as file:
        writer = BlockWriter(file, schema, len(parts))
        for segment, table in enumerate(parts):
            writer.write(segment, table)
        offsets, rows = writer.finish_segments()
        writer.close(encode(label, offsets, rows) if label else None)
        file.publish()
    return store.resolve(file.path), offsets, rows


def same(a: KeySample | None, b: KeySample | None) -> bool:
    return a is b or (a is not None and b is not None and a.rows == b.rows and a.keys.equals(b.keys))


@pytest.mark.parametrize("sample", [SAMPLE, None], ids=["sampled", "not sampled"])
def test_a_block_says_what_was_written_to_it(tmp_path: Path, sample: KeySample | None) -> None:
    label = BlockLabel("r1", 2, "4f", 17, 10_003, "a7", 0.125, sample)
    path, offsets, _ = write(tmp_path, [ROWS[:10], ROWS[:0], ROWS[10:]], ROWS.schema, label)
    found = read_index(path)
    assert found is not None
    assert (found.offsets.tolist(), found.rows.tolist()) == (offsets.tolist(), [10, 0, 990])
    assert found.offsets.dtype == found.rows.dtype == np.int64
    assert same(found.label.sample, sample)
    given = [getattr(label, name) for name in ("run", "stage", "key", "partition", "attempt", "fingerprint")]
    assert [
        getattr(found.label, name) for name in ("run", "stage", "key", "partition", "attempt", "fingerprint")
    ] == given
    assert found.label.seconds == 0.125


def test_rows_and_segments_are_as_without_the_index(tmp_path: Path) -> None:
    parts = [ROWS[:300], ROWS[300:300], ROWS[300:]]
    plain, plain_offsets, _ = write(tmp_path / "plain", parts, ROWS.schema, None)
    path, offsets, _ = write(tmp_path / "said", parts, ROWS.schema)
    assert offsets.tolist() == plain_offsets.tolist()
    end = int(offsets[-1])
    assert path.read_bytes()[:end] == plain.read_bytes()[:end]
    whole = map_range(path, int(offsets[0]), end - int(offsets[0]))
    assert pa.concat_tables(read_segment(whole, ROWS.schema)).equals(ROWS)
    with pa.ipc.open_file(path) as file:
        assert file.num_record_batches == 3
        assert file.read_all().equals(ROWS)


@pytest.mark.parametrize(
    ("table", "schema"),
    [(rows_only(7), pa.schema([])), (NESTED.empty_table(), NESTED), (ROWS[:0], ROWS.schema)],
    ids=["no columns", "nested", "no rows"],
)
def test_blocks_of_every_shape_say_what_they_are(tmp_path: Path, table: pa.Table, schema: pa.Schema) -> None:
    path, offsets, _ = write(tmp_path, [table, table], schema)
    found = read_index(path)
    assert found is not None
    assert (found.offsets.tolist(), found.rows.tolist()) == (offsets.tolist(), [table.num_rows] * 2)
    with pa.ipc.open_file(path) as file:
        assert sum(file.get_batch(i).num_rows for i in range(file.num_record_batches)) == 2 * table.num_rows


def test_an_index_of_ten_thousand_segments_stays_small() -> None:
    rng = np.random.default_rng(0)
    rows = rng.poisson(100, 10_000)
    offsets = 400 + np.concatenate([[0], np.cumsum(256 + rows * 16)])
    metadata = encode(LABEL, offsets, rows)
    assert sum(map(len, metadata.values())) < 60_000
    found = decode(metadata)
    assert found is not None
    assert found.offsets.tolist() == offsets.tolist()
    assert found.rows.tolist() == rows.tolist()
    mostly_empty = np.zeros(10_000, dtype=np.int64)
    assert sum(map(len, encode(LABEL, np.full(10_001, 400), mostly_empty).values())) < 3_000


def test_metadata_is_text_as_the_format_asks() -> None:
    ((name, text),) = encode(LABEL, np.array([8, 64]), np.array([1])).items()
    assert (name + text).isascii()


def test_every_cut_of_a_file_says_nothing(tmp_path: Path) -> None:
    path, *_ = write(tmp_path, [ROWS], ROWS.schema)
    data = path.read_bytes()
    assert read_index(path) is not None
    for length in [0, 1, 8, 100, *range(len(data) - 1, 0, -197)]:
        path.write_bytes(data[:length])
        assert read_index(path) is None


def test_damage_anywhere_behind_the_rows_never_raises(tmp_path: Path) -> None:
    path, offsets, _ = write(tmp_path, [ROWS[:20]], ROWS.schema)
    data, rng, silent = path.read_bytes(), np.random.default_rng(0), 0
    whole = read_index(path)
    assert whole is not None
    for at in rng.integers(int(offsets[-1]), len(data), 400):
        broken = bytearray(data)
        broken[at] ^= int(rng.integers(1, 256))
        path.write_bytes(broken)
        found = read_index(path)
        silent += found is None
        if found is not None:
            assert same(found.label.sample, whole.label.sample)
            assert replace(found.label, sample=None) == replace(whole.label, sample=None)
            assert (found.offsets.tolist(), found.rows.tolist()) == (offsets.tolist(), [20])
    assert silent > 100


def test_foreign_and_old_files_say_nothing(tmp_path: Path) -> None:
    path, *_ = write(tmp_path, [ROWS], ROWS.schema, None)
    assert read_index(path) is None
    (tmp_path / "text").write_text("no block")
    assert read_index(tmp_path / "text") is None
    assert read_index(tmp_path / "gone") is None
    assert read_index(tmp_path) is None


@pytest.mark.parametrize("change", [{"format": 2}, {"format": None}])
def test_an_index_of_another_version_is_left_alone(change: dict[str, Any]) -> None:
    ((name, entry),) = encode(LABEL, np.array([8, 64]), np.array([1])).items()
    text = json.dumps({**json.loads(entry[8:]), **change})
    assert decode({name: f"{zlib.crc32(text.encode()):08x}{text}"}) is None
    assert decode({}) is None


def test_the_rows_are_not_read(tmp_path: Path) -> None:
    path, offsets, _ = write(tmp_path, [ROWS], ROWS.schema)
    with open(path, "r+b") as file:  # where the rows were, nothing that could be parsed
        file.seek(int(offsets[0]))
        file.write(b"\xff" * int(offsets[-1] - offsets[0]))
    found = read_index(path)
    assert found is not None
    assert found.rows.tolist() == [1000]


def test_a_tasks_block_says_what_the_task_reports(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    store.open_run("r1")
    with store.create_block("r1", 0, 0, 0) as file:
        index = write_block(file, iter([ROWS]), ROWS.schema)
        size = file.publish()
    block = Block(0, 0, 0, store.node, file.path, index.offsets, index.rows, size, "")
    leaf = BlockLeaf(0, 0, ROWS.schema)
    program = StageProgram("r1", 1, "4f2a", "read", leaf, ROWS.schema, sample=(SortKey("s"),))
    given = (PartitionInput(5, {0: (block.whole(),)}),)
    done = run_task(Task("r1", 1, 9, 20_001, given), program, store, Fetcher.local(store), "w")
    (reported,) = done.partitions
    assert reported.block is not None
    assert store.inventory("r1", {1: "other", 0: "4f2a"}) == []
    (told,) = store.inventory("r1", {1: "4f2a"})
    assert told.block is not None
    assert (told.index, told.rows, told.fingerprint) == (5, 1000, reported.fingerprint)
    assert reported.sample is not None
    assert same(told.sample, reported.sample)
    assert told.block.whole() == reported.block.whole()
    assert told.block.bytes == reported.block.bytes
    found = read_index(store.resolve(told.block.path))
    assert found is not None
    assert 0 < found.label.seconds <= done.metrics.seconds
