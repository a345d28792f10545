"""Whole pipelines give on a GPU the rows they give on the host, and the same bytes each time."""

from __future__ import annotations

import os
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import headwater as hw
from headwater import col
from headwater.ops.device import memory_bound
from headwater.ops.device.operators import hash_split
from headwater.session import plan

from .conftest import real_cupy

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
DATA = Path(os.environ.get("HEADWATER_DATA", Path(__file__).parents[3] / "shared" / "data"))
ROWS = 6000
RNG = np.random.default_rng(5)
ORDERS = pa.table(
    {
        "order": RNG.permutation(ROWS),
        "customer": pa.array(RNG.integers(0, 300, ROWS), mask=RNG.random(ROWS) < 0.02),
        "price": pa.array(RNG.lognormal(3, 1, ROWS).round(2), mask=RNG.random(ROWS) < 0.05),
        "day": pa.array(RNG.integers(0, 400, ROWS).astype("int32")).cast(pa.date32()),
        "mode": pa.array([["air", "ship", "rail", None][i] for i in RNG.integers(0, 4, ROWS)]),
    }
)
CUSTOMERS = pa.table({"customer": np.arange(0, 300, 2), "age": RNG.integers(18, 90, 150)})
OPTIONS = hw.PlanOptions(partition_bytes=64 << 10)


