"""Rows that are read partly from a device, of this process or another, and partly from the host are the host's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.device.cache import BlockKey, DeviceCache
from headwater.ops.device.operators.partition import hash_partition, partition_by
from headwater.ops.device.table import to_arrow, to_device
from headwater.ops.device.transfer import ToDevice
from headwater.ops.kernel import Context
from headwater.runtime.task import PartitionInput, Segment, Task
from headwater.runtime.workers import device_blocks
from headwater.runtime.workers.device_blocks import DeviceBlocks

RNG = np.random.default_rng(8)
UNIT = 700
COUNT = 5


def rows_of(count: int) -> pa.Table:
    return pa.table(
        {
            "k": RNG.integers(0, 50, count),
            "x": pa.array(RNG.normal(size=count), mask=RNG.random(count) < 0.2),
            "s": pa.array(
                RNG.choice(["a", "bb", "", "z"], count).tolist(), pa.string(), mask=RNG.random(count) < 0.2
            ),
        }
    )


class Blocks:
    """Blocks that were cut into segments; each lies on the host, and perhaps on a device."""

    def __init__(self, xp: Any, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(device_blocks, "UNIT_ROWS", UNIT)
        monkeypatch.setattr("headwater.ops.device.transfer.UNIT_ROWS", UNIT)
        self.xp, self.cache = xp, DeviceCache(1 << 30)
        self.host: dict[Segment, pa.Table] = {}
        self.schema = rows_of(1).schema
        self.brought: list[list[Segment]] = []

    def add(self, partition: int, parts: list[pa.Table], on_device: bool, node: str = "here") -> None:
        """Make a block as a task does."""
        task = Task("run", 1, partition, 0, (PartitionInput(partition, {}),))
        blocks = DeviceBlocks(self.cache, task)
        blocks.begin()
        segments: list[list[pa.Table]] = [[] for _ in range(COUNT)]
        for part in parts:
            rows, bounds = hash_partition(to_device(part, self.xp), ["k"], COUNT, self.xp)
            blocks.add(rows, bounds)
            for number, found in enumerate(segments):
                found.append(to_arrow(rows.slice(int(bounds[number]), int(bounds[number + 1]))))
        whole = [pa.concat_tables([self.schema.empty_table(), *tables]) for tables in segments]
        offsets = np.cumsum([64, *(8 * table.num_rows for table in whole)])
        if on_device:
            blocks.keep(partition, offsets)
        for number, table in enumerate(whole):
            size = int(offsets[number + 1] - offsets[number])
            place = Segment(1, partition, 0, node, "path", int(offsets[number]), size, table.num_rows)
            self.host[place] = table

    def of(self, number: int) -> list[Segment]:
        """What a reader of an exchange gets: one segment of each block, without empty ones."""
        return [place for place in list(self.host)[number::COUNT] if place.length]

    def read(
        self, segments: list[Segment], borrowing: Any = None, held: int = UNIT
    ) -> tuple[list[pa.Table], Any]:
        task = Task("run", 2, 0, 0, (PartitionInput(0, {}),), nodes={"here": ("me", "other")})
        blocks = DeviceBlocks(self.cache, task, "here", borrowing)
        seen: list[int] = []
        self.brought.clear()

        def host(wanted: Any) -> Any:
            self.brought.append(list(wanted))
            tables = (self.host[segment] for segment in wanted)
            cut = (table.slice(at, 97) for table in tables for at in range(0, table.num_rows, 97))
            return ToDevice().run([cut], Context())

        stream = blocks.read(segments, self.schema, host, lambda table: seen.append(table.rows))
        found = [to_arrow(table) for table in stream]
        total = sum(segment.rows for segment in segments)
        assert [table.num_rows for table in found] == [min(UNIT, total - at) for at in range(0, total, UNIT)]
        expected = pa.concat_tables(
            [self.schema.empty_table(), *(self.host[segment] for segment in segments)]
        )
        assert pa.concat_tables([self.schema.empty_table(), *found]).equals(expected)
        from_host = sum(segment.rows for wanted in self.brought for segment in wanted)
        assert sum(seen) == total - from_host
        assert blocks.own_bytes + blocks.borrowed_bytes > 0 or not seen
        return found, blocks


@pytest.fixture
def blocks(xp, monkeypatch) -> Blocks:
    return Blocks(xp, monkeypatch)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_in_the_order_of_segments(blocks, share):
    for partition in range(6):
        sizes = RNG.choice([0, 1, 3, 150, 400], RNG.integers(0, 3)).tolist()
        blocks.add(
            partition, [rows_of(size) for size in [*sizes, int(RNG.integers(0, 900))]], RNG.random() < share
        )
    for number in range(COUNT):
        _, reader = blocks.read(blocks.of(number))
        if share == 1.0:
            assert not blocks.brought
        assert reader.borrowed_bytes == 0


def test_whole_blocks_and_none(blocks):
    blocks.add(0, [rows_of(900), rows_of(2000)], True)
    blocks.add(1, [rows_of(50)], False)
    places = list(blocks.host)
    segments = [*places[:COUNT], *places[COUNT:]]
    whole = places[0]._replace(
        length=sum(p.length for p in places[:COUNT]), rows=sum(p.rows for p in places[:COUNT])
    )
    blocks.host[whole] = pa.concat_tables([blocks.host[place] for place in places[:COUNT]])
    blocks.read([segment for segment in segments if segment.length])
    blocks.read([whole])
    assert not blocks.brought
    assert blocks.read([])[0] == []


def test_what_comes_from_the_host_comes_together(blocks):
    for partition in range(7):
        blocks.add(partition, [rows_of(1500)], partition == 4)
    segments = blocks.of(2)
    blocks.read(segments)
    (first, last) = blocks.brought
    assert [place.partition for place in [*first, *last]] == [0, 1, 2, 3, 5, 6]
    assert blocks.read(segments[:4])[1].own_bytes == 0
    assert len(blocks.brought) == 1


class Borrowing:
    """Has some segments, as another process's device would."""

    def __init__(self, blocks: Blocks, has: Any):
        self.blocks, self.has, self.asked = blocks, has, []

    def borrow(self, run: str, segments: Any, schema: pa.Schema, siblings: Any, cancelled: Any) -> Any:
        self.asked += segments
        assert (run, siblings, schema) == ("run", ("me", "other"), self.blocks.schema)
        return {
            segment: [to_device(self.blocks.host[segment], self.blocks.xp)]
            for segment in segments
            if self.has(segment)
        }


