"""Metrics against scikit-learn, over many partitions and in groups; what isn't defined, and what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics as sk

import headwater as hw
from headwater import HeadwaterError, col
from headwater.datasets import table_source
from headwater.errors import ColumnNotFoundError, ParameterError, TypeMismatchError
from headwater.ops.scan import Scan

m = hw.metrics


def dataset(table, partitions=7):
    return hw.Dataset(Scan(table_source(table, partitions=partitions)))


def rows(count=5000, seed=0, digits=None):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 2, count)
    score = 1 / (1 + np.exp(-(rng.normal(size=count) + target - 0.5)))
    if digits is not None:
        score = score.round(digits)
    value = rng.normal(10, 3, count)
    return pa.table(
        {
            "target": target,
            "score": score,
            "label": (score > 0.5).astype(np.int64),
            "value": value,
            "guess": value + rng.normal(size=count),
            "group": pa.array(rng.integers(0, 20, count)).cast(pa.string()),
        }
    )


@pytest.fixture(scope="module")
def session():
    return hw.Session("inline")


EVERY = {
    "auc": (lambda: m.auc("target", "score"), lambda t: sk.roc_auc_score(t["target"], t["score"])),
    "log_loss": (lambda: m.log_loss("target", "score"), lambda t: sk.log_loss(t["target"], t["score"])),
    "brier": (lambda: m.brier("target", "score"), lambda t: sk.brier_score_loss(t["target"], t["score"])),
    "accuracy": (lambda: m.accuracy("target", "label"), lambda t: sk.accuracy_score(t["target"], t["label"])),
    "precision": (
        lambda: m.precision("target", "label"),
        lambda t: sk.precision_score(t["target"], t["label"]),
    ),
    "recall": (lambda: m.recall("target", "label"), lambda t: sk.recall_score(t["target"], t["label"])),
    "f1": (lambda: m.f1("target", "label"), lambda t: sk.f1_score(t["target"], t["label"])),
    "rmse": (lambda: m.rmse("value", "guess"), lambda t: sk.root_mean_squared_error(t["value"], t["guess"])),
    "mae": (lambda: m.mae("value", "guess"), lambda t: sk.mean_absolute_error(t["value"], t["guess"])),
    "r2": (lambda: m.r2("value", "guess"), lambda t: sk.r2_score(t["value"], t["guess"])),
}


@pytest.mark.parametrize("digits", [None, 2, 0], ids=["distinct", "ties", "two values"])
def test_all_rows(session, digits):
    table = rows(digits=digits)
    columns = {name: table.column(name).to_numpy() for name in table.column_names if name != "group"}
    found = dataset(table).agg(**{name: metric() for name, (metric, _) in EVERY.items()}).compute(session)
    for name, (_, reference) in EVERY.items():
        assert found.column(name)[0].as_py() == pytest.approx(reference(columns), rel=1e-12), name


def test_groups(session):
    table = rows(digits=2)
    frame = table.to_pandas()
    aggregations = {name: metric() for name, (metric, _) in EVERY.items()}
    found = dataset(table).group_by("group").agg(**aggregations).compute(session).to_pylist()
    assert len(found) == 20
    for row in found:
        part = frame[frame.group == row["group"]]
        for name, (_, reference) in EVERY.items():
            assert row[name] == pytest.approx(reference(part), rel=1e-12), name


@pytest.mark.parametrize("digits", [None, 1])
def test_auc_has_the_same_bits_for_any_partitions(session, digits):
    table = rows(3000, digits=digits)
    found = {
        dataset(table, partitions).agg(m.auc("target", "score")).compute(session).column(0)[0].as_py()
        for partitions in (1, 2, 13)
    }
    assert len(found) == 1


def test_auc_of_all_scores_equal_is_a_half(session):
    ds = hw.from_arrow({"y": [0, 1, 1], "s": [0.3, 0.3, 0.3]})
    assert ds.agg(m.auc("y", "s")).compute(session).to_pydict() == {"auc": [0.5]}


def test_auc_takes_zeros_of_both_signs_as_ties(session):
    ds = hw.from_arrow({"y": [0, 1], "s": [0.0, -0.0]})
    assert ds.agg(m.auc("y", "s")).compute(session).to_pydict() == {"auc": [0.5]}


def test_types_of_targets_and_scores(session):
    ds = hw.from_arrow({"y": [True, False, True, False], "s": [3, 1, 2, 2]})
    kept = ds.with_columns(f=col("y").cast("float32"), h=col("s").cast("float32"))
    found = kept.agg(a=m.auc("y", "s"), b=m.auc("f", "h"), c=m.auc(col("s") > 1, -col("s")))
    assert found.compute(session).to_pylist() == [{"a": 0.875, "b": 0.875, "c": 0.0}]


def test_one_class_gives_null(session):
    ds = hw.from_arrow({"y": [1, 1, 0, 1], "s": [0.1, 0.2, 0.3, 0.4], "g": ["a", "a", "b", "b"]})
    found = ds.group_by("g").agg(m.auc("y", "s")).sort("g").compute(session)
    assert found.to_pydict() == {"g": ["a", "b"], "auc": [None, 1.0]}


def test_no_rows_give_null(session):
    ds = dataset(rows(10)).filter(col("value") < -1e9)
    found = ds.agg(**{name: metric() for name, (metric, _) in EVERY.items()}, rows=hw.count()).compute(
        session
    )
    assert found.to_pylist() == [{**dict.fromkeys(EVERY), "rows": 0}]


def test_nothing_predicted_positive(session):
    ds = hw.from_arrow({"y": [0, 1], "p": [0, 0]})
    found = ds.agg(m.precision("y", "p"), m.recall("y", "p"), m.f1("y", "p")).compute(session)
    assert found.to_pylist() == [{"precision": None, "recall": 0.0, "f1": 0.0}]


def test_labels_of_any_kind(session):
    truth, guess = ["a", "b", "b", "c"], ["a", "b", "c", "c"]
    ds = hw.from_arrow({"y": truth, "p": guess, "n": [1, 2, 2, 3], "q": [1, 2, 3, 3]})
    found = ds.agg(
        m.accuracy("y", "p"),
        m.precision("y", "p", positive="c"),
        m.recall("n", "q", positive=2),
        m.f1(col("y") == "b", col("p") == "b"),
    )
    expected = {
        "accuracy": 0.75,
        "precision": sk.precision_score(truth, guess, labels=["c"], average="macro"),
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
    }
    assert found.compute(session).to_pylist() == [expected]


def test_log_loss_of_several_classes(session):
    rng = np.random.default_rng(1)
    odds = rng.dirichlet(np.ones(4), 200)
    target = rng.integers(0, 4, 200)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(odds.ravel()), 4)
    for scores in (lists, lists.cast(pa.list_(pa.float64()))):
        found = dataset(pa.table({"y": target, "s": scores})).agg(m.log_loss("y", "s")).compute(session)
        assert found.column(0)[0].as_py() == pytest.approx(sk.log_loss(target, odds), rel=1e-12)


def test_log_loss_of_certain_mistakes_is_finite(session):
    ds = hw.from_arrow({"y": [1, 0], "s": [0.0, 1.0]})
    found = ds.agg(m.log_loss("y", "s")).compute(session).column(0)[0].as_py()
    assert found == pytest.approx(sk.log_loss([1, 0], [0.0, 1.0]))


def test_r2_of_a_constant_target(session):
    ds = hw.from_arrow({"y": [2.0, 2.0], "p": [2.0, 2.0], "q": [2.0, 3.0]})
    assert ds.agg(a=m.r2("y", "p"), b=m.r2("y", "q")).compute(session).to_pylist() == [{"a": 1.0, "b": 0.0}]
    assert ds.limit(1).agg(m.r2("y", "p")).compute(session).to_pylist() == [{"r2": None}]


def test_metrics_are_expressions(session):
    ds = hw.from_arrow({"y": [0, 1, 1, 0], "s": [0.1, 0.8, 0.4, 0.4]})
    found = ds.agg(gini=2 * m.auc("y", "s") - 1, rows=hw.count()).compute(session)
    assert found.to_pydict() == {"gini": [0.75], "rows": [4]}


@pytest.mark.parametrize(
    ("target", "score", "metric", "says"),
    [
        ([0, 2], [0.1, 0.2], m.auc, "0 or 1, or a boolean, and has 2"),
        ([0, None], [0.1, 0.2], m.auc, "have no target"),
        ([0, 1], [0.1, None], m.auc, "1 of 2 rows in a batch have no score"),
        ([0, 1], [0.1, float("nan")], m.auc, "have no score"),
        ([0, 1], [0.1, 1.5], m.log_loss, "probability, 0 to 1, and has 1.5"),
        ([0, 3], [0.1, 0.5], m.brier, "0 or 1"),
        ([0, 3], [[0.1, 0.9], [0.5, 0.5]], m.log_loss, "number of a class, 0 to 1"),
        ([0, 1], [1, 3], m.precision, "positive=2"),
        ([0.0, None], [1.0, 3.0], m.rmse, "have no target"),
        ([0, 1], [None, 1], m.accuracy, "have no prediction"),
    ],
)
def test_what_is_refused(session, target, score, metric, says):
    ds = hw.from_arrow({"y": target, "s": score})
    with pytest.raises(HeadwaterError, match=says):
        ds.agg(metric("y", "s")).compute(session)


def test_mistakes_are_named_at_declaration():
    ds = hw.from_arrow({"y": [0, 1], "s": [0.1, 0.2], "t": ["a", "b"]})
    with pytest.raises(ColumnNotFoundError, match="scoer"):
        ds.agg(m.auc("y", "scoer"))
    with pytest.raises(TypeMismatchError, match="string"):
        ds.agg(m.auc("t", "s"))
    with pytest.raises(TypeMismatchError, match="string"):
        ds.agg(m.rmse("s", "t"))
    with pytest.raises(TypeMismatchError, match="string"):
        ds.agg(m.accuracy("y", "t"))
    with pytest.raises(TypeMismatchError, match="column names or expressions"):
        m.auc("y", 3)
    with pytest.raises(ParameterError, match="aggregation already"):
        m.auc("y", col("s").mean())
