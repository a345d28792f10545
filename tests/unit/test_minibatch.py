"""Minibatch: the same bytes however shards are spread, batches that aren't finite, early stopping, real accuracy."""

from __future__ import annotations

import gzip
import math
import os
import pickle
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from headwater.errors import (
    DivergedError,
    NonDeterministicError,
    ParameterError,
    TypeMismatchError,
    UserFunctionError,
)
from headwater.ops import optim
from headwater.ops.objectives import MLP, LinearRegression, LogisticRegression, Torch, custom
from headwater.ops.objectives.objective import Objective
from headwater.ops.training.determinism import check_repeats
from headwater.ops.training.local_shard import local_shards, make_info, run_locally, sum_in_order
from headwater.ops.training.minibatch import Minibatch
from headwater.ops.training.norm_blocks import NORM_BLOCK, block_squares
from headwater.ops.training.program import EarlyStopping, Settings
from headwater.ops.training.tree import leaves, load_spec, pack, spec_of, unpack

DATA = Path(os.environ.get("HEADWATER_DATA", Path(__file__).parents[3] / "shared" / "data"))


def rows(n: int = 300, width: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)).astype("float32")
    noise = rng.logistic(size=n)
    return {"x": x, "y": x @ np.arange(1, width + 1) + noise > 0}


def fit(objective, columns, validation=None, shards=4, batch_size=64, dtype="float32", seed=0, **settings):
    """Train in this process; gives the program and its last state."""
    info = make_info(columns, validation, shards, batch_size, seed, dtype)
    settings.setdefault("optimizer", optim.adam(0.05))
    program = objective.program(Settings(batch_size=batch_size, dtype=dtype, seed=seed, **settings))
    return program, run_locally(program, local_shards(columns, info, validation), info)


def bits(state) -> bytes:
    return state["params"].tobytes()


# -- trees ---------------------------------------------------------------------------------------------------


def test_a_tree_is_packed_and_seen_again_without_copies():
    tree = {"layers": [{"weight": np.arange(6.0).reshape(2, 3)}, (np.array(7.0),)], "bias": np.ones(2)}
    spec = spec_of(tree, "float32")
    vector = pack(tree, spec)
    assert vector.dtype == "float32"
    assert list(leaves(vector, spec)) == ["layers.0.weight", "layers.1.0", "bias"]
    again = unpack(vector, load_spec(spec.text, "float32"))
    assert isinstance(again["layers"][1], tuple)
    again["layers"][0]["weight"][1, 2] = 50
    assert vector[5] == 50
    with pytest.raises(ValueError, match="read-only"):
        unpack(vector, spec, writable=False)["bias"][0] = 1


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        (
            {"a": np.zeros(3), "b": [np.zeros(1)]},
            ParameterError,
            r"g gave 'a' with the shape \(3,\), .* have \(2,\)",
        ),
        ({"a": np.zeros(2), "b": [np.zeros((1, 1))]}, ParameterError, r"'b\.0' with the shape \(1, 1\)"),
        ({"a": np.zeros(2)}, TypeMismatchError, r"a dict with \['a'\] at 'the top'.*one with \['a', 'b'\]"),
        ({"a": np.zeros(2), "b": np.zeros(1)}, TypeMismatchError, "a ndarray at 'b', .* a list of 1"),
        ({"a": None, "b": [np.zeros(1)]}, TypeMismatchError, "a NoneType at 'a', .* an array"),
        ({"a": np.array(["x", "y"]), "b": [np.zeros(1)]}, TypeMismatchError, "'a' as <U1"),
        ({"a": np.zeros(2) * 1j, "b": [np.zeros(1)]}, TypeMismatchError, "'a' as complex128"),
    ],
)
def test_what_does_not_fit_is_named(tree, error, message):
    spec = spec_of({"a": np.zeros(2), "b": [np.zeros(1)]}, "float64")
    with pytest.raises(error, match=message):
        pack(tree, spec, "g")


# -- the same bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 8, 13])
def test_sums_of_ranges_of_shards_make_the_sum_of_all(shards):
    parts = [{"g": np.random.default_rng(i).normal(size=50).astype("float32")} for i in range(shards)]
    total = sum_in_order(iter(parts))["g"]

    def tree(low: int, high: int) -> np.ndarray:
        if high - low == 1:
            return parts[low]["g"]
        half = 1 << ((high - low - 1).bit_length() - 1)
        return tree(low, low + half) + tree(low + half, high)

    np.testing.assert_array_equal(total, tree(0, shards))


