"""What exceeds a device's memory goes over it by parts, and leaves the rows, in the order, of a run in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.backend import use_backend
from headwater.ops.device import memory
from headwater.ops.device.operators import distinct, hash_split, join, merge, top_k
from headwater.ops.device.operators import host_runs as host_runs_module
from headwater.ops.device.operators.distinct import DeviceDistinct
from headwater.ops.device.operators.host_runs import host_runs
from headwater.ops.device.operators.join import DeviceJoin
from headwater.ops.device.operators.partition import hash_partition
from headwater.ops.device.operators.sort import DeviceSort
from headwater.ops.device.operators.top_k import DeviceTopK
from headwater.ops.device.table import DeviceTable, to_arrow, to_device
from headwater.ops.distinct import DistinctKernel
from headwater.ops.join import HOW, JoinKernel
from headwater.ops.kernel import Context
from headwater.ops.ordering import SortKey
from headwater.ops.sort import SortKernel, TopKKernel

ROWS = 6000
WORDS = np.array(["", "a", "Z", "ä", "zebra", "日本", "a b", "Ω"], object)


def rows_of(seed: int, rows: int = ROWS) -> pa.Table:
    rng = np.random.default_rng(seed)

    def column(values, type=None, nulls=0.15):
        return pa.array(values, type, mask=rng.random(rows) < nulls, from_pandas=False)

    return pa.table(
        {
            "few": column(rng.integers(0, 5, rows)),
            "f64": column(rng.choice([np.nan, 0.0, -0.0, np.inf, -np.inf, 1.5], rows)),
            "text": column(rng.choice(WORDS, rows), pa.string()),
            "normal": column(rng.normal(size=rows), nulls=0),
            "crowded": column(
                np.where(rng.random(rows) < 0.7, 3, rng.integers(0, 900, rows)).astype(np.int16)
            ),
            "same": pa.array(np.full(rows, 7, np.int8)),
            "many": column(rng.integers(0, rows, rows)),
            "coded": column(rng.choice(WORDS[seed % 3 :], rows), pa.string()).dictionary_encode(),
            "row": pa.array(np.arange(rows)),
        }
    )


def cut(table: pa.Table, xp: Any, most: int = 700) -> Any:
    return (to_device(table.slice(start, most), xp) for start in range(0, table.num_rows, most))


def contents(stream: Any, schema: pa.Schema) -> str:
    tables = [schema.empty_table(), *map(to_arrow, stream)]
    for table in tables:
        assert table.schema.equals(schema)
    return repr(pa.concat_tables(tables).to_pydict())


@pytest.fixture
def contexts(xp, tmp_path):
    """Of NumPy, whose rows wait in spill files, and of the device, whose rows wait in memory; nothing is left there."""

    def each():
        for namespace, memory_bytes in ((np, 4000), (xp, 100 << 20)):
            with use_backend(namespace.__name__):
                context = Context(memory_bytes=memory_bytes, spill_root=tmp_path)
                yield namespace, context
                assert bool(context.metrics.get("spilled_bytes")) == (namespace is np)
                assert not list(tmp_path.iterdir())

    return each


@pytest.fixture
def no_host(monkeypatch):
    """Kernels of the host aren't asked."""

    def refuse(*args: Any) -> Any:
        raise AssertionError("the host's kernel was asked")

    kernels = SortKernel, TopKKernel, DistinctKernel, JoinKernel
    whole = {kernel: kernel.run for kernel in kernels}
    for kernel in kernels:
        monkeypatch.setattr(kernel, "run", refuse)
    monkeypatch.setattr(DistinctKernel, "after", refuse)

    def run(kernel: Any, *inputs: pa.Table) -> str:
        with pytest.MonkeyPatch.context() as patch:
            for kind, function in whole.items():
                patch.setattr(kind, "run", function)
            found = list(kernel.run([iter([table]) for table in inputs], Context()))
        schema = getattr(kernel, "schema", inputs[0].schema)
        return repr(pa.concat_tables([schema.empty_table(), *found]).to_pydict())

    return run


def everywhere(xp: Any) -> Any:
    for namespace in (np, xp):
        with use_backend(namespace.__name__):
            yield namespace


SORTS = [
    (SortKey("few"),),
    (SortKey("f64", descending=True, nulls_first=True), SortKey("few", descending=True)),
    (SortKey("text", nulls_first=True), SortKey("f64", nulls_first=True)),
    (SortKey("text", descending=True), SortKey("normal", descending=True)),
    (SortKey("normal"),),
    (SortKey("crowded", descending=True), SortKey("many")),
    (SortKey("same"),),
]


