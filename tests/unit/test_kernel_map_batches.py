"""MapBatches: what user functions get, what they may give, and how their mistakes are told."""

import datetime
import pickle
import threading
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from headwater.errors import SerializationError, UserFunctionError
from headwater.ops.batches import to_arrays
from headwater.ops.kernel import Context
from headwater.ops.map_batches import MapBatchesKernel, check_picklable, infer_output

TABLE = pa.table({"x": [1, 2, 3], "s": ["a", "ß", None]})
XY = pa.schema([("y", pa.float64())])


def run(function, output, table=TABLE, format="numpy", batch_rows=None, same_length=False):
    kernel = MapBatchesKernel(function, output, format, batch_rows, same_length, "f")
    return pa.concat_tables([output.empty_table(), *kernel.run([iter([table])], Context(partition=4))])


def failure(function, output, **options):
    with pytest.raises(UserFunctionError) as caught:
        run(function, output, **options)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


def test_arrays_of_each_type():
    table = pa.table(
        {
            "int": pa.array([1, 2], pa.int32()),
            "hole": pa.array([1, None]),
            "float": pa.array([1.5, None]),
            "bool": pa.array([True, False]),
            "maybe": pa.array([True, None]),
            "text": pa.array(["ß", None]),
            "day": pa.array([datetime.date(1969, 12, 31), None]),
            "time": pa.array([datetime.datetime(2024, 2, 29, 1), None], pa.timestamp("us", "UTC")),
            "money": pa.array([Decimal("1.10"), None]),
            "vector": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        }
    )
    arrays = to_arrays(table)
    assert arrays["int"].dtype == np.int32
    np.testing.assert_array_equal(arrays["hole"], [1.0, np.nan])
    np.testing.assert_array_equal(arrays["float"], [1.5, np.nan])
    assert arrays["bool"].dtype == bool
    assert arrays["maybe"].tolist() == [True, None]
    assert arrays["text"].tolist() == ["ß", None]
    np.testing.assert_array_equal(arrays["day"], np.array(["1969-12-31", "NaT"], "datetime64[D]"))
    np.testing.assert_array_equal(arrays["time"], np.array(["2024-02-29T01", "NaT"], "datetime64[us]"))
    assert arrays["money"].tolist() == [Decimal("1.10"), None]
    assert arrays["vector"].shape == (2, 2)
    assert arrays["vector"].dtype == np.float32


def test_a_function_may_change_its_batch_in_place():
    def double(batch):
        batch["x"] *= 2
        return batch

    assert run(double, TABLE.schema).column("x").to_pylist() == [2, 4, 6]
    assert TABLE.column("x").to_pylist() == [1, 2, 3]


def test_every_column_survives_the_way_through_arrays():
    table = pa.table(
        {
            "i": pa.array([2**53, 5], pa.int64()),
            "hole": pa.array([7, None], pa.int16()),
            "nan": pa.array([float("nan"), -0.0]),
            "s": pa.array(["", None]),
            "t": pa.array([datetime.date(1, 1, 1), None]),
            "at": pa.array([datetime.datetime(2024, 1, 1), None], pa.timestamp("ms", "Europe/Berlin")),
            "for": pa.array([datetime.timedelta(1), None], pa.duration("us")),
            "clock": pa.array([datetime.time(1, 2), None]),
            "d": pa.array([Decimal("1.10"), None]),
            "l": pa.array([[1, None], None], pa.list_(pa.int64())),
            "st": pa.array([{"a": 1}, None]),
            "v": pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)),
            "b": pa.array([b"\xff", None]),
        }
    )
    assert repr(run(lambda batch: batch, table.schema, table).to_pylist()) == repr(table.to_pylist())


@pytest.mark.parametrize(
    ("values", "type", "expected"),
    [
        (np.array([1.0, np.nan]), pa.int64(), [1, None]),
        (np.array([1, 2], np.int64), pa.int8(), [1, 2]),
        (np.array([1, 2]), pa.float32(), [1.0, 2.0]),
        (["a", None], pa.string(), ["a", None]),
        (np.array(["a", "bc"]), pa.string(), ["a", "bc"]),
        (np.array(["a", "bc"], np.dtypes.StringDType()), pa.string(), ["a", "bc"]),
        (np.array([[1, 2], [3, 4]]), pa.list_(pa.int32()), [[1, 2], [3, 4]]),
        (np.array(["2024-01-01"], "datetime64[s]"), pa.date32(), [datetime.date(2024, 1, 1)]),
        (np.array([1, 2], ">i4"), pa.int32(), [1, 2]),
        (pa.chunked_array([[1], [2]]), pa.int64(), [1, 2]),
    ],
)
def test_results_are_cast_where_nothing_is_lost(values, type, expected):
    assert run(lambda _: {"y": values}, pa.schema([("y", type)])).column("y").to_pylist() == expected


