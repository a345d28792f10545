"""Fitted chains as JSON: what is loaded is what was saved."""

import datetime as dt
import json
from decimal import Decimal

import pyarrow as pa
import pytest

from headwater.errors import CorruptFileError, SerializationError
from headwater.ops.prep import Bucketize, Impute, MinMax, OneHot, Ordinal, Standardize, dump, load_text
from headwater.ops.prep.fit import COUNTS, state_schema

STATISTICS = [0.1, 1e300, -5e-324, None, float("inf"), float("nan")]


def counts(*rows):
    return pa.Table.from_pylist([dict(zip(COUNTS.names, row)) for row in rows], schema=COUNTS)


def statistics_of(step, value):
    schema = state_schema(step)
    return pa.Table.from_pylist(
        [{f.name: 3 if f.type == pa.int64() else value for f in schema}], schema=schema
    )


@pytest.mark.parametrize("value", STATISTICS, ids=str)
@pytest.mark.parametrize(
    "step",
    [Standardize("x", "ü", ddof=1, nulls="error"), MinMax("x", range=(-1, 1)), Impute("x", indicator=True)],
    ids=str,
)
def test_statistics_survive_bit_by_bit(step, value):
    state = statistics_of(step, value)
    steps, states = load_text(dump([step], [state]))
    assert str(steps[0]) == str(step)
    assert repr(states[0].to_pylist()) == repr(state.to_pylist())
    assert states[0].schema == state.schema


@pytest.mark.parametrize(
    "step",
    [
        OneHot("x", "y", unseen="other", drop_first=True),
        Ordinal("x", "y", nulls="category"),
        Impute("x", "y", strategy="most_frequent"),
    ],
    ids=str,
)
def test_value_counts_survive_and_only_the_steps_own(step):
    mine = [("x", "string", 'a "quoted"\nline', 2), ("x", "string", "ü", 1), ("y", "integer", "10", 3)]
    shared = counts(("z", "string", "other step's", 9), *mine[::-1])
    steps, states = load_text(dump([step], [shared]))
    assert str(steps[0]) == str(step)
    assert states[0].equals(counts(*mine))


@pytest.mark.parametrize(
    "fill", [0, 0.5, "text", True, dt.date(2026, 1, 1), dt.datetime(2026, 1, 1, 2), Decimal("1.50")]
)
def test_options_of_any_plain_type_survive(fill):
    steps = [
        Impute("x", strategy="constant", fill_value=fill),
        Impute("x", strategy="constant", fill_value={"x": fill}),
        OneHot("x", categories={"x": [fill]}),
    ]
    loaded, _ = load_text(dump(steps, [state_schema(step).empty_table() for step in steps]))
    assert [step.options for step in loaded] == [step.options for step in steps]
    assert type(loaded[0].options["fill_value"]) is type(fill)


def test_the_text_is_readable_and_versioned():
    step = Bucketize("age", boundaries=[18, 65], labels=["child", "adult", "senior"])
    document = json.loads(dump([step], [state_schema(step).empty_table()]))
    assert document["format"] == "headwater.prep"
    assert document["version"] == 1
    assert document["steps"][0]["columns"] == ["age"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "FittedPrep.save"),
        ("[]", "isn't a fitted"),
        ("{}", "format"),
        ('{"format": "headwater.prep", "version": 2, "steps": []}', "version is 2.*reads version 1"),
        (
            '{"format": "headwater.prep", "version": 1, "steps": [{"step": "Sqrt", "columns": []}]}',
            "no step 'Sqrt'; there are Standardize",
        ),
        (
            '{"format": "headwater.prep", "version": 1, "steps": [{"step": "MinMax", "columns": ["x"], '
            '"options": {"clap": true}, "state": []}]}',
            "clap",
        ),
    ],
)
def test_what_isnt_a_fitted_chain_is_named(text, message):
    with pytest.raises(CorruptFileError, match=message):
        load_text(text)


def test_what_json_cant_hold_is_named():
    step = Impute("x", strategy="constant", fill_value=object())
    with pytest.raises(SerializationError, match="fill_value: <object"):
        dump([step], [state_schema(step).empty_table()])
