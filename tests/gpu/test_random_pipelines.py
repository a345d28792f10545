"""Random pipelines over random tables give on a GPU the host's rows, the same bytes however full the GPU is."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import headwater as hw
from headwater import col
from headwater.ops.device import lowerings as lowerings  # imports all operators
from headwater.ops.device import memory_bound

from .conftest import real_cupy

WORDS = np.array(["", "a", "Z", "ä", "zebra", "日本", "a b", "-7"], object)
FLOATS = [np.nan, 0.0, -0.0, np.inf, -np.inf, 1.5, 5e-324, -1e-310, 1.7e308]
#: rows that are computed together, so that small tables come in several pieces
UNIT = 300


def random_table(rng: np.random.Generator) -> pa.Table:
    rows = int(rng.choice([0, 1, 40, 700, 1500], p=[0.1, 0.1, 0.2, 0.3, 0.3]))

    def column(values: Any, type: pa.DataType | None = None) -> pa.Array:
        share = rng.choice([0.0, 0.1, 1.0], p=[0.5, 0.45, 0.05])
        return pa.array(values, type, mask=rng.random(rows) < share, from_pandas=False)

    info = np.iinfo(np.uint64)
    return pa.table(
        {
            "key": column(np.where(rng.random(rows) < 0.5, 3, rng.integers(0, 90, rows))),
            "wide": column(rng.choice(np.array([0, 1, info.max, info.max - 1], np.uint64), rows)),
            "byte": column(rng.integers(-128, 128, rows).astype(np.int8)),
            "price": column(rng.lognormal(3, 1, rows).round(2)),
            "odd": column(rng.choice(FLOATS, rows)),
            "single": column(rng.choice(np.array(FLOATS[:6], np.float32), rows)),
            "flag": column(rng.random(rows) < 0.5),
            "day": column(rng.integers(-999, 20_000, rows).astype("datetime64[D]")),
            "at": column(rng.integers(-(10**6), 10**9, rows).astype("datetime64[ms]")),
            "text": column(rng.choice(WORDS[: rng.integers(1, 9)], rows), pa.string()),
            "coded": column(rng.choice(WORDS[rng.integers(0, 5) :], rows), pa.string()).dictionary_encode(),
            "row": pa.array(np.arange(rows)),
        }
    )


def names_of(rng: np.random.Generator, rows: hw.Dataset, most: int = 2) -> list[str]:
    names = [name for name in rows.columns if name != "coded"]  # which has no order
    return [str(name) for name in rng.permutation(names)[: rng.integers(1, most + 1)]]


def random_step(rng: np.random.Generator, rows: hw.Dataset, other: hw.Dataset) -> hw.Dataset:
    step = rng.choice(
        ["filter", "compute", "join", "group", "distinct", "sort", "top", "move", "union", "keep"]
    )
    if step == "filter":
        tests = [col("key") > 2, col("text").is_not_null(), ~(col("row") % 3 == 1) | col("flag")]
        return rows.filter(tests[rng.integers(len(tests))])
    if step == "compute":
        price = col("price") * 2 + col("byte")
        return rows.with_columns(price=price, text=col("text").str.upper(), key=col("key").fill_null(5))
    if step == "join":
        how = str(rng.choice(["inner", "left", "semi", "anti"]))
        on = [str(name) for name in rng.choice(["key", "wide", "text", "odd"], 2, replace=False)]
        right = other.select(*on, extra=col("day")).distinct(*on)
        joined = rows.join(right, on=on, how=how, strategy=str(rng.choice(["broadcast", "shuffle"])))
        return joined.drop("extra") if "extra" in joined.columns else joined
    if step == "distinct":
        return rows.distinct(*names_of(rng, rows))
    if step in ("sort", "top"):
        keys = names_of(rng, rows)
        down, first = ([bool(flag) for flag in rng.random(len(keys)) < 0.5] for _ in range(2))
        ordered = rows.sort(*keys, descending=down, nulls_first=first)
        return ordered if step == "sort" else ordered.limit(int(rng.choice([0, 5, 400])))
    if step == "move":
        return rows.repartition(int(rng.integers(1, 5)), by=names_of(rng, rows))
    if step == "union":
        return rows.union(other.repartition(2))
    return rows.persist() if step == "keep" else rows


def random_pipeline(seed: int) -> dict[str, hw.Dataset]:
    rng = np.random.default_rng(seed)
    first, second = (hw.from_arrow(random_table(rng), partitions=int(rng.integers(1, 4))) for _ in range(2))
    rows = first
    for _ in range(rng.integers(2, 6)):
        rows = random_step(rng, rows, second)
    functions = ["count", "min", "max", "first", "last"]
    sums = {name: getattr(col("price"), name)() for name in ("sum", "mean", "std", "approx_median")}
    more = {
        f"{name}_{rng.choice(functions)}": name for name in ("wide", "odd", "text", "day", "flag", "single")
    }
    answers = {to: getattr(col(of), to.rpartition("_")[2])() for to, of in more.items()}
    return {
        "rows": rows,
        "groups": rows.group_by(*names_of(rng, rows)).agg(rows=hw.count(), **sums, **answers),
    }


def run(seed: int, device: str) -> tuple[dict[str, pa.Table], dict[str, str]]:
    options = hw.PlanOptions(partition_bytes=16 << 10)
    with (
        hw.Session("inline", device=device, options=options, journal=False) as session,
        session.run(random_pipeline(seed)) as result,
    ):
        names = result.outputs
        return {name: result.table(name) for name in names}, {name: result.digest(name) for name in names}


def assert_same(got: pa.Table, expected: pa.Table) -> None:
    assert got.schema == expected.schema
    assert got.num_rows == expected.num_rows
    for name in expected.schema.names:
        mine, theirs = (table[name].combine_chunks() for table in (got, expected))
        if pa.types.is_dictionary(theirs.type):
            mine, theirs = mine.cast(pa.string()), theirs.cast(pa.string())
        if pa.types.is_floating(theirs.type):
            assert pc.is_null(mine).equals(pc.is_null(theirs)), name
            numbers = (column.drop_null().to_numpy() for column in (mine, theirs))
            np.testing.assert_allclose(*numbers, rtol=1e-9, err_msg=name)
        else:
            assert mine.equals(theirs), name


@pytest.fixture
def device(xp: Any, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A device that a session takes for a GPU, with several pieces of rows in each partition."""
    monkeypatch.setenv("HEADWATER_BACKEND", "cupy")
    for name, module in list(sys.modules.items()):
        if name.startswith("headwater.") and hasattr(module, "UNIT_ROWS"):
            monkeypatch.setattr(module, "UNIT_ROWS", UNIT)
    return monkeypatch