@pytest.mark.parametrize("optimizer", [optim.adam(0.05), optim.lamb(0.05), optim.momentum(0.1, 0.9)])
def test_training_again_gives_the_same_bytes(optimizer):
    objective = MLP((8,), "binary", dropout=0.2)
    _, first = fit(objective, rows(), epochs=3, optimizer=optimizer)
    _, second = fit(pickle.loads(pickle.dumps(objective)), rows(), epochs=3, optimizer=optimizer)
    assert bits(first) == bits(second)
    _, other = fit(objective, rows(), epochs=3, optimizer=optimizer, seed=1)
    assert bits(first) != bits(other)


def test_a_state_goes_on_elsewhere_with_the_same_bytes():
    columns = rows()
    info = make_info(columns, columns, 4, 64)
    settings = Settings(optim.adam(0.05), epochs=3, batch_size=64)
    states = []
    program = Minibatch(MLP((5,), "binary", dropout=0.1), settings)
    shards = local_shards(columns, info, columns)
    last = run_locally(program, shards, info, lambda state: states.append(pickle.dumps(state)))
    other = Minibatch(MLP((5,), "binary", dropout=0.1), settings)
    state = pickle.loads(states[6])
    while not other.finished(state):
        state = other.update(state, sum_in_order(other.statistics(state, shard) for shard in shards))
    assert bits(state) == bits(last)
    assert other.history(state) == program.history(last)
    assert [pickle.loads(s)["step"] for s in states] == list(range(1, len(states) + 1))


def test_slices_of_the_vector_updated_by_their_owners_make_the_same_bytes():
    columns = rows(200, 3000)
    info = make_info(columns, None, 2, 64)
    program = Minibatch(MLP((4,), "binary"), Settings(optim.adam(0.01), epochs=2, batch_size=64))
    assert program.elementwise
    shards = local_shards(columns, info)
    whole = run_locally(program, shards, info)
    state = program.start(info)
    size = len(state["params"])
    cuts = [0, NORM_BLOCK, 2 * NORM_BLOCK, size]
    slots = [program.optimizer_slice(state, slice(a, b)) for a, b in zip(cuts, cuts[1:])]
    while not program.finished(state):
        sums = sum_in_order(program.statistics(state, shard) for shard in shards)
        assert program.makes_update(state, {name: sums[name] for name in sums if name not in program.sliced})
        pieces = []
        for i, (a, b) in enumerate(zip(cuts, cuts[1:])):
            own = {**state, "optimizer": slots[i]}
            pieces.append(program.update_slice(own, {**sums, "grad": sums["grad"][a:b].copy()}, slice(a, b)))
            slots[i] = pieces[-1].optimizer
        joined = type(pieces[0])(
            np.concatenate([piece.params for piece in pieces]),
            pieces[0].optimizer,
            np.concatenate([piece.squares for piece in pieces]),
        )
        state = program.finish(state, {n: sums[n] for n in sums if n != "grad"}, joined)
    assert bits(state) == bits(whole)
    assert repr(program.history(state)) == repr(program.history(whole))
    with pytest.raises(ParameterError, match="cut at multiples"):
        program.update_slice(program.start(info), sums, slice(0, 5))


def test_norm_blocks_of_slices_are_those_of_the_whole():
    grad = np.random.default_rng(0).normal(size=5 * NORM_BLOCK + 7).astype("float32")
    cut = 2 * NORM_BLOCK
    np.testing.assert_array_equal(
        block_squares(grad), np.concatenate([block_squares(grad[:cut]), block_squares(grad[cut:].copy())])
    )
    assert block_squares(grad).sum() == pytest.approx((grad.astype("float64") ** 2).sum())


# -- batches and their sums ------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_global_batch_for_any_shards():
    columns = rows(256)
    objective = LogisticRegression(l2=0.1)
    expected = objective.value_and_grad(
        {"weights": np.zeros(4), "intercept": np.zeros(())}, {"x": columns["x"], "y": columns["y"]}
    )
    for shards in (1, 3, 8):
        info = make_info(columns, None, shards, 256, dtype="float64")
        program = Minibatch(objective, Settings(optim.sgd(1.0), steps=1, batch_size=256, dtype="float64"))
        state = run_locally(program, local_shards(columns, info), info)
        np.testing.assert_allclose(program.params(state)["weights"], -expected[1]["weights"], atol=1e-12)
        assert program.metrics(state)["loss"] == pytest.approx(expected[0])
        norm = math.hypot(*expected[1]["weights"], expected[1]["intercept"])
        assert program.metrics(state)["grad_norm"] == pytest.approx(norm)