def test_a_function_that_raises_is_told_with_its_own_traceback():
    def divide(batch):
        return {"y": 1 // (batch["x"][0] - batch["x"][0]).item()}

    message = failure(divide, XY)
    assert "map_batches(f) raised ZeroDivisionError" in message
    assert "partition 4" in message
    assert "{'x': 1, 's': 'a'}" in message
    assert "in divide" in message
    assert "user_functions.py" not in message


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda b: {"y": b["s"]}, ["'y'", "double", "object"]),
        (lambda b: {"z": b["x"]}, ["no column 'y'", "'z'"]),
        (lambda b: {"y": b["x"], "z": b["x"]}, ["'z'", "isn't declared"]),
        (lambda b: {"y": 3.0}, ["'y'", "single value"]),
        (lambda b: [1], ["list", "dict of arrays"]),
        (lambda b: None, ["NoneType"]),
        (lambda b: {"y": b["x"][:, None] + np.zeros((3, 2))}, ["'y'", "(3, 2)"]),
    ],
)
def test_results_that_do_not_fit_are_told(function, told):
    message = failure(function, XY)
    assert all(part in message for part in ["map_batches(f)", *told])


def test_values_that_do_not_fit_the_declared_type_are_told():
    schema = pa.schema([("y", pa.int8())])
    assert "int8" in failure(lambda b: {"y": b["x"] + 1000}, schema)
    assert "int8" in failure(lambda b: {"y": b["x"] + 0.5}, schema)
    assert "string" in failure(lambda b: {"y": b["x"]}, pa.schema([("y", pa.string())]))


def test_wrong_lengths_are_told():
    two = pa.schema([("y", pa.int64()), ("z", pa.int64())])
    message = failure(lambda b: {"y": b["x"], "z": b["x"][:2]}, two)
    assert "{'y': 3, 'z': 2}" in message
    message = failure(lambda b: {"y": b["x"][:2]}, XY, same_length=True)
    assert "2 rows for 3" in message
    assert run(lambda b: {"y": b["x"][:2]}, XY).num_rows == 2


def test_arrow_format():
    output = pa.schema([("y", pa.int64()), ("s", pa.string())])
    renamed = run(lambda t: t.rename_columns(["y", "s"]), output, format="arrow")
    assert renamed.schema == output
    assert "pyarrow.Table" in failure(lambda t: {"y": [1]}, XY, format="arrow")


def test_schema_is_inferred_on_an_empty_batch():
    def function(batch):
        return {"s": batch["s"], "y": batch["x"] / 2, "n": batch["x"] > 1, "m": np.ones((len(batch["x"]), 3))}

    inferred = infer_output(function, TABLE.schema)
    assert inferred == pa.schema(
        [("s", pa.string()), ("y", pa.float64()), ("n", pa.bool_()), ("m", pa.list_(pa.float64(), 3))]
    )
    assert run(function, inferred).schema == inferred
    large = infer_output(lambda t: t.append_column("u", t["s"].cast("large_string")), TABLE.schema, "arrow")
    assert large.field("u").type == pa.string()


def test_a_schema_that_can_not_be_inferred_is_told():
    with pytest.raises(UserFunctionError, match=r"IndexError(.|\n)*schema="):
        infer_output(lambda batch: {"y": batch["x"][0]}, TABLE.schema)
    with pytest.raises(UserFunctionError, match=r"objects in 'new'(.|\n)*schema="):
        infer_output(lambda batch: {"new": batch["s"]}, TABLE.schema)


def test_the_object_that_can_not_be_pickled_is_named():
    lock = threading.Lock()

    class Model:
        def __init__(self):
            self.handle = lock

        def __call__(self, batch):
            return batch

    check_picklable(lambda batch: batch)
    with pytest.raises(SerializationError, match="captured variable 'lock'"):
        check_picklable(lambda batch: lock.locked())
    with pytest.raises(SerializationError, match="attribute 'handle'"):
        check_picklable(Model())
    with pytest.raises(SerializationError, match="default of 'guard'"):
        check_picklable(lambda batch, guard=lock: batch)