@pytest.mark.parametrize("keys", SORTS, ids=lambda keys: "-".join(map(str, keys)))
def test_sort(keys, contexts, no_host, monkeypatch):
    monkeypatch.setattr(merge, "UNIT_ROWS", 1000)
    table = rows_of(1)
    expected = no_host(SortKernel(keys), table)
    for namespace, context in contexts():
        assert contents(DeviceSort(keys).run([cut(table, namespace)], Context()), table.schema) == expected
        found = list(DeviceSort(keys, 40_000).run([cut(table, namespace)], context))
        assert contents(found, table.schema) == expected
        assert [part.rows for part in found] == [1000] * 6


def test_ranges_fit_and_crowded_keys_are_never_held(xp, monkeypatch, tmp_path):
    sorted_parts: list[int] = []
    whole = merge.sorted_tables

    def watched(held, keys, xp):
        sorted_parts.append(sum(table.nbytes for table in held))
        yield from whole(held, keys, xp)

    monkeypatch.setattr(merge, "sorted_tables", watched)
    rng = np.random.default_rng(2)
    table = pa.table({"x": rng.choice([1, 2, 2, 2, 2, 9], 20_000), "row": np.arange(20_000)})
    stream = DeviceSort((SortKey("x"),), 32_000).run([cut(table, xp)], Context(spill_root=tmp_path))
    assert pa.concat_tables(map(to_arrow, stream)).equals(table.take(np.argsort(table["x"], kind="stable")))
    assert sum(sorted_parts) < 16_000  # ten runs of two heavy keys pass as they are
    sorted_parts.clear()
    table = pa.table({"x": rng.normal(size=20_000), "row": np.arange(20_000)})
    stream = DeviceSort((SortKey("x"),), 32_000).run([cut(table, xp)], Context(spill_root=tmp_path))
    assert pa.concat_tables(map(to_arrow, stream)).equals(table.take(np.argsort(table["x"])))
    assert len(sorted_parts) > 15
    assert max(sorted_parts) < 32_000


def test_top_k(contexts, no_host, monkeypatch):
    for module in (merge, top_k):
        monkeypatch.setattr(module, "UNIT_ROWS", 1000)
    table = rows_of(3, 2500)
    for keys, count in ((SORTS[1], 1200), (SORTS[3], 2499)):
        expected = no_host(TopKKernel(keys, count), table)
        for namespace, context in contexts():
            found = DeviceTopK(keys, count, 40_000).run([cut(table, namespace)], context)
            assert contents(found, table.schema) == expected


@pytest.mark.parametrize("keys", [("many",), ("crowded", "text"), ("normal",), None], ids=str)
def test_distinct(keys, contexts, no_host, monkeypatch):
    monkeypatch.setattr(distinct, "UNIT_ROWS", 300)
    monkeypatch.setattr(hash_split, "FANOUT", 4)
    rows = rows_of(4, 2000).drop_columns(["row"])
    table = pa.concat_tables([rows.slice(0, 1500), rows.slice(400), rows.slice(0, 300)])
    expected = no_host(DistinctKernel(keys), table)
    for namespace, context in contexts():
        held = 2000 if keys == ("crowded", "text") else 6000
        found = DeviceDistinct(keys, held).run([cut(table, namespace)], context)
        assert contents(found, table.schema) == expected


def test_parts_are_split_again(tmp_path, no_host, monkeypatch):
    monkeypatch.setattr(hash_split, "FANOUT", 2)
    monkeypatch.setattr(distinct, "UNIT_ROWS", 100)
    context = Context(spill_root=tmp_path)
    with use_backend("numpy"):
        table = pa.table({"x": np.random.default_rng(1).permutation(2000) % 900})
        found = DeviceDistinct(None, 500).run([cut(table, np)], context)
        assert contents(found, table.schema) == no_host(DistinctKernel(None), table)
        for how in HOW:
            left, right = rows_of(5, 1200), rows_of(6, 900)
            kernel = join_kernel(how, left, right, ("many",))
            found = DeviceJoin(kernel, 3500).run([cut(left, np), cut(right, np)], context)
            assert contents(found, kernel.schema) == no_host(kernel, left, right)
    assert not list(tmp_path.iterdir())


def join_kernel(how: str, left: pa.Table, right: pa.Table, on: tuple[str, ...]) -> JoinKernel:
    mine = [] if how in ("semi", "anti") else [name for name in right.column_names if name not in on]
    fields = [*left.schema, *(right.schema.field(name).with_name("r_" + name) for name in mine)]
    return JoinKernel(on, on, how, tuple((name, "r_" + name) for name in mine), pa.schema(fields))


