"""A user function over arrays of the device gives the rows that it gives over NumPy's."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from headwater.errors import UserFunctionError
from headwater.ops.device.device_kernel import device_kernel
from headwater.ops.device.table import to_arrow, to_device
from headwater.ops.kernel import Context
from headwater.ops.map_batches import MapBatchesKernel

SCHEMA = pa.schema([("x", pa.float64()), ("n", pa.int32())])
OUTPUT = pa.schema([("y", pa.float64()), ("m", pa.int64())])
RNG = np.random.default_rng(3)
TABLE = pa.table(
    {
        "x": pa.array(RNG.normal(size=1000), mask=RNG.random(1000) < 0.1),
        "n": pa.array(RNG.integers(-99, 99, 1000).astype(np.int32)),
    },
    schema=SCHEMA,
)


def centered(batch):
    """Depends on where batches are cut."""
    x, n = batch["x"], batch["n"]
    return {"y": x - x[0], "m": n.astype("int64") * 3}


def kernel(function, format="device", output=OUTPUT, same_length=False):
    import headwater.ops.device.operators.map_batches  # noqa: F401  registers it

    return MapBatchesKernel(function, output, format, 64, same_length, function.__name__)


def on_device(made, xp, *cuts):
    lowered = device_kernel(made, [SCHEMA])
    assert not isinstance(lowered, str)
    tables = [TABLE.slice(start, stop - start) for start, stop in zip((0, *cuts), (*cuts, len(TABLE)))]
    stream = (to_device(table, xp) for table in tables)
    return pa.concat_tables([to_arrow(table) for table in lowered.run([stream], Context())])


def test_rows_are_those_of_the_host_however_the_stream_is_cut(xp):
    expected = pa.concat_tables(kernel(centered, "numpy").run([iter([TABLE])], Context())).to_pandas()
    for cuts in ((), (1, 500), (64, 65, 999)):
        result = on_device(kernel(centered), xp, *cuts)
        assert result.schema == OUTPUT
        assert result.to_pandas().equals(expected)


def test_nan_is_null_in_columns_of_integers(xp):
    made = kernel(lambda batch: {"y": batch["x"], "m": batch["x"] * 0})
    assert on_device(made, xp)["m"].null_count == TABLE["x"].null_count


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda batch: [1], "not a dict of arrays"),
        (lambda batch: {"y": batch["x"]}, "no column 'm'"),
        (lambda batch: {"y": batch["x"], "m": batch["n"], "z": batch["n"]}, "isn't declared"),
        (lambda batch: {"y": batch["x"], "m": batch["n"][1:]}, "different lengths"),
        (lambda batch: {"y": batch["x"][:, None], "m": batch["n"]}, "of shape"),
    ],
)
def test_what_does_not_fit_is_told(xp, function, message):
    with pytest.raises(UserFunctionError, match=message):
        on_device(kernel(function), xp)


def test_only_what_asks_for_arrays_of_the_device_goes_there():
    assert "format='device'" in device_kernel(kernel(centered, "numpy"), [SCHEMA])
    text = pa.schema([("x", pa.string())])
    assert "'x' is string" in device_kernel(kernel(centered), [text])