def test_accumulation_gives_the_same_to_rounding():
    for weight in ({}, {"weight": np.random.default_rng(0).random(300).astype("float32")}):
        columns = rows() | weight
        _, once = fit(LogisticRegression(l2=0.1), columns, epochs=3, dtype="float64")
        _, parts = fit(LogisticRegression(l2=0.1), columns, epochs=3, dtype="float64", accumulate=5)
        np.testing.assert_allclose(once["params"], parts["params"], rtol=1e-6)
        assert bits(once) != bits(parts)


def test_shards_without_rows_add_zeros_and_call_nothing():
    columns = rows(3)
    program, state = fit(LogisticRegression(), columns, shards=8, batch_size=2, epochs=2)
    assert state["end"] == "complete"
    info = make_info(columns, columns, 8, 2)
    shards = local_shards(columns, info, columns)
    empty = next(shard for shard in shards if not shard.rows)
    full = next(shard for shard in shards if shard.rows)
    a, b = (program.statistics(program.start(info), shard) for shard in (empty, full))
    assert {n: (v.shape, v.dtype) for n, v in a.items()} == {n: (v.shape, v.dtype) for n, v in b.items()}
    assert not any(value.any() for value in a.values())


def test_rows_of_weight_zero_do_not_count():
    columns = rows() | {"weight": (np.arange(300) < 150).astype("float32")}
    columns["x"] = np.where(columns["weight"][:, None] > 0, columns["x"], 1e6).astype("float32")
    program, state = fit(LogisticRegression(), columns, epochs=20)
    assert program.metrics(state)["loss"] < 0.5
    negative = {**columns, "weight": columns["weight"] - 0.5}
    with pytest.raises(ParameterError, match="a weight is negative"):
        fit(LogisticRegression(), negative, epochs=1)


def test_schedules_and_history_go_by_steps():
    program, state = fit(
        LogisticRegression(),
        rows(),
        rows(50, seed=1),
        optimizer=optim.sgd(optim.linear(1.0, 0.0, 10)),
        epochs=2,
    )
    history = program.history(state)
    assert history["steps"]["step"] == list(range(1, 11))
    assert history["steps"]["epoch"] == [1] * 5 + [2] * 5
    assert history["steps"]["lr"] == pytest.approx([1 - i / 10 for i in range(10)])
    assert history["epochs"]["step"] == [5, 10]
    weights = [64, 64, 64, 64, 44]
    expected = np.average(history["steps"]["loss"][:5], weights=weights)
    assert history["epochs"]["loss"][0] == pytest.approx(expected)
    assert program.metrics(state)["validation_loss"] == history["epochs"]["validation_loss"][-1]
    assert program.progress(state) == 1.0


def test_steps_may_end_within_an_epoch_and_are_validated_there():
    program, state = fit(LogisticRegression(), rows(), rows(50, seed=1), steps=7)
    assert program.history(state)["epochs"]["step"] == [5, 7]
    assert not any(map(math.isnan, program.history(state)["epochs"]["validation_loss"]))


# -- losses that aren't finite -----------------------------------------------------------------------------------


def with_nan(at: int = 200) -> dict[str, np.ndarray]:
    columns = rows()
    columns["x"][at] = np.nan
    return columns


def test_a_loss_that_is_not_finite_raises_with_step_epoch_and_shards():
    with pytest.raises(
        DivergedError, match=r"isn't finite in shard \d, at step \d of epoch 1\..*Lower the learning"
    ):
        fit(LogisticRegression(), with_nan(), epochs=2)


def test_such_steps_are_skipped():
    program, state = fit(LogisticRegression(), with_nan(), epochs=3, on_nan="skip")
    assert program.metrics(state)["skipped"] == 3
    assert state["updates"] == state["batch"] - 3
    assert np.isfinite(state["params"]).all()
    assert np.isnan(program.history(state)["steps"]["loss"]).sum() == 3
    assert np.isfinite(program.history(state)["epochs"]["loss"]).all()


@pytest.mark.filterwarnings("ignore:overflow")
def test_or_end_with_the_last_good_parameters():
    program, state = fit(LogisticRegression(), with_nan(), epochs=3, on_nan="stop")
    assert state["end"] == "not finite"
    assert np.isfinite(state["params"]).all()
    assert program.finished(state)
    exploding = custom(
        lambda rng, info: {"w": np.ones(1)},
        lambda params, batch: (float(params["w"][0] ** 2), {"w": -3 * params["w"]}),
    )
    _, state = fit(exploding, rows(), steps=200, optimizer=optim.sgd(10.0), on_nan="stop")
    assert state["end"] == "not finite"
    assert np.isfinite(state["params"]).all()
    assert np.isfinite(state["params"] ** 2).all()


