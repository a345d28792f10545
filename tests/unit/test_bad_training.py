"""Training that can't be: told by a message that names what arrived and what to write instead, before it starts if it
can be known."""

from __future__ import annotations

import random
import re
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

import headwater as hw
from headwater import col, errors
from headwater.ops.objectives import (
    ALS,
    MLP,
    KMeans,
    LinearRegression,
    LogisticRegression,
    SoftmaxRegression,
    Torch,
    custom,
)
from headwater.ops.optim import adam, lbfgs, sgd

ROWS = 300
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 2))
Y = (X[:, 0] > 0).astype(np.int64)


@pytest.fixture(scope="module")
def session():
    with hw.Session("inline", journal=False) as session:
        yield session


def rows(count: int = ROWS, **more) -> hw.Dataset:
    """Two features and a target of 0 and 1, and further columns."""
    more = {name: values[:count] for name, values in more.items()}
    return hw.from_arrow({"a": X[:count, 0], "b": X[:count, 1], "y": Y[:count], **more}, partitions=3)


def train(dataset: hw.Dataset, objective=None, **options) -> hw.Model:
    """Declare a short training."""
    options = {"target": "y", "epochs": 1, "batch_size": 64, **options}
    return hw.train(dataset, objective=objective or LogisticRegression(), **options)


def start(rng, info):
    return {"w": np.zeros(info.width)}


