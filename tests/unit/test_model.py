"""Models: predictions that depend on the row alone; saved, loaded and served with the same bits; mistakes named."""

from __future__ import annotations

import json
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import headwater as hw
from headwater import HeadwaterError, Model, col
from headwater.datasets import table_source
from headwater.errors import (
    ColumnNotFoundError,
    CorruptFileError,
    ParameterError,
    SinkExistsError,
    SourceNotFoundError,
    TypeMismatchError,
    UserFunctionError,
)
from headwater.lineage.keys import canonical
from headwater.ops.objectives.als import ALS
from headwater.ops.objectives.factorization import FactorizationMachine
from headwater.ops.objectives.gmm import GaussianMixture
from headwater.ops.objectives.kmeans import KMeans
from headwater.ops.objectives.linear import LinearRegression, LogisticRegression, SoftmaxRegression
from headwater.ops.objectives.mlp import MLP
from headwater.ops.objectives.objective import Objective
from headwater.ops.objectives.pca import PCA
from headwater.ops.objectives.saved import describe_objective, restore_objective
from headwater.ops.scan import Scan
from headwater.ops.training.features import Features
from headwater.ops.training.model_table import encode_model

NAMES = tuple(f"x{i}" for i in range(9))


def dataset(table, partitions=1):
    return hw.Dataset(Scan(table_source(table, partitions=partitions)))


def make(objective, params, features=NAMES, prep=None, about=None, optimizer=None):
    table = encode_model(params, optimizer, [{"step": 0, "loss": 0.5}], {"steps": 1, **(about or {})})
    return Model(objective, Features(tuple(features), target="y"), Scan(table_source(table)), prep)


def softmax(classes=3, seed=0, **options):
    rng = np.random.default_rng(seed)
    params = {
        "weights": rng.normal(size=(len(NAMES), classes)).astype(np.float32),
        "intercept": rng.normal(size=classes).astype(np.float32),
    }
    return make(SoftmaxRegression(classes), params, **options)


def linear(weights, intercept=0.0, **options):
    params = {
        "weights": np.array(list(weights.values()), np.float32),
        "intercept": np.array(intercept, np.float32),
    }
    return make(LinearRegression(), params, tuple(weights), **options)


def rows(count=3000, seed=1):
    rng = np.random.default_rng(seed)
    return pa.table({"id": np.arange(count), **{name: rng.normal(size=count) for name in NAMES}})


@pytest.fixture(scope="module")
def session():
    return hw.Session("inline")


class Double(Objective):
    """A user's objective."""

    needs_target = False

    def __init__(self, factor=2.0, wrong=None):
        self.factor = factor
        self.wrong = wrong

    def predict(self, params, batch):
        x = batch["x"][:, 0] * self.factor
        answers = {
            None: {"prediction": x},
            "missing": {"other": x},
            "short": {"prediction": x[:3]},
            "text": {"prediction": x.astype("U")},
            "list": [x],
        }
        if self.wrong == "raise":
            raise ZeroDivisionError("by zero")
        return answers[self.wrong]


# -- predictions ---------------------------------------------------------------------------------------


def test_predictions_are_appended(session):
    model = linear({"a": 2.0, "b": -1.0}, 0.5)
    ds = hw.from_arrow({"id": [1, 2], "b": [1, 0], "a": [3.0, 4.0]})
    scored = ds.predict(model)
    assert scored.columns == ["id", "b", "a", "prediction"]
    assert scored.compute(session).column("prediction").to_pylist() == [5.5, 8.5]
    renamed = model.predict(ds, names={"prediction": "fare"})
    assert renamed.columns == ["id", "b", "a", "fare"]
    assert renamed.select("fare").compute(session).to_pydict() == {"fare": [5.5, 8.5]}


def test_every_output_of_an_objective(session):
    scored = dataset(rows(20)).predict(softmax(4)).compute(session)
    odds = np.array(scored.column("probabilities").to_pylist())
    assert odds.shape == (20, 4)
    assert np.allclose(odds.sum(axis=1), 1, atol=1e-5)
    assert scored.column("prediction").to_pylist() == odds.argmax(axis=1).tolist()


