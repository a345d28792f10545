"""Features: the arrays that columns become, and what is said of columns that can't."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headwater.errors import (
    ColumnNotFoundError,
    HeadwaterError,
    ParameterError,
    SchemaMismatchError,
    TypeMismatchError,
)
from headwater.ops.training.features import Features, agreed_widths

MIXED = pa.table(
    {
        "small": pa.array([1, -2, 3], pa.int8()),
        "flag": [True, False, True],
        "half": pa.array(np.array([0.5, 1.5, 2.5], np.float16)),
        "price": pa.array([Decimal("1.25"), Decimal("-0.50"), Decimal("3.75")], pa.decimal128(9, 2)),
        "list": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int32())),
        "large": pa.array([[0.5], [1.5], [2.5]], pa.large_list(pa.float64())),
        "fixed": pa.array([[1, 0, 1]] * 3, pa.list_(pa.uint8(), 3)),
        "label": pa.array([0, 1, 1], pa.int64()),
        "count": [1.0, 0.0, 2.5],
        "name": ["a", "b", "c"],
    }
)
NUMERIC = ("small", "flag", "half", "price", "list", "large", "fixed")


def of(**columns: Any) -> pa.Table:
    return pa.table(columns)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_kinds_of_numbers_are_stacked_in_the_order_of_the_names(dtype: str) -> None:
    features = Features(NUMERIC, "label", "count", dtype=dtype).resolved(MIXED.schema)
    arrays = features.to_arrays(MIXED)
    frame = MIXED.to_pandas()
    expected = np.column_stack(
        [
            np.stack(frame[name])
            if frame[name].dtype == object and name != "price"
            else frame[name].astype(float)
            for name in NUMERIC
        ]
    )
    assert arrays.keys() == {"x", "y", "weight"}
    assert all(array.dtype == dtype and array.flags.c_contiguous for array in arrays.values())
    np.testing.assert_array_equal(arrays["x"], expected.astype(dtype))
    assert arrays["y"].tolist() == [0, 1, 1]
    assert arrays["weight"].tolist() == [1, 0, 2.5]
    widths = features.widths(MIXED)
    assert widths == {"list": 2, "large": 1, "fixed": 3}
    layout = features.layout(MIXED.schema, widths)
    assert layout == {"x": ((10,), dtype), "y": ((), dtype), "weight": ((), dtype)}
    names = features.feature_names(MIXED.schema, widths)
    assert names[3:7] == ("price", "list[0]", "list[1]", "large[0]")
    assert len(names) == 10


@pytest.mark.parametrize("rows", [1, 4095, 4096, 10_000])
def test_many_rows_in_several_chunks_as_pandas_does_it(rows: int) -> None:
    rng = np.random.default_rng(rows)
    frame = {f"c{i}": rng.normal(size=rows) for i in range(7)}
    vectors = rng.normal(size=(rows, 3))
    table = of(**frame, v=pa.array(list(vectors)))
    cut = rows // 3
    table = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    x = Features().to_arrays(table)["x"]
    expected = np.column_stack([*frame.values(), vectors]).astype(np.float32)
    np.testing.assert_array_equal(x, expected)


def test_slices_of_lists_are_read_from_where_they_begin() -> None:
    for type in (pa.list_(pa.int64()), pa.list_(pa.int64(), 2)):
        table = of(v=pa.array([[1, 2], [3, 4], [5, 6]], type)).slice(1, 2)
        assert Features().to_arrays(table)["x"].tolist() == [[3, 4], [5, 6]]


def test_declared_columns_are_arrays_of_their_own_with_their_types() -> None:
    features = Features(columns=("small", "flag", "fixed", "large"), target="label").resolved(MIXED.schema)
    arrays = features.to_arrays(MIXED)
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        "small": ((3,), "int8"),
        "flag": ((3,), "bool"),
        "fixed": ((3, 3), "uint8"),
        "large": ((3, 1), "float32"),
        "y": ((3,), "float32"),
    }
    widths = features.widths(MIXED)
    layout = features.layout(MIXED.schema, widths)
    assert layout == {name: (a.shape[1:], str(a.dtype)) for name, a in arrays.items()}
    assert features.required == ("small", "flag", "fixed", "large", "label")


def test_features_are_all_that_nothing_else_names() -> None:
    table = of(a=[1], b=[2], label=[0], w=[1])
    features = Features(target="label", weight="w").resolved(table.schema)
    assert features.names == ("a", "b")
    assert features.required == ("a", "b", "label", "w")
    features.inputs().check(of(a=[1], b=[2]).schema)


def test_a_table_without_rows_gives_arrays_without_rows() -> None:
    arrays = Features(target="label").to_arrays(of(a=[1.0], v=[[1, 2]], label=[0]).slice(0, 0), {"v": 2})
    assert (arrays["x"].shape, arrays["y"].shape) == ((0, 3), (0,))
    unknown = Features().to_arrays(of(v=pa.array([], pa.list_(pa.int64()))))
    assert unknown["x"].shape == (0, 0)


@pytest.mark.parametrize(
    ("features", "error", "said"),
    [
        (
            Features(("smal",)),
            ColumnNotFoundError,
            "train(features='smal'): there is no column 'smal'. Did you",
        ),
        (Features(("small",), "lable"), ColumnNotFoundError, "train(target='lable'): there is no column"),
        (Features(("small",), weight="cuont"), ColumnNotFoundError, "mean 'count'"),
        (Features(columns=("user",)), ColumnNotFoundError, "train(columns='user')"),
        (Features(("name",)), TypeMismatchError, "'name' is string, and a feature is a number or a vector"),
        (Features(("name",)), TypeMismatchError, "hw.prep.OneHot('name') or hw.prep.Ordinal('name')"),
        (Features(target="label"), TypeMismatchError, "or name the columns to use with features=["),
        (
            Features(("small",), "name"),
            TypeMismatchError,
            "Number its classes first with hw.prep.Ordinal('name')",
        ),
        (Features(("small",), "list"), TypeMismatchError, "a target is a number"),
        (Features(("small",), weight="name"), TypeMismatchError, "a weight is a number"),
        (
            Features(("small", "label"), "label"),
            ParameterError,
            "among the features too. Write features=['small']",
        ),
        (Features(("small", "count"), weight="count"), ParameterError, "train(weight='count'): it is among"),
        (Features(("small",), "label", "label"), ParameterError, "one column can't be both"),
        (Features(("small", "flag", "small")), ParameterError, "'small' is named twice"),
        (Features(()), ParameterError, "no feature is left"),
        (Features(("small",), dtype="float23"), ParameterError, "Did you mean 'float32'"),
    ],
)
def test_what_cannot_be_is_said_at_declaration(features: Features, error: type, said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        features.check(MIXED.schema)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([datetime(2024, 1, 1)], "Take numbers out of it first, as col('bad').dt.hour()"),
        ([{"a": 1}], "Select its fields as columns first"),
        ([None], "It has no values at all"),
        ([["a"]], "Turn it into numbers first"),
        ([[[1]]], "Turn it into numbers first"),
    ],
)
def test_each_type_that_cannot_be_a_feature_has_its_advice(values: list, said: str) -> None:
    with pytest.raises(TypeMismatchError, match=re.escape(said)):
        Features(("bad",)).check(of(bad=values).schema)


def test_nothing_is_left_where_the_target_is_the_only_column() -> None:
    with pytest.raises(ParameterError, match="no feature is left"):
        Features(target="y").resolved(of(y=[1]).schema)


def test_a_column_named_as_the_targets_array_is_refused() -> None:
    with pytest.raises(ParameterError, match="the array 'y' is the target"):
        Features(columns=("y",), target="t").check(of(y=[1], t=[1]).schema)


NAN = float("nan")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"a": [1.0, None]},
            "row 11 of the feature 'a' is null, and arithmetic needs a value. Fill it, as with ",
        ),
        (
            {"a": [1.0, None]},
            "hw.prep.Impute('a'), or leave such rows out with filter(col('a').is_not_null())",
        ),
        ({"a": [1.0, NAN]}, "row 11 of the feature 'a' is NaN"),
        ({"a": [1.0, NAN]}, "filter(~col('a').is_nan())"),
        (
            {"a": [1, 2], "y": [None, 1.0]},
            "train(target='y'): row 10 is null. Leave such rows out with filter(",
        ),
        ({"a": [1, 2], "w": [None, 1.0]}, "train(weight='w'): row 10 is null"),
        ({"a": [1, 2], "w": [1.0, -1.5]}, "row 11 has the weight -1.5, and weights are 0 or more"),
        ({"a": [[1, 2], None]}, "row 11 of the feature 'a' is null"),
        ({"a": [[1, 2], [3, None]]}, "row 11 of the feature 'a[1]' is null"),
        ({"a": [[1.0, 2.0], [NAN, 4.0]]}, "row 11 of the feature 'a[0]' is NaN"),
        ({"a": [[1, 2], [3]]}, "the vectors of 'a' are 2 long, and that of row 11 is 1 long"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(columns: dict[str, list], said: str) -> None:
    table = of(**columns)
    features = Features(("a",), "y" if "y" in columns else None, "w" if "w" in columns else None)
    with pytest.raises(HeadwaterError, match=re.escape(said)):
        features.to_arrays(table, first_row=10)


def test_tables_whose_vectors_differ_in_length_are_refused() -> None:
    for type in (pa.list_(pa.int64()), pa.list_(pa.int64(), 2)):
        with pytest.raises(HeadwaterError, match="'v' are 3 long, and that of row 7 is 2 long"):
            Features().to_arrays(of(v=pa.array([[1, 2]], type)), {"v": 3}, 7)
    with pytest.raises(SchemaMismatchError, match="3 long in part 0 of the rows, and 2 long in part 2"):
        agreed_widths({0: {"v": 3}, 1: {}, 2: {"v": 2}})


def test_nan_passes_where_it_is_allowed_and_infinity_always() -> None:
    table = of(a=[1.0, NAN, float("inf"), -float("inf")])
    assert np.isnan(Features(allow_nan=True).to_arrays(table)["x"][1, 0])
    without = of(a=[1.0, float("inf"), -float("inf")])
    assert Features().to_arrays(without)["x"].ravel().tolist() == [1.0, np.inf, -np.inf]


def test_a_layout_needs_the_width_of_every_vector() -> None:
    with pytest.raises(ParameterError, match="how long the vectors of 'v' are isn't known"):
        Features(("v",)).layout(pa.schema([("v", pa.list_(pa.float32()))]), {})