# -- at declaration: nothing has run ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declare", "error", "message"),
    [
        (
            lambda: train(rows(), LogisticRegression),
            errors.TypeMismatchError,
            r"objective=<class.*Call it: objective=hw\.objectives",
        ),
        (
            lambda: train(rows(), "logistic"),
            errors.TypeMismatchError,
            r"objective='logistic'.*one of hw\.objec",
        ),
        (
            lambda: train(rows(), target=None),
            errors.ParameterError,
            r"write target='…', one of \['a', 'b', 'y'",
        ),
        (lambda: train(rows(), KMeans(3)), errors.ParameterError, r"has no target; leave target='y' out"),
        (
            lambda: train(rows(), target="yy"),
            errors.ColumnNotFoundError,
            r"target='yy'.*Did you mean 'y'\?",
        ),
        (
            lambda: train(rows(), features=["a", "bb"]),
            errors.ColumnNotFoundError,
            r"features='bb'.*Did you mean 'b'\?",
        ),
        (
            lambda: train(rows(), weight="ww"),
            errors.ColumnNotFoundError,
            r"weight='ww'.*Valid: 'a', 'b', 'y'",
        ),
        (lambda: train(rows(), features=["a", "y"]), errors.ParameterError, r"target='y'.*features=\['a'\]"),
        (lambda: train(rows(), features=[]), errors.ParameterError, r"no feature is left"),
        (lambda: train(rows().select("y")), errors.ParameterError, r"no feature is left"),
        (
            lambda: train(rows(s=["x"] * ROWS)),
            errors.TypeMismatchError,
            r"'s' is string, and a feature is a number.*hw\.prep\.OneHot\('s'\)",
        ),
        (
            lambda: train(rows(s=["x"] * ROWS), target="s", features=["a"]),
            errors.TypeMismatchError,
            r"'s' is string, and a target is a number.*hw\.prep\.Ordinal\('s'\)",
        ),
        (
            lambda: train(rows(), epochs=2, steps=3),
            errors.ParameterError,
            r"epochs=2 and steps=3.*one of them",
        ),
        (lambda: train(rows(), batch_size=0), errors.ParameterError, r"batch_size=0.*1 or more"),
        (lambda: train(rows(), batch_size="64"), errors.ParameterError, r"batch_size='64'.*whole number"),
        (lambda: train(rows(), batch_size=64.5), errors.ParameterError, r"batch_size=64\.5.*whole number"),
        (lambda: train(rows(), epochs=1.5), errors.ParameterError, r"epochs=1\.5.*whole number"),
        (lambda: train(rows(), epochs=0), errors.ParameterError, r"epochs=0.*1 or more"),
        (lambda: train(rows(), seed="x"), errors.ParameterError, r"seed='x'.*whole number"),
        (lambda: train(rows(), accumulate=0), errors.ParameterError, r"accumulate=0.*1 or more"),
        (lambda: train(rows(), dtype="float16"), errors.ParameterError, r"float16.*'float32'"),
        (lambda: train(rows(), on_nan="ignore"), errors.ParameterError, r"'raise', 'skip' or 'stop'"),
        (lambda: train(rows(), optimizer="adam"), errors.TypeMismatchError, r"optimizer=hw\.optim\.adam\("),
        (lambda: train(rows(), optimizer=adam), errors.TypeMismatchError, r"optimizer=hw\.optim\.adam\("),
        (
            lambda: train(rows(), optimizer=lbfgs(), epochs=3),
            errors.ParameterError,
            r"lbfgs.*epochs=3.*Leave it",
        ),
        (
            lambda: train(rows(), KMeans(3), target=None, epochs=None, optimizer=adam()),
            errors.ParameterError,
            r"KMeans has an algorithm of its own.*optimizer= out",
        ),
        (
            lambda: train(rows(), early_stopping=hw.EarlyStopping()),
            errors.ParameterError,
            r"give validation=",
        ),
        (
            lambda: train(rows(), validation=rows(), early_stopping=3),
            errors.TypeMismatchError,
            r"early_stopping=3.*EarlyStopping",
        ),
        (
            lambda: train(rows(), validation=rows().drop("y")),
            errors.ColumnNotFoundError,
            r"validation rows.*'y'",
        ),
        (
            lambda: train(rows(), validation=rows().with_columns(b=col("b").cast("string"))),
            errors.TypeMismatchError,
            r"validation rows.*'b' is string",
        ),
        (lambda: train(rows(), validation=pa.table({"a": [1.0]})), errors.TypeMismatchError, r"not Table"),
        (
            lambda: train(pa.table({"a": [1.0], "y": [1.0]})),
            errors.TypeMismatchError,
            r"a Dataset, not Table",
        ),
        (lambda: train(rows(), callbacks=print), errors.TypeMismatchError, r"callbacks=\[print\]"),
        (
            lambda: train(rows(), callbacks=[3]),
            errors.TypeMismatchError,
            r"callbacks=\[3\]: give a list of func",
        ),
        (lambda: train(rows(), strategy="ring"), errors.TypeMismatchError, r"strategy='ring'.*AllReduce"),
        (lambda: train(rows(), prep=hw.prep.Standardize("a")), errors.TypeMismatchError, r"FittedPrep"),
        (lambda: hw.AllReduce(shards=0), errors.ParameterError, r"shards=0.*1 to"),
        (lambda: MLP((8, 0)), errors.ParameterError, r"hidden=\(8, 0\).*widths"),
        (lambda: custom(start, 3), errors.ParameterError, r"value_and_grad=3.*give a function"),
    ],
)
def test_what_can_be_known_at_declaration_is_said_there(declare, error, message):
    with pytest.raises(error, match=message):
        declare()


def test_a_function_that_cannot_be_sent_is_named_where_it_is_declared():
    import threading

    lock = threading.Lock()

    def locked(params, batch):
        with lock:
            return 0.0, params

    with pytest.raises(errors.SerializationError, match=r"locked.*lock"):
        custom(start, locked)


def test_predicted_columns_that_are_there_already_are_told_at_declaration():
    model = train(rows())
    with pytest.raises(errors.ParameterError, match=r"'prediction' twice.*names=\{'prediction': "):
        rows(prediction=np.zeros(ROWS)).predict(model)
    with pytest.raises(errors.ParameterError, match=r"'probability' twice.*names=\{'probability': "):
        rows(probability=np.zeros(ROWS)).predict(model)
    named = rows(prediction=np.zeros(ROWS)).predict(model, names={"prediction": "guess"})
    assert named.columns == ["a", "b", "y", "prediction", "guess", "probability"]