def test_a_row_has_the_same_bits_wherever_it_stands(session):
    table, model = rows(3000), softmax(2)
    columns = ["prediction", "probabilities"]
    whole = dataset(table).predict(model).select("id", *columns).compute(session)
    cut = dataset(table, 7).predict(model).select("id", *columns).compute(session)
    assert cut.equals(whole)
    order = np.random.default_rng(2).permutation(3000)
    turned = dataset(table.take(order)).predict(model).select("id", *columns).compute(session)
    assert turned.equals(whole.take(order))
    some = dataset(table).filter(col("id") % 7 == 0).predict(model).select("id", *columns).compute(session)
    assert some.equals(whole.take(np.arange(0, 3000, 7)))
    served = model.compute(session)
    for start, count in ((0, 1), (5, 2), (100, 33), (2000, 1000)):
        batch = served.predict_batch(table.slice(start, count)).select(["id", *columns])
        assert batch.equals(whole.slice(start, count))


def test_no_rows(session):
    scored = dataset(rows(10)).filter(col("x0") > 1e9).predict(softmax()).compute(session)
    assert scored.num_rows == 0
    assert scored.column_names[-2:] == [f.name for f in SoftmaxRegression(3).output()]


def test_columns_that_nobody_reads_are_not_computed(session):
    ds = hw.from_arrow({"a": [1.0], "unused": ["text"]}).predict(linear({"a": 2.0}))
    assert ds.select("prediction").compute(session).to_pydict() == {"prediction": [2.0]}


def test_nulls(session):
    table = pa.table({"a": [1.0, None, 3.0, float("nan")], "b": [1.0, 1.0, None, 1.0]})
    model = linear({"a": 2.0, "b": 1.0})
    with pytest.raises(HeadwaterError, match=r"3 of 4 rows .* first of them 'a'.*nulls='null'"):
        dataset(table).predict(model).compute(session)
    scored = dataset(table).predict(model, nulls="null").compute(session)
    assert scored.column("prediction").to_pylist() == [3.0, None, None, None]
    nothing = dataset(table.slice(1, 2)).predict(model, nulls="null").compute(session)
    assert nothing.column("prediction").to_pylist() == [None, None]


def test_nulls_in_vectors(session):
    vectors = pa.array([[1.0, 2.0], None, [3.0, None], [4.0, 5.0]], pa.list_(pa.float64()))
    model = make(LinearRegression(), {"weights": np.ones(2, np.float32), "intercept": np.float32(0)}, ("v",))
    scored = dataset(pa.table({"v": vectors})).predict(model, nulls="null").compute(session)
    assert scored.column("prediction").to_pylist() == [3.0, None, None, 9.0]


def test_metrics_of_predictions(session):
    model = make(
        LogisticRegression(), {"weights": np.ones(1, np.float32), "intercept": np.float32(0)}, ("a",)
    )
    ds = hw.from_arrow({"a": [-2.0, -1.0, 1.0, 2.0], "y": [0, 1, 0, 1]}).predict(model)
    score = LogisticRegression().output()[0].name
    names = [f.name for f in LogisticRegression().output()]
    assert score in names
    report = ds.agg(auc=hw.metrics.auc("y", "probability"), hit=hw.metrics.accuracy("y", "prediction"))
    assert report.compute(session).to_pylist() == [{"auc": 0.75, "hit": 0.5}]


def test_mistakes_are_named_at_declaration():
    model = linear({"a": 2.0})
    with pytest.raises(ColumnNotFoundError, match="'a'"):
        hw.from_arrow({"aa": [1.0]}).predict(model)
    with pytest.raises(TypeMismatchError, match="string"):
        hw.from_arrow({"a": ["x"]}).predict(model)
    clash = hw.from_arrow({"a": [1.0], "prediction": [1.0]})
    with pytest.raises(ParameterError, match=r"'prediction' twice.*names="):
        clash.predict(model)
    assert clash.predict(model, names={"prediction": "p"}).columns == ["a", "prediction", "p"]
    with pytest.raises(ParameterError, match="predicts no 'scoer'"):
        hw.from_arrow({"a": [1.0]}).predict(model, names={"scoer": "p"})
    with pytest.raises(ParameterError, match="nulls"):
        hw.from_arrow({"a": [1.0]}).predict(model, nulls="nul")
    with pytest.raises(TypeMismatchError, match=r"hw\.train"):
        hw.from_arrow({"a": [1.0]}).predict("model")
    with pytest.raises(TypeMismatchError, match="Dataset"):
        model.predict(pa.table({"a": [1.0]}))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("raise", "ZeroDivisionError: by zero"),
        ("missing", "there is 'prediction'"),
        ("short", r"shape \(3,\) for 1024 rows"),
        ("text", "says double"),
        ("list", "returned list"),
    ],
)
def test_what_a_users_objective_does_wrong(session, wrong, says):
    ds = hw.from_arrow({"a": [1.0]}).predict(make(Double(wrong=wrong), {}, ("a",)))
    with pytest.raises(UserFunctionError, match=says):
        ds.compute(session)