@pytest.mark.filterwarnings("ignore:invalid", "ignore:overflow")
def test_skipping_stops_when_the_parameters_are_lost():
    objective = custom(
        lambda rng, info: {"w": np.ones(1)},
        lambda params, batch: (0.0 * params["w"][0], {"w": np.full(1, 1e36)}),
    )
    with pytest.raises(DivergedError, match="parameters aren't finite after epoch 1"):
        fit(objective, rows(), steps=1, optimizer=optim.sgd(1e4))
    with pytest.raises(DivergedError, match="skipping batches doesn't help"):
        fit(objective, rows(), steps=20, shards=1, batch_size=1, optimizer=optim.sgd(1e4), on_nan="skip")


# -- early stopping ------------------------------------------------------------------------------------------------


def scripted(values: list[float]) -> Objective:
    """An objective whose parameter counts steps, and whose validation loss is read from a list by it."""
    return custom(
        lambda rng, info: {"count": np.zeros(1)},
        lambda params, batch: (0.0, {"count": -np.ones(1)}),
        loss=lambda params, batch: values[int(params["count"][0]) - 1],
    )


@pytest.mark.parametrize(("restore", "kept"), [(True, 3), (False, 5)])
def test_early_stopping_waits_for_patience_and_restores_the_best(restore, kept):
    stopping = EarlyStopping(patience=2, restore_best=restore)
    program, state = fit(
        scripted([5, 4, 2, 3, 2, 0, 0]),
        rows(64),
        rows(20),
        optimizer=optim.sgd(1.0),
        epochs=7,
        early_stopping=stopping,
    )
    assert state["end"] == "early stopping"
    assert state["params"][0] == kept
    assert program.history(state)["epochs"]["validation_loss"] == [5, 4, 2, 3, 2]
    assert state["best_epoch"] == 3


def test_early_stopping_counts_only_what_improves_by_min_delta():
    stopping = EarlyStopping(patience=2, min_delta=0.5)
    _, state = fit(
        scripted([5, 4.8, 4.6, 0]),
        rows(64),
        rows(20),
        optimizer=optim.sgd(1.0),
        epochs=4,
        early_stopping=stopping,
    )
    assert (state["end"], state["params"][0]) == ("early stopping", 1)


def test_early_stopping_needs_validation_rows():
    with pytest.raises(ParameterError, match=r"Give validation=\.\.\."):
        fit(LogisticRegression(), rows(), epochs=1, early_stopping=EarlyStopping())
    with pytest.raises(ParameterError, match="patience is at least 1"):
        EarlyStopping(patience=0)


# -- the user's functions ---------------------------------------------------------------------------------------------


def start(rng, info):
    return {"w": np.zeros(info.width, info.dtype)}


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda p, b: 1 / 0,
            UserFunctionError,
            r"mine.value_and_grad raised ZeroDivisionError.*\n.*x: float32\[\d+, 4\]",
        ),
        (lambda p, b: 1.0, UserFunctionError, r"returned a float. Return \(mean loss, gradients, metrics\)"),
        (lambda p, b: (b["y"], p), TypeMismatchError, r"the loss of shape \(\d+,\): return one number"),
        (lambda p, b: (0.0, {"w": np.zeros(3)}), ParameterError, r"'w' with the shape \(3,\)"),
        (lambda p, b: (0.0, {"v": np.zeros(4)}), TypeMismatchError, r"a dict with \['v'\]"),
        (lambda p, b: (0.0, p, {"acc": 1}), UserFunctionError, r"the metric 'acc', which isn't declared"),
        (lambda p, b: (p["w"].__iadd__(1).sum(), p), UserFunctionError, "read-only"),
    ],
)
def test_what_is_wrong_with_a_result_is_told(function, error, message):
    with pytest.raises(error, match=message):
        fit(custom(start, function, name="mine"), rows(), epochs=1)


def test_metrics_of_users_are_averaged_over_rows():
    objective = custom(start, lambda p, b: (0.0, p, {"share": b["y"].mean()}), metrics=("share",))
    columns = rows()
    program, state = fit(objective, columns, columns, batch_size=300, epochs=1)
    assert program.metrics(state)["share"] == pytest.approx(columns["y"].mean())
    assert program.metrics(state)["validation_share"] == pytest.approx(columns["y"].mean())
    assert program.history(state)["steps"]["share"] == [program.metrics(state)["share"]]