def test_a_custom_objective_without_predict_says_how_to_give_it():
    model = train(rows(), custom(start, lambda p, b: (0.0, p), name="mine"))
    with pytest.raises(errors.ParameterError, match=r"mine has no predict function.*predict=f"):
        rows().predict(model)


def test_without_pytorch_its_module_says_what_to_install(session, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    model = train(rows(), Torch(lambda: None, output="binary"))
    with pytest.raises(errors.ParameterError, match=r"needs PyTorch.*pip install torch.*hw\.objectives\.MLP"):
        model.compute(session)


# -- when the rows are seen, before the first step ----------------------------------------------------------------


def in_row_250(value) -> pa.Array:
    return pa.array([value if i == 250 else 1.0 for i in range(ROWS)])


@pytest.mark.parametrize(
    ("declare", "error", "message"),
    [
        (
            lambda: train(rows().filter(col("a") > 100)),
            errors.ParameterError,
            r"LogisticRegression: there are no rows to train on.*filter",
        ),
        (
            lambda: train(rows().filter(col("a") > 100), optimizer=lbfgs(), epochs=None),
            errors.ParameterError,
            r"there are no rows to train on",
        ),
        (
            lambda: train(rows().filter(col("y") == 1)),
            errors.ParameterError,
            r"the target is 1 in all \d+ training rows.*only one class",
        ),
        (
            lambda: train(rows().with_columns(y=col("y") + 1)),
            errors.ParameterError,
            r"go from 1 to 2, and must be False and True, or 0 and 1.*hw\.prep\.Ordinal",
        ),
        (lambda: train(rows().with_columns(y=col("y") * 2 - 1)), errors.ParameterError, r"go from -1 to 1"),
        (
            lambda: train(rows(k=np.arange(ROWS) % 5), SoftmaxRegression(3), target="k", features=["a"]),
            errors.ParameterError,
            r"from 0 to 4, and must be whole numbers, 0 to 2\. There seem to be 5 classes",
        ),
        (
            lambda: train(rows(z=in_row_250(None))),
            errors.HeadwaterError,
            r"row 250 of the feature 'z' is null.*hw\.prep\.Impute\('z'\)",
        ),
        (
            lambda: train(rows(z=in_row_250(float("nan")))),
            errors.HeadwaterError,
            r"row 250 of the feature 'z' is NaN.*filter",
        ),
        (
            lambda: train(rows(z=in_row_250(None)), LinearRegression(), target="z", features=["a"]),
            errors.HeadwaterError,
            r"target='z'\): row 250 is null.*filter",
        ),
        (
            lambda: train(rows(z=in_row_250(-1.0)), weight="z"),
            errors.ParameterError,
            r"weight='z'.*row 250 has the weight -1",
        ),
        (
            lambda: train(rows(), validation=rows(z=in_row_250(None)).drop("b").rename(z="b")),
            errors.HeadwaterError,
            r"row 250 of the feature 'b' is null",
        ),
        (
            lambda: train(
                rows(), validation=rows().filter(col("a") > 100), early_stopping=hw.EarlyStopping()
            ),
            errors.ParameterError,
            r"early stopping.*there are none",
        ),
        (
            lambda: train(rows(2), KMeans(3), target=None, epochs=None),
            errors.ParameterError,
            r"only 2 training r",
        ),
        (
            lambda: train(rows(), ALS("a", "b"), epochs=None),
            errors.TypeMismatchError,
            r"'a' is float32.*whole numbers",
        ),
    ],
)
def test_what_the_rows_tell_is_said_before_the_first_step(session, declare, error, message):
    steps: list[dict] = []
    model = declare()
    node = replace(model.node, callbacks=(steps.append,))
    with pytest.raises(error, match=message):
        hw.Model(model.objective, model.features, node).compute(session)
    assert not steps


@pytest.mark.parametrize("partitions", [1, 2])
def test_vectors_of_different_lengths_are_told(session, partitions):
    vectors = [[1.0, 2.0]] * 100 + [[1.0, 2.0, 3.0]] * 100
    uneven = hw.from_arrow({"v": vectors, "y": [0, 1] * 100}, partitions=partitions)
    with pytest.raises(errors.HeadwaterError, match=r"vectors of 'v'.*2.*3.*one length"):
        train(uneven).compute(session)
    even = uneven.limit(100)
    with pytest.raises(errors.HeadwaterError, match=r"vectors of 'v'.*2.*3.*one length"):
        train(even, validation=uneven).compute(session)
    assert train(even).params(session)["weights"].shape == (2,)


def test_classes_between_whole_numbers_are_told(session):
    between = rows(k=np.where(np.arange(ROWS) % 3 == 0, 0.5, Y)).drop("y")
    for objective in (SoftmaxRegression(2), MLP((4,), task="classes", classes=2)):
        with pytest.raises(errors.ParameterError, match=r"the target holds 0\.5.*whole number"):
            train(between, objective, target="k").compute(session)


# -- few rows are fine --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("optimizer", [sgd(0.1), lbfgs()])
def test_fewer_rows_than_shards_are_trained_on(session, count, optimizer):
    few = rows(count).select(a=hw.when(col("a") > 0).then(1.0).otherwise(-1.0)).with_columns(y=col("a") * 2)
    options = {"epochs": 60} if optimizer.name == "sgd" else {"epochs": None}
    model = train(few, LinearRegression(fit_intercept=False), features=["a"], optimizer=optimizer, **options)
    assert model.params(session)["weights"] == pytest.approx([2.0], abs=1e-2)


# -- losses that aren't finite ------------------------------------------------------------------------------------


def nan_at_seven(params, batch):
    """Give a loss that isn't finite for a batch with 7 in it, and walk one step for each other batch."""
    return (np.nan if 7.0 in batch["x"][:, 0] else 1.0), {"w": np.ones(2)}


@pytest.fixture
def poisoned() -> hw.Dataset:
    """Rows with 7 in one of them."""
    return rows().with_columns(a=hw.when(col("a") == X[170, 0]).then(7.0).otherwise(col("a")))


def batch_of_seven(session, poisoned) -> int:
    """The step, from 1, of the first epoch that has the row with 7."""

    def count(params, batch):
        return 0.0, {"w": np.zeros(2)}, {"sevens": float((batch["x"][:, 0] == 7).mean())}

    history = train(poisoned, custom(start, count, metrics=("sevens",))).history(session).to_pydict()
    (step,) = [int(s) for s, sevens in zip(history["step"], history["sevens"]) if sevens]
    return step


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(session, poisoned):
    step = batch_of_seven(session, poisoned)
    objective = custom(start, nan_at_seven)
    message = (
        rf"nan_at_seven: the loss or .* isn't finite in shard \d, at step {step} of epoch 1\..*on_nan='skip'"
    )
    with pytest.raises(errors.DivergedError, match=message):
        train(poisoned, objective, optimizer=sgd(1.0)).compute(session)


def test_or_its_batches_are_skipped(session, poisoned):
    model = train(poisoned, custom(start, nan_at_seven), optimizer=sgd(1.0), epochs=2, on_nan="skip")
    model = model.compute(session)
    # five batches an epoch, and one of each isn't taken
    assert model.params()["w"].tolist() == [-8.0, -8.0]
    losses = model.history().column("loss").to_pylist()
    assert [loss for loss in losses if loss == loss] == [1.0] * 8
    assert len(losses) == 10


def test_or_the_training_ends_before_it(session, poisoned):
    step = batch_of_seven(session, poisoned)
    model = train(poisoned, custom(start, nan_at_seven), optimizer=sgd(1.0), epochs=9, on_nan="stop")
    model = model.compute(session)
    assert model.params()["w"].tolist() == [1.0 - step] * 2
    assert (model.about()["steps"], model.about()["end"]) == (step, "not finite")


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_learning_rate_far_too_high_is_told(session):
    with pytest.raises(errors.DivergedError, match=r"step \d of epoch \d.*Lower the learning rate"):
        train(rows(), LinearRegression(), optimizer=sgd(1e30), epochs=5).compute(session)


# -- the user's functions -----------------------------------------------------------------------------------------


def divide(params, batch):
    return 1 / 0, params


@pytest.mark.parametrize("optimizer", [None, lbfgs()])
def test_an_exception_inside_the_objective_comes_with_its_traceback(session, optimizer):
    options = {} if optimizer is None else {"optimizer": optimizer, "epochs": None}
    with pytest.raises(errors.UserFunctionError) as caught:
        train(rows(), custom(start, divide), **options).compute(session)
    text = str(caught.value)
    assert re.search(r"divide\.value_and_grad raised ZeroDivisionError: division by zero", text)
    assert re.search(r"in shard 0, batch 0 .*; it got x: float32\[\d+, 2\], y: float32", text)
    assert re.search(r"test_bad_training\.py\", line \d+, in divide\n +return 1 / 0, params", text)


@pytest.mark.parametrize("optimizer", [None, lbfgs()])
def test_an_exception_where_parameters_start_is_the_users(session, optimizer):
    def broken(rng, info):
        raise KeyError("size")

    options = {} if optimizer is None else {"optimizer": optimizer, "epochs": None}
    with pytest.raises(
        errors.UserFunctionError, match=r"mine\.init raised KeyError: 'size'\n(.*\n)*.*in broken"
    ):
        train(rows(), custom(broken, divide, name="mine"), **options).compute(session)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda p, b: (0.0, {"w": np.zeros(3)}),
            errors.ParameterError,
            r"'w' with the shape \(3,\).*have \(2,\)",
        ),
        (
            # the last batch of the epoch is smaller than the others
            lambda p, b: (0.0, {"w": np.zeros(2 if len(b["y"]) == 8 else 1)}),
            errors.ParameterError,
            r"'w' with the shape \(1,\).*Shapes don't change during training",
        ),
        (lambda p, b: (0.0, {"v": np.zeros(2)}), errors.TypeMismatchError, r"\['v'\]"),
        (lambda p, b: 0.0, errors.UserFunctionError, r"returned a float"),
    ],
)
def test_gradients_that_do_not_fit_the_parameters_are_told(session, function, error, message):
    with pytest.raises(error, match=message):
        train(rows(), custom(start, function, name="mine")).compute(session)


def by_clock(params, batch):
    return time.perf_counter(), params


def by_chance(params, batch):
    return 0.0, {"w": np.full(2, random.random())}


@pytest.mark.parametrize(
    ("function", "part", "suspect"),
    [(by_clock, "loss", "perf_counter"), (by_chance, "gradient", r"random\.random")],
)
def test_an_objective_that_does_not_repeat_itself_is_named_with_its_line(session, function, part, suspect):
    line = function.__code__.co_firstlineno
    name = function.__name__
    message = rf"{name}: the {part} of shard 0 came out different.*{name}, .*test_bad_training\.py:{line}.*{suspect}"
    with pytest.raises(errors.NonDeterministicError, match=message):
        train(rows(), custom(start, function)).compute(session)


def test_a_callback_that_raises_is_named(session):
    def watch(metrics):
        if metrics["step"] == 2:
            raise KeyError("boom")

    message = r"the callback .*watch raised KeyError: 'boom'\nafter step 2; it got .*'loss'(.*\n)*.*in watch"
    with pytest.raises(errors.UserFunctionError, match=message):
        train(rows(), callbacks=[watch]).compute(session)
