"""The array namespace seam: columns to arrays and back, and the numeric kernels."""

import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from headwater.errors import ParameterError, TypeMismatchError
from headwater.ops.backend import array_namespace, bucket_index, from_arrays, one_hot, to_arrays, use_backend


@pytest.mark.parametrize(
    ("values", "type"),
    [
        ([1, None, 3], pa.int16()),
        ([1, 2, 3], pa.uint64()),
        ([0.5, float("nan"), None], pa.float64()),
        ([True, None, False], pa.bool_()),
        ([1, None, 3], pa.timestamp("us")),
        ([1, None, 3], pa.duration("s")),
        (["a", None, ""], pa.string()),
        ([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        ([], pa.int64()),
    ],
    ids=lambda value: str(value) if isinstance(value, pa.DataType) else "",
)
def test_columns_survive_the_round_trip(values, type):
    column = pa.chunked_array([pa.array(values[:1], type), pa.array(values[1:], type)])
    array, mask = to_arrays(column)
    assert len(array) == len(values)
    assert (mask is None) == (None not in values)
    back = from_arrays(array, mask, type)
    assert back.type.equals(type)
    assert repr(back.to_pylist()) == repr(column.to_pylist())  # repr, as NaN equals nothing


def test_a_null_holds_zero_whatever_lay_under_it():
    buffers = [pa.py_buffer(b"\x01"), pa.py_buffer(np.array([7, 9]))]
    values, mask = to_arrays(pa.Array.from_buffers(pa.int64(), 2, buffers))
    assert values.tolist() == [7, 0]
    assert mask.tolist() == [False, True]


def test_sliced_lists_become_rows():
    column = pa.array([[1, 2], [3, 4], None, [5, 6]], pa.list_(pa.int32(), 2))
    values, mask = to_arrays(column[1:])
    assert values.tolist() == [[3, 4], [0, 0], [5, 6]]
    assert mask.tolist() == [False, True, False]


def test_numbers_without_nulls_arent_copied():
    column = pa.array(np.arange(1000.0))
    assert not to_arrays(column)[0].flags.owndata


def test_one_hot_is_get_dummies():
    codes = np.array([2, 0, 1, 2, -1])
    expected = pd.get_dummies(pd.Series(codes[:-1])).to_numpy(np.float32)
    result = one_hot(codes, 3, np.float32)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result[:-1], expected)
    assert not result[-1].any()


def test_buckets_are_those_of_digitize():
    values, edges = np.linspace(-3, 3, 101), np.array([-1.0, 0.0, 2.0])
    np.testing.assert_array_equal(bucket_index(values, edges), np.digitize(values, edges))


def test_numpy_unless_asked(monkeypatch):
    monkeypatch.delenv("HEADWATER_BACKEND", raising=False)
    assert array_namespace() is np
    assert "cupy" not in sys.modules
    monkeypatch.setenv("HEADWATER_BACKEND", "cuppy")
    with pytest.raises(ParameterError, match="Did you mean 'cupy'"):
        array_namespace()
    with use_backend("numpy") as xp:
        assert xp is array_namespace() is np


def test_a_missing_cupy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setenv("HEADWATER_BACKEND", "cupy")
    with pytest.raises(ParameterError, match=r"headwater\[gpu\]"):
        array_namespace()


def test_what_the_device_cant_hold_is_refused():
    class Device:
        asarray = staticmethod(np.asarray)

    with pytest.raises(TypeMismatchError, match="string has no form on the GPU"):
        to_arrays(pa.array(["a"]), Device)
