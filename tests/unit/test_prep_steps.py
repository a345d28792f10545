"""Preparation steps against scikit-learn, fitted by the plan they declare, run here by pandas."""

import datetime as dt
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)

from headwater.errors import ColumnNotFoundError, HeadwaterError, ParameterError, TypeMismatchError
from headwater.ops.aggregations import AGGREGATIONS
from headwater.ops.grouping import Groups
from headwater.ops.prep import Bucketize, Impute, MinMax, OneHot, Ordinal, RobustScale, Standardize
from headwater.ops.prep.fit import COUNTS, CountValues, state_schema

RNG = np.random.default_rng(0)
NAN = float("nan")


def state_of(step, table):
    """The state of a step, by pandas; quantiles are our own."""
    if step.counted():
        counts = CountValues(step.counted())(table).to_pandas()
        counts = counts.groupby(["column", "kind", "value"], as_index=False)["count"].sum()
        return pa.Table.from_pandas(counts, schema=COUNTS, preserve_index=False)
    row = {}
    for a in step.statistics():
        values = pd.Series(
            [None if v is None else float(v) for v in table[a.column].to_pylist()], dtype=float
        )
        if a.function == "approx_quantile":
            record, known = AGGREGATIONS[a.function], pa.array(values.dropna(), pa.float64())
            state = record.partial(Groups(np.zeros(len(known), int), 1), known, dict(a.options))
            value = record.finish(state, dict(a.options))[0].as_py()
        else:
            value = getattr(values, a.function)(**dict(a.options))
        row[a.name] = None if pd.isna(value) else value
    return pa.Table.from_pylist([row] if row else [], schema=state_schema(step))


def prepared(step, train, test=None):
    test = train if test is None else test
    result = step.apply(test, step.prepare(state_of(step, train)))
    assert result.schema == step.output_schema(test.schema)
    result.validate(full=True)
    return result


def numbers(table, name):
    return np.array([NAN if v is None else v for v in table[name].to_pylist()], dtype=float)


