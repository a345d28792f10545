"""DeviceTransform: fitted preparation steps on a device against the same steps on the host."""

from __future__ import annotations

import datetime as dt
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

import headwater as hw
from headwater.errors import HeadwaterError
from headwater.ops.backend import use_backend
from headwater.ops.device import lowerings  # noqa: F401  (registers the operators)
from headwater.ops.device.device_kernel import device_kernel
from headwater.ops.device.operators.transform import DeviceTransform
from headwater.ops.device.table import to_arrow, to_device
from headwater.ops.kernel import Broadcast, Context
from headwater.ops.prep import Bucketize, Impute, MinMax, OneHot, Ordinal, RobustScale, Standardize, Step
from headwater.ops.transform import TransformKernel

RANDOM = np.random.default_rng(8)
ROWS = 1_501


def column(values: np.ndarray, type: pa.DataType | None = None) -> pa.Array:
    return pa.array(values, type, mask=RANDOM.random(ROWS) < 0.1)


FLOATS = np.where(RANDOM.random(ROWS) < 0.1, np.nan, RANDOM.normal(size=ROWS) * 5)
TABLE = pa.table(
    {
        "id": np.arange(ROWS),
        "n": column(RANDOM.integers(-5, 6, ROWS).astype(np.int16)),
        "x": column(FLOATS),
        "f": column(FLOATS.astype(np.float32)),
        "b": column(RANDOM.random(ROWS) < 0.5),
        "s": column(RANDOM.choice(np.array(["a", "b", "c", "d"], object), ROWS), pa.string()),
        "d": column(RANDOM.integers(0, 9, ROWS).astype(np.int32), pa.date32()),
        "empty": pa.nulls(ROWS, pa.float64()),
        "dec": pa.array([None] * ROWS, pa.decimal128(9, 2)),
    }
)
DAYS = [dt.date(1970, 1, day) for day in range(1, 6)]
STEPS = [
    Standardize("n", "x", "f", "b"),
    Standardize("empty", "n", with_std=False, ddof=1),
    MinMax("n", "x", "f", "b", range=(-1, 3), clip=True),
    RobustScale("n", "x", "f", "b", "empty"),
    Bucketize("n", "x", "f", boundaries=[-2, 0, 0.5, 3]),
    Bucketize("x", "n", bins=4, strategy="quantile", nulls="category"),
    Bucketize("x", bins=7, nulls="category"),
    Bucketize("n", "f", boundaries=[0], labels=["low", "high"]),
    Bucketize("x", boundaries=[0, 1], labels=["in", "out", "in", "none"], nulls="category"),
    Impute("n", "x", "f", "b", indicator=True),
    Impute("n", "x", "f", strategy="median"),
    Impute("n", "s", "d", "b", "x", strategy="most_frequent"),
    Impute("s", "dec", strategy="constant", fill_value={"s": "?", "dec": 7}, indicator=True),
    OneHot("s", "n", categories={"s": ["c", "a"], "n": [3, -5, 0]}, unseen="other", nulls="category"),
    OneHot("s", "d", categories={"s": ["a"], "d": DAYS}, unseen="ignore", nulls="ignore", dtype="int8"),
    OneHot("b", categories={"b": [True, False]}, nulls="category", drop_first=True, dtype="float64"),
    Ordinal("s", "n", "b", "d"),
    Ordinal("s", "n", categories={"s": ["d", "zz"], "n": [4, 1]}, unseen="other", nulls="category"),
]


def fitted(step: Step, rows: pa.Table) -> pa.Table:
    """The state that the step is given."""
    (state,) = step.fit(hw.from_arrow(rows)).states(hw.Session("inline"))
    return state


def broadcast(state: pa.Table) -> Broadcast:
    return Broadcast(lambda: iter([state]), state.schema, {})


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_as_on_the_host(xp: ModuleType, step: Step) -> None:
    kernel, state = TransformKernel(step), fitted(step, TABLE)
    lowered = device_kernel(kernel, [TABLE.schema])
    assert isinstance(lowered, DeviceTransform), lowered
    with use_backend("numpy"):
        (wanted,) = kernel.run([iter([TABLE]), broadcast(state)], Context())
    for namespace in (xp, np):
        rows = to_device(TABLE, namespace)
        with use_backend(namespace.__name__):
            (changed,) = lowered.run([iter([rows]), broadcast(state)], Context())
        assert changed.column("id") is rows.column("id")
        found = to_arrow(changed)
        assert found.schema == wanted.schema
        for name in wanted.column_names:
            a, b = (table.column(name).combine_chunks() for table in (found, wanted))
            if pa.types.is_floating(a.type):
                assert a.is_null().equals(b.is_null())
                np.testing.assert_array_equal(
                    a.fill_null(0).to_numpy(), b.fill_null(0).to_numpy(), err_msg=name
                )
            else:
                assert a.equals(b), name


@pytest.mark.parametrize(
    "step",
    [
        Standardize("x", nulls="error"),
        OneHot("s", categories={"s": ["a", "b", "c", "d"]}),
        Ordinal("n", nulls="error"),
        Ordinal("s", categories={"s": ["a"]}),
    ],
    ids=str,
)
def test_refused_rows_are_refused_alike(xp: ModuleType, step: Step) -> None:
    state = fitted(step, TABLE)
    with pytest.raises(HeadwaterError) as wanted, use_backend("numpy"):
        list(TransformKernel(step).run([iter([TABLE]), broadcast(state)], Context()))
    lowered = device_kernel(TransformKernel(step), [TABLE.schema])
    assert isinstance(lowered, DeviceTransform), lowered
    with pytest.raises(HeadwaterError) as found, use_backend(xp.__name__):
        list(lowered.run([iter([to_device(TABLE, xp)]), broadcast(state)], Context()))
    assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize("step", [MinMax("x"), Impute("x"), Bucketize("x", bins=3)], ids=str)
def test_values_that_the_fit_never_saw(xp: ModuleType, step: Step) -> None:
    seen = pa.table({"x": pa.array([None, float("nan")])})
    rows = seen if not isinstance(step, Impute) else pa.table({"x": [1.0, 2.0]})
    state = fitted(step, seen)
    lowered = device_kernel(TransformKernel(step), [rows.schema])
    assert isinstance(lowered, DeviceTransform)
    with use_backend(xp.__name__):
        (same,) = lowered.run([iter([to_device(rows, xp)]), broadcast(state)], Context())
        assert same.rows == 2
        other = pa.table({"x": pa.array([1.0, None])})
        with pytest.raises(HeadwaterError, match="fitted on have no value in 'x'"):
            list(lowered.run([iter([to_device(other, xp)]), broadcast(state)], Context()))


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (Standardize("dec"), "decimals"),
        (OneHot("s"), "lists"),
        (OneHot("n", categories={"n": [1]}, dtype="float16"), "float16"),
        (Ordinal("x"), "floats"),
    ],
    ids=str,
)
def test_refused_with_a_reason(step: Step, why: str) -> None:
    lowered = device_kernel(TransformKernel(step), [TABLE.schema])
    assert isinstance(lowered, str)
    assert why in lowered