@pytest.fixture(scope="module")
def device(xp) -> Any:
    """What makes a session take the device of the tests for a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWATER_BACKEND", "cupy")
        yield


def run(outputs: dict[str, Any], device: str) -> tuple[dict[str, pa.Table], dict[str, str], Any]:
    with (
        hw.Session("inline", device=device, options=OPTIONS, journal=False) as session,
        session.run(outputs) as result,
    ):
        names = result.outputs
        return (
            {name: result.table(name) for name in names},
            {name: result.digest(name) for name in names},
            result.report,
        )


def assert_same(got: pa.Table, expected: pa.Table, tolerance: float = 1e-9) -> None:
    """The same rows in the same order: floats within a tolerance, all else exactly."""
    assert got.schema == expected.schema
    assert got.num_rows == expected.num_rows
    for name in expected.schema.names:
        mine, theirs = got[name].combine_chunks(), expected[name].combine_chunks()
        if pa.types.is_floating(theirs.type):
            assert pc.is_null(mine).equals(pc.is_null(theirs)), name
            np.testing.assert_allclose(
                mine.drop_null().to_numpy(), theirs.drop_null().to_numpy(), rtol=tolerance, err_msg=name
            )
        else:
            assert mine.equals(theirs), name


def orders() -> hw.Dataset:
    return hw.from_arrow(ORDERS, partitions=3)


def outputs_of(name: str) -> dict[str, Any]:
    rows = orders().filter((col("price") > 5) & (col("mode") != "rail"))
    rows = rows.with_columns(total=col("price") * 1.19, month=col("day").dt.month())
    if name == "aggregates":
        return {
            "by_month": rows.group_by("month", "mode").agg(
                n=hw.count(),
                total=hw.sum("total"),
                mean=col("price").mean(),
                least=col("price").min(),
                most=col("order").max(),
                spread=col("price").std(),
            ),
            "all": rows.agg(n=hw.count(), total=hw.sum("total")),
        }
    if name == "joins":
        customers = hw.from_arrow(CUSTOMERS)
        return {
            how: rows.join(customers, on="customer", how=how) for how in ("inner", "left", "semi", "anti")
        }
    if name == "order":
        return {
            "sorted": rows.sort("mode", "price", "order"),
            "top": rows.sort("total", "order", descending=[True, False]).limit(20),
            "distinct": rows.select("customer", "mode").distinct(),
        }
    if name == "repartitioned":
        return {"hashed": rows.repartition(5, by="customer"), "dealt": rows.repartition(4)}
    chain = hw.prep.Standardize("price") | hw.prep.OneHot("mode", unseen="ignore", nulls="ignore")
    kept = rows.select("price", "mode", "order").drop_nulls("price")
    return {"prepared": chain.fit(kept).transform(kept)}


@pytest.mark.parametrize("name", ["aggregates", "joins", "order", "repartitioned", "prepared"])
def test_rows_are_those_of_the_host(device, monkeypatch, name):
    expected, _, before = run(outputs_of(name), "cpu")
    got, digests, report = run(outputs_of(name), "gpu")
    for output, table in expected.items():
        assert_same(got[output], table)
    assert sum(stage.to_device_bytes for stage in report.stages) > 0
    assert sum(stage.to_device_bytes for stage in before.stages) == 0
    planned = plan(outputs_of(name), replace(OPTIONS, device="gpu")).stages
    found = {stage.id for stage in report.stages if stage.device_bytes}
    assert found == {stage.id for stage in planned if stage.transfer.found}
    monkeypatch.setattr("headwater.runtime.devices.worker_device.CACHE_SHARE", 0)
    _, again, alone = run(outputs_of(name), "gpu")
    assert again == digests  # whichever way rows came
    (kept, nothing), crossed = (
        [sum(getattr(stage, bytes) for stage in each.stages) for each in (report, alone)]
        for bytes in ("device_bytes", "to_device_bytes")
    )
    assert nothing == 0
    if name != "repartitioned":  # whose rows nobody reads on a device
        assert kept > 0
        assert crossed[0] < crossed[1]


def test_how_much_a_device_holds_changes_no_byte(device, xp, monkeypatch):
    rows = orders().with_columns(total=col("price") * 1.19)
    others = rows.select("order", "total").repartition(2)
    outputs = outputs_of("order") | {
        "joined": rows.join(others, on="order", strategy="shuffle"),
        "lacking": rows.join(others.filter(col("total") > 30), on="order", how="anti", strategy="shuffle"),
    }
    _, digests, before = run(outputs, "gpu")
    limit = xp.get_default_memory_pool().get_limit() or xp.cuda.Device().mem_info[1]
    monkeypatch.setattr(memory_bound, "HELD_SHARE", 20_000 / limit)
    monkeypatch.setattr(hash_split, "FANOUT", 4)
    _, found, after = run(outputs, "gpu")
    assert found == digests
    crossed = [sum(stage.to_host_bytes for stage in report.stages) for report in (before, after)]
    assert crossed[1] > 1.2 * crossed[0]  # what waits on the host


def test_blocks_stay_on_the_device_for_who_reads_them_next(device):
    def outputs_of(rows: hw.Dataset) -> dict[str, Any]:
        return {
            "top": rows.sort("double", "order").limit(5),
            "n": rows.agg(n=hw.count(), last=hw.max("order")),
        }

    rows = orders().select("order", double=col("price") * 2)
    expected, _, _ = run(outputs_of(rows), "cpu")
    with hw.Session("inline", device="gpu", journal=False) as session:
        with session.run(outputs_of(rows.persist())) as result:
            for name, table in expected.items():
                assert result.table(name).equals(table)
            cache = session._executor.device_cache
            assert cache.hits == 12  # two readers of three partitions, and one of what each of them leaves
            assert cache.bytes > 0
            persisted = next(stage for stage in result.report.stages if stage.to_device_bytes > 9 * ROWS)
            others = [stage for stage in result.report.stages if stage is not persisted]
            assert sum(stage.to_device_bytes for stage in others) < 1000
        assert cache.bytes == 0


def test_a_sort_finds_its_rows_where_they_were_cut(device, monkeypatch):
    rows = hw.from_arrow(ORDERS.slice(0, 4000), partitions=2).filter(col("order") % 7 != 3)
    rows = rows.with_columns(name=col("order").cast(pa.string()), half=col("price") / 2)
    keys, descending = ["mode", "half", "order"], [True, False, False]
    outputs = {
        "by_price": rows.select("order", "half", "mode").sort(*keys, descending=descending),
        "by_name": rows.select("customer", "name").sort("name"),  # of too many strings to stay there
    }
    expected, _, _ = run(outputs, "cpu")
    got, digests, report = run(outputs, "gpu")
    for output, table in expected.items():
        assert_same(got[output], table, 0)
    cuts = [at for at, stage in enumerate(report.stages) if stage.label == "exchange [gpu]"]
    by_price, by_name = ([report.stages[at] for at in (cut, cut + 1)] for cut in cuts)
    size = by_price[0].device_bytes
    assert size >= by_price[0].rows_in * (8 + 8 + 4)
    assert [(stage.to_device_bytes, stage.device_bytes) for stage in by_price] == [(0, size)] * 2
    assert [stage.device_bytes > 0 for stage in by_name] == [True, False]
    monkeypatch.setattr("headwater.planner.devices.is_cut", lambda stage: False)
    _, again, plain = run(outputs, "gpu")
    assert again == digests
    assert [plain.stages[cut].label for cut in cuts] == ["exchange"] * 2
    crossed = plain.stages[cuts[0] + 1].to_device_bytes
    assert 0.9 * size < crossed <= size  # pieces without nulls have no masks


def test_what_a_training_moves_is_counted(device):
    rng = np.random.default_rng(0)
    rows = hw.from_arrow(pa.table({name: rng.random(ROWS, np.float32) for name in "abcdy"}))
    model = hw.train(rows, target="y", objective=hw.objectives.LinearRegression(), steps=3, batch_size=1024)
    _, _, report = run({"model": model}, "gpu")
    (training,) = [stage for stage in report.stages if stage.training]
    least = 5 * 4 * ROWS + 3 * 8 * 1024  # rows once, and the numbers of those that are drawn
    assert least <= training.to_device_bytes < least + 10_000
    assert 0 < training.to_host_bytes < 10_000
    _, _, report = run({"model": model}, "cpu")
    assert not any(stage.to_device_bytes or stage.to_host_bytes for stage in report.stages)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("flights", "nycflights13"),
        ("adult", ""),
        ("adult_model", ""),
        ("mnist", ""),
        ("wordcount", "tinyshakespeare.txt"),
    ],
)
def test_examples(device, tmp_path, name, data):
    if not (DATA / data).exists():
        pytest.skip("the examples' data is not here")
    more = {"adult": {"out": str(tmp_path)}, "mnist": {"epochs": 1}}
    made = runpy.run_path(str(EXAMPLES / f"{name}.py"))[name](data=str(DATA / data), **more.get(name, {}))
    models = (
        {"model", "mlp", "cnn"} if real_cupy() else {"model", "mlp", "cnn", "cnn_quality"}
    )  # PyTorch needs CUDA
    outputs = {key: value for key, value in made.items() if key not in models}
    expected, digests, _ = run(outputs, "cpu")
    got, others, _ = run(outputs, "gpu")
    for output, table in expected.items():
        if output in ("train", "test"):  # files
            assert others[output] == digests[output]
        else:
            assert_same(got[output], table, 1e-4)  # what a solver finds, by another order of sums