def test_an_objective_that_does_not_repeat_itself_is_found_with_its_line():
    def noisy(params, batch):
        return np.random.random(), params

    columns = rows()
    info = make_info(columns, None, 2, 64)
    program = Minibatch(custom(start, noisy), Settings(epochs=1, batch_size=64))
    shard = local_shards(columns, info)[0]
    with pytest.raises(
        NonDeterministicError,
        match=r"noisy: the loss of shard 0 .*noisy, .*test_minibatch.py:\d+.*numpy.random",
    ):
        check_repeats(program, program.start(info), shard)
    fine = Minibatch(LinearRegression(), Settings(epochs=1, batch_size=64))
    assert "grad" in check_repeats(fine, fine.start(info), shard)


def test_a_class_of_the_users_is_an_objective():
    class Median(Objective):
        def init(self, rng, info):
            return {"w": np.zeros(info.width, info.dtype)}

        def value_and_grad(self, params, batch, rng):
            error = batch["x"] @ params["w"] - batch["y"]
            return abs(error).mean(), {"w": batch["x"].T @ np.sign(error) / len(error)}, {}

    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)).astype("float32")
    columns = {"x": x, "y": (x @ np.array([1, 2, 3]) + rng.standard_t(2, size=500)).astype("float32")}
    program, state = fit(Median(), columns, epochs=30)
    np.testing.assert_allclose(program.params(state)["w"], [1, 2, 3], atol=0.2)


# -- what is reached ---------------------------------------------------------------------------------------------------


def test_logistic_regression_reaches_the_loss_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.linear_model")
    columns = rows(600, 6)
    penalty = 0.01
    program, state = fit(
        LogisticRegression(l2=penalty),
        columns,
        dtype="float64",
        batch_size=600,
        steps=400,
        optimizer=optim.adam(optim.cosine(0.1, 400)),
    )
    reference = sklearn.LogisticRegression(C=1 / (penalty * 600), tol=1e-10, max_iter=1000)
    reference.fit(columns["x"].astype("float64"), columns["y"])
    params = program.params(state)
    best = LogisticRegression(l2=penalty).value_and_grad(
        {"weights": reference.coef_[0], "intercept": reference.intercept_[0]}, columns
    )[0]
    assert program.objective.value_and_grad(params, columns)[0] == pytest.approx(best, abs=1e-6)
    np.testing.assert_allclose(params["weights"], reference.coef_[0], atol=1e-2)


def digits() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    with gzip.open(DATA / "mnist10k" / "images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)
    with gzip.open(DATA / "mnist10k" / "labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    columns = {"x": images.astype("float32") / 255, "y": labels.astype("int64")}
    return {n: a[:8000] for n, a in columns.items()}, {n: a[8000:] for n, a in columns.items()}


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "mnist10k").exists(), reason="the real files aren't here")
def test_a_perceptron_reads_digits_as_well_as_the_same_torch_module():
    pytest.importorskip("torch")

    def build():
        from torch import nn

        return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))

    train, test = digits()
    accuracies, losses = [], []
    for objective in (MLP((64,), "classes", 10), Torch(build, output="classes", classes=10)):
        program, state = fit(
            objective, train, test, batch_size=128, shards=8, epochs=6, optimizer=optim.adam(2e-3), seed=1
        )
        predicted = objective.predict(program.params(state), test)["prediction"]
        accuracies.append(float((predicted == test["y"]).mean()))
        losses.append(program.metrics(state)["validation_loss"])
    assert min(accuracies) > 0.94
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.01)
    assert losses[0] == pytest.approx(losses[1], abs=0.03)


def test_torch_buffers_are_averaged_and_frozen_parameters_stay():
    pytest.importorskip("torch")

    def build():
        from torch import nn

        module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        for parameter in module[0].parameters():
            parameter.requires_grad_(False)
        return module

    columns = rows()
    objective = Torch(build, output="binary")
    info = make_info(columns, None, 4, 100)
    before = objective.init(info.rng(0), info)
    program, state = fit(objective, columns, batch_size=100, epochs=5)
    params = program.params(state)
    np.testing.assert_array_equal(params["0.weight"], before["0.weight"])
    assert not np.array_equal(params["2.weight"], before["2.weight"])
    assert objective.constants == ("0.weight", "0.bias")
    assert len(state["params"]) == 3 + 3 + 3 + 1
    hidden = columns["x"] @ params["0.weight"].T + params["0.bias"]
    np.testing.assert_allclose(params["1.running_mean"], hidden.mean(axis=0), atol=0.3)
    _, again = fit(cloudpickle.loads(cloudpickle.dumps(objective)), columns, batch_size=100, epochs=5)
    assert bits(again) == bits(state)
    assert again["buffers"].tobytes() == state["buffers"].tobytes()