@pytest.mark.parametrize(
    ("how", "on"),
    [(how, ("many",)) for how in HOW]
    + [("inner", ("f64", "many")), ("left", ("text", "crowded")), ("anti", ("f64", "many"))]
    + [("left", ("normal",)), ("semi", ("normal",))],
)
def test_join(how, on, contexts, no_host, monkeypatch):
    monkeypatch.setattr(join, "UNIT_ROWS", 3000)
    monkeypatch.setattr(hash_split, "FANOUT", 4)
    left, right = rows_of(5, 900), rows_of(6, 700)
    if on == ("normal",):
        left = pa.concat_tables([left, right])
    if "crowded" in on:  # most rows, as long as they don't make too many pairs
        left, right = left.slice(0, 200), right.slice(0, 500)
    kernel = join_kernel(how, left, right, on)
    expected = no_host(kernel, left, right)
    for namespace, context in contexts():
        limit = 12_000 if how in ("inner", "left") else 3500  # less of the right side is needed
        found = DeviceJoin(kernel, limit).run([cut(left, namespace), cut(right, namespace)], context)
        assert contents(found, kernel.schema) == expected


@pytest.mark.parametrize("how", ["inner", "left"])
def test_a_key_of_more_rows_than_fit_is_joined_on_the_host(how, xp, tmp_path, monkeypatch):
    asked = []
    whole = JoinKernel.run
    monkeypatch.setattr(JoinKernel, "run", lambda *args: asked.append(1) or whole(*args))
    monkeypatch.setattr(hash_split, "FANOUT", 4)
    left, right = rows_of(7, 60), rows_of(8, 300)
    left = left.append_column("k", pa.array(np.where(np.arange(60) % 9 == 0, 5, np.arange(60))))
    right = right.append_column("k", pa.array(np.where(np.arange(300) % 2 == 0, 5, np.arange(300) % 90)))
    kernel = join_kernel(how, left, right, ("k",))
    expected = repr(pa.concat_tables(kernel.run([iter([left]), iter([right])], Context())).to_pydict())
    asked.clear()
    context = Context(memory_bytes=8000, spill_root=tmp_path)
    for namespace in everywhere(xp):
        found = DeviceJoin(kernel, 4000).run([cut(left, namespace), cut(right, namespace)], context)
        assert contents(found, kernel.schema) == expected
    assert len(asked) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["semi", "anti"])
def test_keys_that_stand_often_fit_once(how, xp, no_host, monkeypatch):
    monkeypatch.setattr(DeviceJoin, "_by_parts", None)
    left, right = rows_of(13, 500), rows_of(14, 3000)
    kernel = join_kernel(how, left, right, ("few", "text"))
    expected = no_host(kernel, left, right)
    for namespace in everywhere(xp):
        found = DeviceJoin(kernel, 4000).run([cut(left, namespace), cut(right, namespace)], Context())
        assert contents(found, kernel.schema) == expected