def test_rows_of_three_origins(blocks):
    for partition in range(8):
        node = "there" if partition == 4 else "here"
        blocks.add(partition, [rows_of(300), rows_of(500)], partition % 3 == 0, node)
    borrowing = Borrowing(blocks, lambda segment: segment.partition % 3 == 1)
    _, reader = blocks.read(blocks.of(1), borrowing)
    assert {place.partition for place in borrowing.asked} == {1, 2, 5, 7}  # not of other nodes
    assert {place.partition for wanted in blocks.brought for place in wanted} == {2, 4, 5}
    assert min(reader.own_bytes, reader.borrowed_bytes) > 0


def test_blocks_cut_otherwise_are_not_taken(blocks, xp):
    blocks.add(0, [rows_of(800)], True)
    place, *_ = blocks.of(0)
    for change in ({"rows": place.rows - 1}, {"offset": place.offset + 8}, {"attempt": 1}, {"stage": 3}):
        other = place._replace(**change)
        blocks.host[other] = blocks.host[place].slice(0, other.rows)
        blocks.read([other])
        assert blocks.brought == [[other]]
    wide = DeviceBlocks(blocks.cache, Task("run", 2, 0, 0, ()), "here")
    other_schema = blocks.schema.set(0, pa.field("k", pa.int32()))
    assert wide._found([place], other_schema) == {}
    assert len(wide._found([place], blocks.schema.with_metadata({"a": "b"}))) == 1


def test_a_host_that_has_other_rows_is_an_error(blocks):
    blocks.add(0, [rows_of(800)], False)
    blocks.add(1, [rows_of(800)], True)
    first, second = blocks.of(0)
    for rows, problem in ((first.rows + 1, "fewer"), (first.rows - 1, "more")):
        wrong = first._replace(rows=rows)
        reader = DeviceBlocks(blocks.cache, Task("run", 2, 0, 0, ()), "here")
        stream = reader.read(
            [wrong, second],
            blocks.schema,
            lambda wanted: ToDevice().run([iter([blocks.host[first]])], Context()),
            lambda table: None,
        )
        with pytest.raises(ValueError, match=problem):
            list(stream)


def test_many_strings_are_no_burden_for_readers_of_few_rows(blocks, xp):
    rows = pa.table({"s": pa.array([f"v{n}" for n in range(3000)])})
    there = to_device(rows, xp)
    cut, bounds = partition_by(there, xp.asarray(np.arange(3000) % 2, np.uint8), 2, xp)
    for parts, kept in [((there, (0, 3000)), True), ((cut, bounds), False)]:
        maker = DeviceBlocks(blocks.cache, Task("other", 1, 0, 0, ()))
        maker.begin()
        maker.add(*parts)
        maker.keep(0, np.arange(len(parts[1])))
        assert blocks.cache.holds("other", 1) is kept
        blocks.cache.forget("other")


def test_rows_that_the_host_cuts_and_rows_that_are_too_many_are_not_kept(blocks, xp):
    there = to_device(rows_of(100), xp)
    maker = DeviceBlocks(blocks.cache, Task("run", 1, 0, 0, ()))
    assert len(list(maker.passing(iter([there])))) == 1
    maker.keep(0, np.arange(COUNT + 1))
    assert not blocks.cache.holds("run", 1)
    blocks.cache.budget = 3 * there.nbytes
    assert len(list(maker.passing(iter([there] * 4)))) == 4
    maker.keep(0, np.arange(2))
    assert not blocks.cache.holds("run", 1)
    assert len(list(maker.passing(iter([there] * 3)))) == 3
    maker.keep(0, np.arange(2))
    assert blocks.cache.get(BlockKey("run", 1, 0, 0), 0) is not None


def test_a_full_device_takes_unfinished_blocks_back(blocks, xp):
    there = to_device(rows_of(100), xp)
    maker = DeviceBlocks(blocks.cache, Task("run", 1, 0, 0, ()))
    stream = maker.passing(iter([there, there]))
    next(stream)
    assert blocks.cache.clear() == there.nbytes
    assert len(list(stream)) == 1
    maker.keep(0, np.arange(2))
    assert not blocks.cache.holds("run", 1)


def test_a_device_that_is_full_while_a_block_is_kept_harms_nothing(blocks, xp, monkeypatch):
    """Another thread lets go of unfinished blocks while this one waits for the device."""

    class Stream:
        def synchronize(self) -> None:
            blocks.cache.clear()

    there = to_device(rows_of(100), xp)
    maker = DeviceBlocks(blocks.cache, Task("run", 1, 0, 0, ()))
    assert len(list(maker.passing(iter([there])))) == 1
    monkeypatch.setattr(xp.cuda, "get_current_stream", Stream)
    maker.keep(0, np.arange(2))
    (kept,) = blocks.cache.get(BlockKey("run", 1, 0, 0), 0)
    assert kept is there or to_arrow(kept).equals(to_arrow(there))
