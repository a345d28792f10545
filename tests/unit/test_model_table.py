"""The model as a table: exact bits back, in rows that stay small; damage is noticed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import headwater as hw
from headwater.datasets import table_source
from headwater.errors import CorruptFileError, SerializationError, TypeMismatchError
from headwater.ops.scan import Scan
from headwater.ops.training import model_table
from headwater.ops.training.model_table import (
    MODEL_SCHEMA,
    FittedModel,
    decode_model,
    digest,
    encode_model,
)

ODD = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, 0.1])


def same(a, b):
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if not isinstance(a, np.ndarray):
        return a == b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


TREE = {
    "w": ODD,
    "layers": [{"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"w": np.zeros((0, 4), np.float16)}],
    "flags": np.array([True, False, True]),
    "count": np.array(7, np.int64),
    "name with . and /": np.array([1], np.uint8),
    "empty": {},
    "none": None,
    "text": "a",
    "list": [],
}


def test_round_trip_keeps_every_bit():
    fitted = decode_model(encode_model(TREE, {"m": ODD, "step": np.array(3)}, about={"steps": 3}))
    assert same(TREE, fitted.params)
    assert same({"m": ODD, "step": np.array(3)}, fitted.optimizer)
    assert fitted.about == {"steps": 3}


def test_trees_of_one_array_of_numbers_and_of_tuples():
    assert decode_model(encode_model(ODD)).params.tobytes() == ODD.tobytes()
    fitted = decode_model(encode_model({"a": (1.5, 2), "b": np.float32(3)}))
    assert same(fitted.params, {"a": (np.array(1.5), np.array(2)), "b": np.array(3, np.float32)})


def test_arrays_that_lie_otherwise_come_back_in_c_order():
    values = np.arange(12.0).reshape(3, 4)
    tree = {"f": np.asfortranarray(values), "strided": values[:, ::2], "big": values.astype(">f8")}
    back = decode_model(encode_model(tree)).params
    for name, array in tree.items():
        assert np.array_equal(back[name], array)
        assert back[name].dtype == np.float64


def test_history_keeps_types_nulls_and_nan():
    steps = [{"step": 0, "loss": float("nan")}, {"step": 1, "loss": 0.5, "validation": 0.25}]
    history = decode_model(encode_model({}, history=steps)).history
    assert history.schema.types == [pa.int64(), pa.float64(), pa.float64()]
    assert history.column("validation").to_pylist() == [None, 0.25]
    assert history.column("loss").null_count == 0
    again = decode_model(encode_model({}, history=history)).history
    assert again.schema == history.schema
    assert again.slice(1) == history.slice(1)
    columns = {"step": [0, 1], "loss": np.array([0.5, 0.25])}
    assert decode_model(encode_model({}, history=columns)).history.to_pydict() == {
        "step": [0, 1],
        "loss": [0.5, 0.25],
    }


def test_large_arrays_are_cut_into_small_rows(monkeypatch):
    monkeypatch.setattr(model_table, "CHUNK_BYTES", 1000)
    rng = np.random.default_rng(0)
    tree = {"large": rng.normal(size=(70, 9)), "small": [rng.normal(size=5) for _ in range(40)]}
    table = encode_model(tree)
    sizes = [sum(len(v or b"") for v in b.column("data").to_pylist()) for b in table.to_batches()]
    assert max(sizes) <= 1000
    assert len(table.filter(pa.compute.equal(table["path"], "large"))) == 6
    assert same(tree, decode_model(table).params)
    assert same(tree, decode_model(table.combine_chunks()).params)


def test_equal_models_are_equal_tables():
    a = encode_model({"b": ODD, "a": np.ones(2)}, about={"x": 1, "y": 2})
    assert a.equals(encode_model({"b": ODD.copy(), "a": np.ones(2)}, about={"y": 2, "x": 1}))
    assert a.schema == MODEL_SCHEMA
    assert list(decode_model(a).params) == ["b", "a"]
    turned = FittedModel({"a": np.ones(2), "b": ODD})
    assert digest(decode_model(a)) == digest(turned)


def test_a_model_travels_as_any_rows_do():
    table = encode_model(TREE, {"m": ODD}, [{"loss": 1.0}], {"steps": 3})
    ds = hw.Dataset(Scan(table_source(table, partitions=3)))
    assert ds.schema == MODEL_SCHEMA
    assert same(TREE, decode_model(ds.compute(hw.Session("inline"))).params)


def test_digest_tells_values_shapes_dtypes_and_names_apart():
    models = [
        {"w": np.zeros(4)},
        {"w": np.zeros((2, 2))},
        {"w": np.zeros(8, np.float32)},
        {"v": np.zeros(4)},
        {"w": -np.zeros(4)},
        {"w": [np.zeros(4)]},
        {"w": (np.zeros(4),)},
        {},
    ]
    digests = {digest(FittedModel(params)) for params in models}
    digests.add(digest(FittedModel({}, {"w": np.zeros(4)})))
    assert len(digests) == len(models) + 1
    again = digest(decode_model(encode_model(models[0], history=[{"loss": 1.0}], about={"a": 1})))
    assert again == digest(FittedModel(models[0]))


def test_damage_is_noticed(monkeypatch):
    monkeypatch.setattr(model_table, "CHUNK_BYTES", 16)
    table = encode_model({"w": np.arange(9.0), "b": np.zeros(1)})
    for row in range(table.num_rows):
        rest = pa.concat_tables([table.slice(0, row), table.slice(row + 1)])
        with pytest.raises(CorruptFileError):
            decode_model(rest)
    with pytest.raises(CorruptFileError, match="is no model"):
        decode_model(pa.table({"x": [1]}))


def test_what_no_model_can_hold():
    with pytest.raises(TypeMismatchError, match=r"at 'a\.0'"):
        encode_model({"a": [object()]})
    with pytest.raises(TypeMismatchError, match="key 3"):
        encode_model({3: np.zeros(1)})
    with pytest.raises(SerializationError, match="plain"):
        encode_model({}, about={"x": object()})