OPERATORS: dict[str, Callable[[pa.Table], Any]] = {
    "sort": lambda table: DeviceSort((SortKey("normal"), SortKey("few")), 20_000),
    "top-k": lambda table: DeviceTopK((SortKey("normal"),), 1400, 20_000),
    "distinct": lambda table: DeviceDistinct(("many", "few"), 4000),
    "join": lambda table: DeviceJoin(join_kernel("left", table, table, ("many", "few")), 20_000),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_stream_that_is_closed_early_leaves_nothing(name, xp, tmp_path, monkeypatch):
    for module in (merge, distinct, join, top_k):
        monkeypatch.setattr(module, "UNIT_ROWS", 200)
    monkeypatch.setattr(hash_split, "FANOUT", 4)
    table = rows_of(9, 1500)
    there: list[weakref.ref[DeviceTable]] = []

    def watched(table):
        for part in cut(table, xp):
            there.append(weakref.ref(part.columns[0].values))
            yield part

    inputs = [watched(table), watched(table)]
    stream = OPERATORS[name](table).run(inputs, Context(memory_bytes=50_000, spill_root=tmp_path))
    for _ in range(4):
        next(stream)
    if name != "distinct":  # which streams before it puts anything aside
        assert list(tmp_path.iterdir())
    stream.close()
    del stream, inputs
    assert not list(tmp_path.iterdir())
    gc.collect()
    assert there
    assert not any(reference() is not None for reference in there)


@pytest.mark.parametrize("held", [None, 100_000], ids=["in memory", "beyond"])
def test_a_full_device_sorts_smaller_parts(held, xp, tmp_path, monkeypatch):
    table, keys = rows_of(10), (SortKey("normal"),)
    expected = contents(DeviceSort(keys).run([cut(table, xp)], Context()), table.schema)
    whole, sizes = merge.row_order, []

    def bounded(table, keys, xp):
        sizes.append(table.rows)
        if table.rows > (5000 if held is None else 1500):
            raise xp.cuda.memory.OutOfMemoryError(1, 2)
        return whole(table, keys, xp)

    monkeypatch.setattr(merge, "row_order", bounded)
    context = Context(spill_root=tmp_path)
    if held is None:
        monkeypatch.setattr("headwater.ops.device.operators.sort.held_bytes", lambda context, xp: 400_000)
    assert contents(DeviceSort(keys, held).run([cut(table, xp)], context), table.schema) == expected
    assert min(sizes) < 1500 < max(sizes)
    assert not list(tmp_path.iterdir())


def limited(
    monkeypatch, xp: Any, module: Any, name: str, rows_of_call: Callable[..., int], most: int
) -> None:
    """Let a function of a module find the device full for more rows than it has room for."""
    whole = getattr(module, name)

    def call(*args: Any) -> Any:
        if rows_of_call(*args) > most:
            raise xp.cuda.memory.OutOfMemoryError(1, 2)
        return whole(*args)

    monkeypatch.setattr(module, name, call)


@pytest.mark.parametrize("most", [150, 900])
def test_a_full_device_compares_fewer_rows(most, xp, tmp_path, monkeypatch, no_host):
    limited(monkeypatch, xp, distinct, "group", lambda columns, rows, xp: rows, most)
    monkeypatch.setattr(distinct, "UNIT_ROWS", 500)
    monkeypatch.setattr(host_runs_module, "UNIT_ROWS", 100)
    table = rows_of(15, 1500)
    expected = no_host(DistinctKernel(("many", "few")), table)
    found = DeviceDistinct(("many", "few")).run([cut(table, xp)], Context(spill_root=tmp_path))
    assert contents(found, table.schema) == expected
    assert not list(tmp_path.iterdir())


def test_a_full_device_finds_first_rows_by_a_sort(xp, tmp_path, monkeypatch, no_host):
    limited(monkeypatch, xp, top_k, "smallest", lambda words, rows, count, xp: rows, 1000)
    monkeypatch.setattr(top_k, "held_bytes", lambda context, xp: 400_000)
    table, keys = rows_of(16, 3000), (SortKey("few"), SortKey("normal"))
    expected = no_host(TopKKernel(keys, 1700), table)
    found = DeviceTopK(keys, 1700).run([cut(table, xp)], Context(spill_root=tmp_path))
    assert contents(found, table.schema) == expected


@pytest.mark.parametrize("how", ["left", "semi"])
def test_a_full_device_joins_smaller_parts(how, xp, tmp_path, monkeypatch, no_host):
    monkeypatch.setattr(memory, "LEAST_ROWS", 100)
    left, right = rows_of(11, 700), rows_of(12, 900)
    kernel = join_kernel(how, left, right, ("many",))
    expected = no_host(kernel, left, right)
    index, lookup = join.DeviceKeyIndex, join.DeviceKeyIndex.lookup

    class Limited(index):
        def __init__(self, columns, xp):
            if len(columns[0]) > 400:
                raise xp.cuda.memory.OutOfMemoryError(1, 2)
            super().__init__(columns, xp)

        def lookup(self, columns):
            if len(columns[0]) > 50 + memory.LEAST_ROWS:
                raise xp.cuda.memory.OutOfMemoryError(1, 2)
            return lookup(self, columns)

    monkeypatch.setattr(join, "DeviceKeyIndex", Limited)
    monkeypatch.setattr(Limited, "_build", index._build)
    monkeypatch.setattr(hash_split, "FANOUT", 4)
    found = DeviceJoin(kernel, 200_000).run([cut(left, xp), cut(right, xp)], Context(spill_root=tmp_path))
    assert contents(found, kernel.schema) == expected


def test_parts_of_parts_differ(xp, tmp_path):
    """Rows of one part of an exchange, and of one part of a split, fall into many parts when they are split again."""
    table = to_device(pa.table({"x": np.arange(20_000)}), xp)
    rows, bounds = hash_partition(table, ["x"], 7, xp)
    part = rows.slice(int(bounds[2]), int(bounds[3]))
    with host_runs(Context(spill_root=tmp_path), xp) as store:
        for depth in range(2):
            parts = hash_split.hash_split([part], ["x"], depth, store, xp)
            sizes = [run.rows for run in parts]
            assert sum(sizes) == part.rows
            assert max(sizes) < 2 * part.rows / hash_split.FANOUT
            part = parts[5].table(xp)