COLUMNS = {
    "plain": pa.array(RNG.normal(5, 3, 200)),
    "missing": pa.array(RNG.normal(size=200), mask=RNG.random(200) < 0.2),
    "with NaN": pa.array(np.where(RNG.random(200) < 0.2, NAN, RNG.normal(size=200))),
    "integers": pa.array(RNG.integers(-50, 50, 200), pa.int16()),
    "constant": pa.array(np.full(200, 0.1)),
    "one row": pa.array([7.0]),
    "booleans": pa.array(RNG.random(200) < 0.3),
    "decimals": pa.array([Decimal(int(v)) / 4 for v in RNG.integers(0, 99, 50)], pa.decimal128(9, 2)),
    "large": pa.array([2**60, 2**60 + 2**20, 2**61]),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize(
    ("step", "oracle"),
    [
        (Standardize("x"), StandardScaler()),
        (Standardize("x", with_mean=False), StandardScaler(with_mean=False)),
        (Standardize("x", with_std=False), StandardScaler(with_std=False)),
        (MinMax("x"), MinMaxScaler()),
        (MinMax("x", range=(-2, 3)), MinMaxScaler((-2, 3))),
        (MinMax("x", clip=True), MinMaxScaler(clip=True)),
    ],
    ids=str,
)
def test_scaling_is_scikit_learns(name, step, oracle):
    table = pa.table({"x": COLUMNS[name]})
    half = table[: (len(table) + 1) // 2]
    expected = oracle.fit(numbers(half, "x")[:, None]).transform(numbers(table, "x")[:, None])[:, 0]
    result = prepared(step, half, table)
    np.testing.assert_allclose(numbers(result, "x"), expected, rtol=1e-9, atol=1e-12)
    assert result["x"].null_count == table["x"].null_count


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("quantiles", [(0.25, 0.75), (0.0, 0.9)])
def test_robust_scaling_is_scikit_learns_but_for_the_accuracy_of_quantiles(name, quantiles):
    table = pa.table({"x": COLUMNS[name]})
    values = numbers(table, "x")
    known = np.sort(values[~np.isnan(values)])
    step = RobustScale("x", quantiles=quantiles)
    result = numbers(prepared(step, table), "x")
    low, middle, high = np.quantile(known, [quantiles[0], 0.5, quantiles[1]], method="lower")
    width = (high - low) or 1.0
    slack = 0.002 * np.abs(known).max() / width * (1 + np.abs(values - middle) / width) + 1e-12
    assert (np.abs(result - (values - middle) / width) <= slack)[~np.isnan(values)].all()
    assert np.isnan(result).tolist() == np.isnan(values).tolist()
    oracle = RobustScaler(quantile_range=(100 * quantiles[0], 100 * quantiles[1]))
    if low == high:
        np.testing.assert_allclose(result, oracle.fit_transform(values[:, None])[:, 0], atol=1e-12)


def test_standardize_by_the_samples_deviation():
    table = pa.table({"x": [1.0, 2.0, 4.0]})
    x = np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(
        numbers(prepared(Standardize("x", ddof=1), table), "x"), (x - x.mean()) / x.std(ddof=1)
    )


def test_floats_keep_their_width_and_other_columns_stay():
    table = pa.table({"a": ["u", "v"], "x": pa.array([1.0, 3.0], pa.float32()), "y": [1, 2]})
    result = prepared(Standardize("x"), table)
    assert result.schema.field("x").type == pa.float32()
    assert result.select(["a", "y"]).equals(table.select(["a", "y"]))


@pytest.mark.parametrize("name", ["missing", "with NaN", "plain", "integers"])
@pytest.mark.parametrize(
    ("options", "oracle"),
    [
        ({"strategy": "mean"}, SimpleImputer()),
        ({"strategy": "most_frequent"}, SimpleImputer(strategy="most_frequent")),
        (
            {"strategy": "constant", "fill_value": -3},
            SimpleImputer(strategy="constant", fill_value=-3.0),
        ),
    ],
    ids=["mean", "most_frequent", "constant"],
)
def test_impute_is_scikit_learns(name, options, oracle):
    column = COLUMNS[name]
    if pa.types.is_floating(column.type) and options["strategy"] == "most_frequent":
        rounded = np.round(column.to_numpy(zero_copy_only=False), 1)
        column = pa.array(rounded, from_pandas=name == "missing")
    table = pa.table({"x": column})
    expected = oracle.fit_transform(numbers(table, "x")[:, None])[:, 0]
    result = prepared(Impute("x", **options), table)
    np.testing.assert_allclose(numbers(result, "x"), expected, rtol=1e-12)
    assert result["x"].null_count == 0


@pytest.mark.parametrize("name", ["missing", "with NaN", "integers", "decimals", "booleans"])
def test_impute_by_the_median(name):
    column = pa.concat_arrays([COLUMNS[name].slice(0, 41), pa.nulls(3, COLUMNS[name].type)])
    table = pa.table({"x": column})
    values = numbers(table, "x")
    result = numbers(prepared(Impute("x", strategy="median"), table), "x")
    absent = np.isnan(values)
    median = np.quantile(values[~absent], 0.5, method="lower")
    np.testing.assert_allclose(result[absent], median, rtol=0.001)
    assert (result[~absent] == values[~absent]).all()


@pytest.mark.parametrize(
    ("values", "type", "filled"),
    [
        (["b", None, "a", "b"], pa.string(), "b"),
        (["b", None, "a"], pa.string(), "a"),  # of equally frequent ones the smallest
        ([10, 9, None], pa.int32(), 9),
        ([Decimal("1.5"), None, Decimal("1.50")], pa.decimal128(9, 2), Decimal("1.50")),
        ([dt.date(2026, 1, 1), None], pa.date32(), dt.date(2026, 1, 1)),
        ([True, None, True, False], pa.bool_(), True),
    ],
)
def test_impute_by_the_most_frequent_of_any_type(values, type, filled):
    table = pa.table({"x": pa.array(values, type)})
    result = prepared(Impute("x", strategy="most_frequent", indicator=True), table)
    assert result["x"].to_pylist() == [filled if v is None else v for v in values]
    assert result["x_missing"].to_pylist() == [v is None for v in values]


def test_impute_constants_by_column():
    table = pa.table({"x": [1, None], "s": [None, "b"], "l": pa.array([None, [1]], pa.list_(pa.int64()))})
    step = Impute("x", "s", strategy="constant", fill_value={"x": 0, "s": "?"})
    assert prepared(step, table).to_pydict() == {"x": [1, 0], "s": ["?", "b"], "l": [None, [1]]}


CATEGORIES = {
    "strings": pa.array(RNG.choice(["Queens", "Bronx", "", "ü", "Zoo"], 100)),
    "integers": pa.array(RNG.choice([10, 9, -1], 100)),
    "booleans": pa.array(RNG.random(100) < 0.5),
    "floats": pa.array(RNG.choice([0.1, 1e20, -2.5], 100)),
    "dates": pa.array(RNG.choice([dt.date(2026, 1, 2), dt.date(1969, 12, 31)], 100)),
}


@pytest.mark.parametrize("name", CATEGORIES)
@pytest.mark.parametrize("drop_first", [False, True])
def test_one_hot_is_scikit_learns(name, drop_first):
    table = pa.table({"x": CATEGORIES[name]})
    oracle = OneHotEncoder(drop="first" if drop_first else None, sparse_output=False)
    expected = oracle.fit_transform(np.array(table["x"].to_pylist(), dtype=object)[:, None])
    result = prepared(OneHot("x", drop_first=drop_first), table)
    assert result.schema.field("x").type == pa.list_(pa.float32())
    np.testing.assert_array_equal(np.array(result["x"].to_pylist()), expected)


@pytest.mark.parametrize("name", CATEGORIES)
def test_ordinal_is_scikit_learns(name):
    table = pa.table({"x": CATEGORIES[name]})
    expected = OrdinalEncoder().fit_transform(np.array(table["x"].to_pylist(), dtype=object)[:, None])[:, 0]
    np.testing.assert_array_equal(prepared(Ordinal("x"), table)["x"].to_numpy(), expected)


def test_declared_categories_name_their_columns():
    table = pa.table({"a": [1, 2, 3], "x": ["v", None, "w"], "b": [4, 5, 6]})
    step = OneHot("x", categories={"x": ["w", "v"]}, unseen="other", nulls="category", dtype="int8")
    result = prepared(step, table.set_column(1, "x", pa.array(["v", "new", None])))
    assert result.to_pydict() == {
        "a": [1, 2, 3],
        "x=w": [0, 0, 0],
        "x=v": [1, 0, 0],
        "x=other": [0, 1, 0],
        "x=null": [0, 0, 1],
        "b": [4, 5, 6],
    }


@pytest.mark.parametrize(
    ("unseen", "nulls", "expected"),
    [
        ("ignore", "ignore", [[1, 0], [0, 0], [0, 0]]),
        ("other", "ignore", [[1, 0, 0], [0, 0, 1], [0, 0, 0]]),
        ("ignore", "category", [[1, 0, 0], [0, 0, 0], [0, 0, 1]]),
        ("other", "category", [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
)
def test_one_hot_policies(unseen, nulls, expected):
    train, test = pa.table({"x": ["a", "b", None]}), pa.table({"x": ["a", "new", None]})
    assert prepared(OneHot("x", unseen=unseen, nulls=nulls), train, test)["x"].to_pylist() == expected


@pytest.mark.parametrize(
    ("unseen", "nulls", "expected"),
    [
        ("null", "keep", [0, None, None]),
        ("other", "keep", [0, 2, None]),
        ("null", "category", [0, None, 2]),
        ("other", "category", [0, 2, 3]),
    ],
)
def test_ordinal_policies(unseen, nulls, expected):
    train, test = pa.table({"x": [1.5, 2.5, None]}), pa.table({"x": [1.5, 9.0, NAN]})
    assert prepared(Ordinal("x", unseen=unseen, nulls=nulls), train, test)["x"].to_pylist() == expected


@pytest.mark.parametrize("bins", [1, 2, 7])
@pytest.mark.parametrize("name", ["plain", "integers", "large"])
def test_bins_are_scikit_learns(name, bins):
    table = pa.table({"x": COLUMNS[name]})
    half = table[: (len(table) + 1) // 2]
    if bins == 1:
        expected = np.zeros(len(table))
    else:
        oracle = KBinsDiscretizer(bins, encode="ordinal", strategy="uniform", subsample=None)
        expected = oracle.fit(numbers(half, "x")[:, None]).transform(numbers(table, "x")[:, None])[:, 0]
    np.testing.assert_array_equal(prepared(Bucketize("x", bins=bins), half, table)["x"].to_numpy(), expected)


@pytest.mark.parametrize("bins", [1, 2, 5])
def test_bins_by_quantiles_have_as_many_rows_each(bins):
    table = pa.table({"x": np.random.default_rng(3).lognormal(0, 2, 5000)})
    found = prepared(Bucketize("x", bins=bins, strategy="quantile"), table)["x"].to_numpy()
    np.testing.assert_allclose(np.bincount(found, minlength=bins), 5000 / bins, rtol=0.02)
    few = pa.table({"x": [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 9.0]})
    oracle = KBinsDiscretizer(4, encode="ordinal", strategy="quantile", quantile_method="linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bins that are too narrow
        expected = oracle.fit_transform(numbers(few, "x")[:, None])[:, 0]
    step = Bucketize("x", bins=4, strategy="quantile", nulls="category", labels=list("abcdn"))
    more = pa.concat_tables([few, pa.table({"x": pa.array([None, 0.0, 99.0], pa.float64())})])
    places = [*expected.astype(int), 4, 0, int(expected.max())]
    assert prepared(step, few, more)["x"].to_pylist() == ["abcdn"[place] for place in places]


def test_boundaries_are_those_of_digitize():
    table = pa.table({"x": [-5.0, 0.0, 0.5, 1.0, 7.0, float("inf"), None, NAN]})
    result = prepared(Bucketize("x", boundaries=[0, 1]), table)["x"]
    assert result.to_pylist() == [*np.digitize(table["x"].to_numpy()[:6], [0, 1]), None, None]
    labels = ["low", "mid", "high", "none"]
    result = prepared(Bucketize("x", boundaries=[0, 1], labels=labels, nulls="category"), table)["x"]
    assert result.to_pylist() == ["low", "mid", "mid", "high", "high", "high", "none", "none"]


def test_a_range_of_one_value_is_one_bucket():
    table = pa.table({"x": [3.0, 3.0]})
    assert prepared(Bucketize("x", bins=4), table)["x"].to_pylist() == [0, 0]


EVERY = [
    Standardize("x"),
    MinMax("x"),
    Impute("x"),
    Impute("x", strategy="most_frequent"),
    Impute("x", strategy="median"),
    RobustScale("x"),
    Bucketize("x", bins=3, strategy="quantile"),
    OneHot("x", nulls="ignore"),
    OneHot("x", categories={"x": [1.0]}, unseen="ignore", nulls="ignore"),
    Ordinal("x"),
    Bucketize("x", bins=3),
    Bucketize("x", boundaries=[1]),
]


@pytest.mark.parametrize("step", EVERY, ids=str)
def test_no_rows_and_only_nulls(step):
    empty = pa.table({"x": pa.array([], pa.float64())})
    assert prepared(step, empty).num_rows == 0
    nulls = pa.table({"x": pa.array([None, None], pa.float64())})
    if not isinstance(step, Impute):
        assert prepared(step, nulls).num_rows == 2


@pytest.mark.parametrize("step", EVERY, ids=str)
def test_the_cut_of_the_rows_doesnt_count(step):
    table = pa.table({"x": pa.array([1.0, None, 2.5, 1.0, 7.0, NAN])})
    cut = pa.concat_tables([table[:1], table[1:1], table[1:4], table[4:]])
    assert repr(prepared(step, table).to_pylist()) == repr(prepared(step, cut).to_pylist())


STRINGS = pa.table({"x": ["a", "b"]})


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Standardize("x"), r"Standardize\('x'\): the column 'x' is string, .* numbers. Cast .* OneHot"),
        (MinMax("x"), "takes numbers"),
        (Impute("x"), "strategy='most_frequent'"),
        (Impute("x", strategy="constant", fill_value=3), "can't hold 3"),
        (Bucketize("x", bins=2), "takes numbers"),
        (OneHot("x", categories={"x": [1, 2]}), r"categories \[1, 2\] aren't"),
    ],
    ids=str,
)
def test_wrong_types_are_named_at_declaration(step, message):
    with pytest.raises(TypeMismatchError, match=message):
        step.output_schema(STRINGS.schema)


def test_unknown_columns_are_named_with_near_ones():
    with pytest.raises(ColumnNotFoundError, match=r"Standardize\('fair'\).*Did you mean 'fare'"):
        Standardize("fair").output_schema(pa.schema([("fare", pa.int8())]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Standardize(), "give the names of columns"),
        (lambda: Standardize(["x"]), "give the names of columns"),
        (lambda: Standardize("x", "x"), "named twice"),
        (lambda: Standardize("x", ddof=-1), "ddof"),
        (lambda: Standardize("x", nulls="kep"), "Did you mean 'keep'"),
        (lambda: MinMax("x", range=(1, 1)), "low below high"),
        (lambda: Impute("x", strategy="middle"), "median"),
        (lambda: RobustScale("x", quantiles=(0.5, 0.5)), "two ascending numbers"),
        (lambda: RobustScale("x", quantiles=(0.5, 75)), "two ascending numbers"),
        (lambda: Bucketize("x", bins=2, strategy="even"), "uniform"),
        (lambda: Impute("x", strategy="constant"), "fill_value go together"),
        (lambda: Impute("x", fill_value=1), "fill_value go together"),
        (lambda: Impute("x", strategy="constant", fill_value={"y": 1}), "lacks 'x'"),
        (lambda: OneHot("x", unseen="null"), "Valid: 'error', 'ignore', 'other'"),
        (lambda: OneHot("x", categories=["a"]), "give a dict"),
        (lambda: OneHot("x", categories={"x": ["a", "a"]}), "values that differ"),
        (lambda: Bucketize("x"), "either boundaries"),
        (lambda: Bucketize("x", boundaries=[1], bins=2), "either boundaries"),
        (lambda: Bucketize("x", boundaries=[2, 1]), "ascending"),
        (lambda: Bucketize("x", boundaries=[1], labels=["a"]), "1 labels for 2 buckets"),
    ],
)
def test_wrong_options_are_named(make, message):
    with pytest.raises(ParameterError, match=message):
        make()


@pytest.mark.parametrize(
    ("step", "train", "test", "message"),
    [
        (OneHot("x"), ["a", "b"], ["a", "z"], r"OneHot\('x'\): the value 'z' of 'x' .*'a', 'b'.*1 of 2 rows"),
        (Ordinal("x"), ["a"], ["z"], "unseen='null'"),
        (OneHot("x"), ["a"], ["a", None], r"1 of 2 rows have no value in 'x'.*nulls='category'"),
        (Ordinal("x", nulls="error"), [1.0], [NAN], "no value in 'x'"),
        (Standardize("x", nulls="error"), [1.0, 2.0], [None, 1.0], "Impute it first"),
        (Bucketize("x", bins=2, nulls="error"), [1.0, 2.0], [None, 1.0], "Impute it first"),
        (Standardize("x"), [None], [1.0], "there is no scale"),
        (Bucketize("x", bins=2), [None], [1.0], "no range to cut"),
        (Impute("x"), [None], [None], "none to fill in"),
        (Ordinal("x"), ["1", "2"], [1, 2], r"fitted on 'x' as string.*int64. Cast it"),
    ],
)
def test_values_a_policy_refuses(step, train, test, message):
    def column(values):
        return pa.array(values, pa.float64() if values[0] is None or isinstance(values[0], float) else None)

    with pytest.raises(HeadwaterError, match=message):
        prepared(step, pa.table({"x": column(train)}), pa.table({"x": column(test)}))