def test_another_model_or_policy_is_another_lineage():
    ds = hw.from_arrow({"a": [1.0, 2.0]})
    keys = {
        ds.predict(linear({"a": 2.0})).node.key,
        ds.predict(linear({"a": 3.0})).node.key,
        ds.predict(linear({"a": 2.0}), nulls="null").node.key,
        ds.predict(linear({"a": 2.0}), names={"prediction": "p"}).node.key,
        ds.predict(make(Double(), {}, ("a",))).node.key,
        ds.predict(make(Double(3.0), {}, ("a",))).node.key,
    }
    assert len(keys) == 6
    assert ds.predict(linear({"a": 2.0})).node.key in keys


# -- the handle ----------------------------------------------------------------------------------------


def test_what_a_model_tells(session):
    model = softmax(optimizer={"m": np.ones(3)})
    assert model.params(session)["weights"].shape == (9, 3)
    assert model.history(session).to_pydict() == {"step": [0], "loss": [0.5]}
    assert model.about(session) == {"steps": 1}
    assert model.digest(session) == softmax(optimizer={"m": np.ones(3)}).digest(session)
    assert model.digest(session) != softmax(seed=1, optimizer={"m": np.ones(3)}).digest(session)
    assert repr(model).startswith("Model(SoftmaxRegression(")
    assert "x0, x1" in repr(model)


def test_a_model_is_trained_once_for_all_questions(session, tmp_path):
    calls = str(tmp_path / "calls")

    def count(table):
        with open(calls, "a") as file:
            file.write("x")
        return table

    model = linear({"a": 2.0})
    node = hw.Dataset(model.node).map_batches(count, schema=model.node.schema, format="arrow").node
    model = Model(model.objective, model.features, node)
    assert model.params(session)["weights"].tolist() == [2.0]
    model.history(session), model.digest(session)
    computed = model.compute(session)
    assert computed.predict(hw.from_arrow({"a": [1.0]})).compute(session).num_rows == 1
    assert Path(calls).read_text() == "x"


def test_persisted_models(session):
    with hw.Session("inline") as own:
        kept = linear({"a": 2.0}).persist()
        ds = hw.from_arrow({"a": [1.0]}).predict(kept)
        assert ds.compute(own).column("prediction").to_pylist() == [2.0]
        assert kept.unpersist(own) > 0
    with pytest.raises(ParameterError, match="persist"):
        linear({"a": 2.0}).unpersist(session)


# -- in this process -----------------------------------------------------------------------------------


def test_batches_of_every_kind(session):
    model = linear({"a": 2.0, "b": 1.0}).compute(session)
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [0, 1]})
    for batch in (
        {"a": [1.0, 2.0], "b": [0, 1]},
        {"a": np.array([1.0, 2.0]), "b": np.array([0, 1])},
        frame,
        pa.Table.from_pandas(frame),
    ):
        assert model.predict_batch(batch).column("prediction").to_pylist() == [2.0, 5.0]
    assert model.predict_batch({"a": 1.0, "b": 3}).to_pydict() == {"a": [1.0], "b": [3], "prediction": [5.0]}
    nothing = model.predict_batch({"a": None, "b": 1}, nulls="null", names={"prediction": "p"})
    assert nothing.column("p").to_pylist() == [None]
    with pytest.raises(TypeMismatchError, match="dict of columns"):
        model.predict_batch([1.0])
    with pytest.raises(ColumnNotFoundError, match="'b'"):
        model.predict_batch({"a": [1.0]})


def test_vectors_as_arrays(session):
    model = make(LinearRegression(), {"weights": np.ones(2, np.float32), "intercept": np.float32(0)}, ("v",))
    batch = model.compute(session).predict_batch({"v": np.array([[1.0, 2.0], [3.0, 4.0]])})
    assert batch.column("prediction").to_pylist() == [3.0, 7.0]