@pytest.mark.parametrize("seed", range(60 if real_cupy() else 4))
def test_rows_are_those_of_the_host(device, xp, seed):
    expected, _ = run(seed, "cpu")
    got, digests = run(seed, "gpu")
    for name, table in expected.items():
        assert_same(got[name], table)
    limit = xp.get_default_memory_pool().get_limit() or xp.cuda.Device().mem_info[1]
    device.setattr(memory_bound, "HELD_SHARE", 20_000 / limit)
    device.setattr("headwater.runtime.devices.worker_device.CACHE_SHARE", 20_000 / limit)
    assert run(seed, "gpu")[1] == digests


@pytest.mark.skipif(real_cupy() is not None, reason="allocations fail only in the emulation")
@pytest.mark.parametrize("seed", [20, 22, 23])
def test_a_device_that_is_full_for_a_moment_changes_no_byte(device, xp, seed):
    _, digests = run(seed, "gpu")
    whole, made, fails = xp.ndarray.__init__, 0, 0

    def counted(self: Any, data: np.ndarray) -> None:
        nonlocal made
        made += isinstance(data, np.ndarray) and data.base is None
        if fails and made == fails:
            raise xp.cuda.memory.OutOfMemoryError(1, 2)
        whole(self, data)

    device.setattr(xp.ndarray, "__init__", counted)
    failed: list[BaseException] = []  # tasks that would be tried again
    device.setattr("headwater.runtime.workers.run_task.make_room_after", failed.append)
    assert run(seed, "gpu")[1] == digests
    fails, made = int(np.random.default_rng(seed).integers(1, made + 1)), 0
    assert run(seed, "gpu")[1] == digests
    assert made >= fails
    assert not failed