def test_batches_need_a_computed_model():
    with pytest.raises(ParameterError, match="compute"):
        linear({"a": 2.0}).predict_batch({"a": [1.0]})


def test_many_threads_at_once(session):
    model, table = softmax().compute(session), rows(500)
    expected = model.predict_batch(table)
    answers: list[bool] = []

    def ask():
        answers.extend(model.predict_batch(table).equals(expected) for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 20


def prepared(session):
    train = hw.from_arrow({"a": [0.0, 2.0], "c": ["u", "v"]})
    chain = hw.prep.MinMax("a") | hw.prep.Ordinal("c", categories={"c": ["u", "v"]})
    return chain.fit(train), linear({"a": 1.0, "c": 10.0})


def test_rows_are_prepared_before_they_are_served(session):
    prep, model = prepared(session)
    model = Model(model.objective, model.features, model.node, prep)
    model.params(session)
    with pytest.raises(ParameterError, match=r"model\.compute"):
        model.predict_batch({"a": [1.0], "c": ["u"]})
    served = model.compute(session)
    batch = served.predict_batch({"a": [1.0, 4.0], "c": ["u", "v"]})
    assert batch.column("prediction").to_pylist() == [0.5, 12.0]
    raw = hw.from_arrow({"a": [1.0, 4.0], "c": ["u", "v"]})
    assert served.predict(served.prep.transform(raw)).compute(session).equals(batch)
    with pytest.raises(TypeMismatchError, match=r"prep\.transform"):
        served.predict(raw)


# -- saved and loaded ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["local", "memory"])
def test_saved_and_loaded(session, tmp_path, where):
    url = str(tmp_path / "deep" / "model") if where == "local" else f"memory://models/{tmp_path.name}"
    model, table = softmax(optimizer={"m": np.arange(5.0)}), rows(100)
    model.save(url, session)
    loaded = hw.load_model(url)
    assert loaded.digest() == model.digest(session)
    assert loaded.history().equals(model.history(session))
    assert loaded.about() == model.about(session)
    assert loaded.prep is None
    assert repr(loaded.objective) == repr(model.objective)
    expected = dataset(table).predict(model).compute(session)
    assert dataset(table).predict(loaded).compute(session).equals(expected)
    assert loaded.predict_batch(table).equals(expected)


def test_what_is_saved_can_be_read_by_people(session, tmp_path):
    softmax().save(str(tmp_path / "m"), session)
    text = json.loads((tmp_path / "m" / "model.json").read_text())
    assert text["format"] == "headwater.model"
    assert text["objective"]["name"] == "SoftmaxRegression"
    assert text["objective"]["arguments"]["classes"] == 3
    assert text["features"]["names"] == list(NAMES)
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert names == {"model.json", text["files"]["arrays"]["name"]}
    assert hw.read_arrow(str(tmp_path / "m" / text["files"]["arrays"]["name"])).count(session) > 0


def test_saved_with_its_preparation(session, tmp_path):
    prep, model = prepared(session)
    model.save(str(tmp_path / "m"), session, prep=prep)
    loaded = hw.load_model(str(tmp_path / "m"))
    raw = {"a": [1.0, 4.0], "c": ["u", "v"]}
    assert loaded.predict_batch(raw).column("prediction").to_pylist() == [0.5, 12.0]
    scored = loaded.predict(loaded.prep.transform(hw.from_arrow(raw))).compute(session)
    assert scored.column("prediction").to_pylist() == [0.5, 12.0]
    loaded.save(str(tmp_path / "again"))
    assert hw.load_model(str(tmp_path / "again")).predict_batch(raw).equals(loaded.predict_batch(raw))


def test_large_models_are_read_by_the_workers(session, tmp_path, monkeypatch):
    monkeypatch.setattr("headwater.model._SENT_BYTES", 10)
    linear({"a": 2.0}).save(str(tmp_path / "m"), session)
    loaded = hw.load_model(str(tmp_path / "m"))
    assert "arrow" in loaded.node.describe()
    ds = hw.from_arrow({"a": [1.0]}).predict(loaded)
    assert ds.compute(session).column("prediction").to_pylist() == [2.0]
    assert loaded.compute().predict_batch({"a": 3.0}).column("prediction").to_pylist() == [6.0]


@pytest.mark.parametrize(
    "objective",
    [
        LogisticRegression(l2=0.5, fit_intercept=False),
        SoftmaxRegression(4),
        MLP((8, 4), task="binary", dropout=0.1),
        FactorizationMachine(4),
        KMeans(2, init=np.array([[1.0, 0.1], [2.0, np.pi]])),
        GaussianMixture(3),
        PCA(0.5, whiten=True),
        ALS("user", "item", rank=3),
    ],
    ids=lambda objective: objective.label,
)
def test_own_objectives_are_saved_by_name_and_arguments(objective):
    record, pickled = describe_objective(objective)
    assert pickled is None
    back = restore_objective(json.loads(json.dumps(record)))
    assert type(back) is type(objective)
    assert canonical(back.parameters()) == canonical(objective.parameters())


def test_a_users_objective_is_loaded_only_if_trusted(session, tmp_path):
    url = str(tmp_path / "m")
    make(Double(5.0), {}, ("a",)).save(url, session)
    with pytest.raises(ParameterError, match=r"Double .*trusted=True"):
        hw.load_model(url)
    for loaded in (hw.load_model(url, trusted=True), hw.load_model(url, objective=Double(5.0))):
        assert loaded.predict_batch({"a": 2.0}).column("prediction").to_pylist() == [10.0]


def test_a_model_is_not_overwritten_unless_told_to(session, tmp_path):
    url = str(tmp_path / "m")
    linear({"a": 2.0}).save(url, session)
    with pytest.raises(SinkExistsError, match="overwrite=True"):
        linear({"a": 3.0}).save(url, session)
    assert hw.load_model(url).params()["weights"].tolist() == [2.0]
    linear({"a": 3.0}).save(url, session, overwrite=True)
    assert hw.load_model(url).params()["weights"].tolist() == [3.0]
    assert len(list((tmp_path / "m").iterdir())) == 2
    (tmp_path / "file").write_text("x")
    with pytest.raises(SinkExistsError, match="is a file"):
        linear({"a": 3.0}).save(str(tmp_path / "file"), session)


def test_a_save_that_fails_leaves_the_old_model(session, tmp_path, monkeypatch):
    url = str(tmp_path / "m")
    linear({"a": 2.0}).save(url, session)

    rename = os.replace

    def replace(source, target):
        if str(target).endswith("model.json"):
            raise OSError(5, "broken")
        rename(source, target)

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(OSError, match="broken"):
        linear({"a": 3.0}).save(url, session, overwrite=True)
    assert hw.load_model(url).params()["weights"].tolist() == [2.0]
    assert not list((tmp_path / "m").glob("*.tmp"))


def test_what_cannot_be_loaded(session, tmp_path):
    with pytest.raises(SourceNotFoundError, match="no model"):
        hw.load_model(str(tmp_path / "none"))
    folder = tmp_path / "m"
    linear({"a": 2.0}).save(str(folder), session)
    manifest = (folder / "model.json").read_text()
    arrays = folder / json.loads(manifest)["files"]["arrays"]["name"]
    good = arrays.read_bytes()

    def refused(match, text=manifest, data=good):
        (folder / "model.json").write_text(text)
        arrays.write_bytes(data)
        with pytest.raises(CorruptFileError, match=match):
            hw.load_model(str(folder))

    refused("changed or cut short", data=good[:-10])
    refused("changed or cut short", data=good[:200] + bytes([good[200] ^ 1]) + good[201:])
    refused("isn't a model's", text=manifest[:50])
    refused("isn't a model's", text="[]")
    refused("Upgrade Headwater", text=manifest.replace('"version": 1', '"version": 9'))
    refused("can't be made here", text=manifest.replace('"name": "LinearRegression"', '"name": "Nothing"'))
    refused("names files", text=manifest.replace(arrays.name, "../" + arrays.name))
    refused("lacks something", text=manifest.replace('"objective"', '"objektive"'))
    arrays.unlink()
    (folder / "model.json").write_text(manifest)
    with pytest.raises(CorruptFileError, match="is missing"):
        hw.load_model(str(folder))


def test_steps_and_models_travel():
    step = linear({"a": 2.0}).predict(hw.from_arrow({"a": [1.0]})).node.step
    assert pickle.loads(pickle.dumps(step)).parameters() == step.parameters()
